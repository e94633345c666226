// The keys of the page, anywhere except where text is typed.

import type { View } from './view.js';

const PAN = 0.1;
const ZOOM = 0.7;

const ACTIONS: Readonly<Record<string, (view: View) => void>> = {
  ArrowLeft: (view) => view.pan(-PAN, 0),
  ArrowRight: (view) => view.pan(PAN, 0),
  '+': (view) => view.zoomTime(ZOOM),
  '=': (view) => view.zoomTime(ZOOM),
  '-': (view) => view.zoomTime(1 / ZOOM),
  ']': (view) => view.zoomRows(ZOOM),
  '[': (view) => view.zoomRows(1 / ZOOM),
  '0': (view) => view.reset(),
};
/** Up and down scroll the page, unless the heat map has the focus. */
const ON_THE_MAP: typeof ACTIONS = {
  ArrowUp: (view) => view.pan(0, PAN),
  ArrowDown: (view) => view.pan(0, -PAN),
};

/** Handles keys until `signal`. */
export function onKeys(view: View, map: HTMLElement, search: HTMLInputElement, signal: AbortSignal): void {
  const hear = (event: KeyboardEvent): void => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target as HTMLElement;
    if (event.key === 'Escape') {
      if (target === search && search.value !== '') clear(search);
      else if (target === search) search.blur();
      else view.reset();
      return;
    }
    if (target.closest('input, select, [role=listbox]')) return;
    if (event.key === '/') {
      event.preventDefault();
      search.focus();
      return;
    }
    const action = ACTIONS[event.key] ?? (map.contains(target) ? ON_THE_MAP[event.key] : undefined);
    if (!action) return;
    event.preventDefault();
    action(view);
  };
  document.addEventListener('keydown', hear, { signal });
}

function clear(search: HTMLInputElement): void {
  search.value = '';
  search.dispatchEvent(new Event('input'));
}
