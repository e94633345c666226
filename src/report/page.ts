// The page: shows the trace in it, and any trace that is dropped onto it or chosen with its button.

import { collect } from './collect.js';
import { button, element } from './dom.js';
import { embeddedTrace } from './embedded.js';
import { turn } from './slices.js';
import { themeButton } from './theme.js';
import { TraceView } from './trace-view.js';

const title = element('h1', {}, 'Page faults');
const name = element('span', { class: 'name' });
const main = element('main', {});
let shown: TraceView | undefined;
/** The trace that was requested last; others that are still being read are not shown. */
let asked = 0;

async function show(file: string, read: () => Promise<Uint8Array>): Promise<void> {
  const mine = ++asked;
  const bar = element('progress', { max: '1', 'aria-label': 'Reading the trace' });
  const told = element('p', { class: 'reading' }, `Reading ${file} …`, bar);
  shown?.close();
  shown = undefined;
  main.replaceChildren(told);
  try {
    await turn();
    const model = await collect(file, await read(), (part) => {
      bar.value = part;
    });
    if (mine !== asked) return;
    name.textContent = file;
    document.title = `${file}: page faults`;
    shown = new TraceView(model, main);
  } catch (error) {
    if (mine !== asked) return;
    const text = `${file} cannot be shown: ${(error as Error).message}`;
    main.replaceChildren(element('p', { class: 'damage', role: 'alert' }, text));
  }
}

/** Calls `open` with each file. Returns the button to choose one. */
function hearFiles(open: (file: File) => void): HTMLButtonElement {
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

const open = hearFiles((file) => show(file.name, async () => new Uint8Array(await file.arrayBuffer())));
const theme = themeButton(() => shown?.recolor());
const tools = element('div', { class: 'tools' }, open, theme);
document.body.append(element('header', {}, title, name, tools), main);

const embedded = await embeddedTrace();
if (embedded) await show(embedded.name, async () => embedded.bytes);
else main.append(element('p', { class: 'reading' }, 'Drop a trace here.'));
