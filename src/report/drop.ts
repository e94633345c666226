// Traces that are dropped onto the page, or chosen with its button.

import { button, element } from './dom.js';

/** Calls `open` with each file. The button to choose one. */
export function hearFiles(open: (file: File) => void): HTMLButtonElement {
  const input = element('input', { type: 'file', 'aria-label': 'A trace' });
  input.hidden = true;
  input.addEventListener('change', () => {
    const file = input.files?.[0];
    if (file) open(file);
    input.value = '';
  });
  const over = (on: boolean): void => {
    document.body.classList.toggle('dropping', on);
  };
  addEventListener('dragover', (event) => {
    event.preventDefault();
    over(true);
  });
  addEventListener('dragleave', (event) => {
    if (event.relatedTarget === null) over(false);
  });
  addEventListener('drop', (event) => {
    event.preventDefault();
    over(false);
    const file = event.dataTransfer?.files[0];
    if (file) open(file);
  });
  const made = button('Open…', 'Open another trace', () => input.click());
  made.append(input);
  return made;
}
