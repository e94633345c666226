// Light and dark: the system's choice, until the reader chooses.

import { button } from './dom.js';

const ORDER = ['auto', 'light', 'dark'] as const;
const SIGNS = { auto: '◐', light: '☀', dark: '☾' } as const;

/** The current value of a colour of the style. */
export function color(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** A colour as its parts, 0 to 255. */
export function parts(name: string): readonly [red: number, green: number, blue: number] {
  const value = Number.parseInt(color(name).slice(1), 16);
  return [(value >> 16) & 255, (value >> 8) & 255, value & 255];
}

/** The button that switches to the next theme. `changed` is called when the colours have changed. */
export function themeButton(changed: () => void): HTMLButtonElement {
  let index = 0;
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const apply = (): void => {
    const theme = ORDER[index] as (typeof ORDER)[number];
    const ofSystem = dark.matches ? 'dark' : 'light';
    document.documentElement.dataset.theme = theme === 'auto' ? ofSystem : theme;
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
  dark.addEventListener('change', apply);
  apply();
  return made;
}
