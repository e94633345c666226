// Light and dark: as the system has it, until the reader chooses.

import { button } from './dom.js';

const ORDER = ['auto', 'light', 'dark'] as const;
const SIGNS = { auto: '◐', light: '☀', dark: '☾' } as const;

/** Colours of the style, as they are now. */
export function color(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** A colour as its parts, 0 to 255. */
export function parts(name: string): readonly [red: number, green: number, blue: number] {
  const value = Number.parseInt(color(name).slice(1), 16);
  return [(value >> 16) & 255, (value >> 8) & 255, value & 255];
}

/** The button that goes from one to the next; `changed` is called where colours are others now. */
export function themeButton(changed: () => void): HTMLButtonElement {
  let index = 0;
  const apply = (): void => {
    const theme = ORDER[index] as (typeof ORDER)[number];
    document.documentElement.dataset.theme = theme;
    made.textContent = SIGNS[theme];
    const label = `Theme: ${theme === 'auto' ? "the system's" : theme}`;
    made.title = label;
    made.setAttribute('aria-label', label);
    changed();
  };
  const made = button('', 'Theme', () => {
    index = (index + 1) % ORDER.length;
    apply();
  });
  made.className = 'icon';
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', changed);
  apply();
  return made;
}
