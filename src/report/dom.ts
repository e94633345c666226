// Makes elements in one call. Text is always inserted as text, never as markup.

export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Record<string, string> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A button. `label`: what it does, if its text does not say so. */
export function button(text: string, label: string, action: () => void): HTMLButtonElement {
  const made = element('button', { type: 'button', title: label }, text);
  if (text !== label) made.setAttribute('aria-label', label);
  made.addEventListener('click', action);
  return made;
}

/** A part of the page with a heading. */
export function panel(id: string, title: string, ...children: (Node | string)[]): HTMLElement {
  const heading = element('h2', { id: `${id}-title` }, title);
  const head = element('div', { class: 'head' }, heading);
  return element('section', { id, class: 'panel', 'aria-labelledby': heading.id }, head, ...children);
}

/** Calls `action` at most once a frame. */
export function eachFrame(action: () => void): () => void {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      action();
    });
  };
}

/** Calls `action` when it was not requested for a while. */
export function whenQuiet(action: () => void, ms: number): () => void {
  let timer: number | undefined;
  return () => {
    window.clearTimeout(timer);
    timer = window.setTimeout(action, ms);
  };
}
