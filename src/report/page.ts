// The page: shows the trace that it carries, and any that is given to it.

import { collect } from './collect.js';
import { element } from './dom.js';
import { hearFiles } from './drop.js';
import { embeddedTrace } from './embedded.js';
import { Shown } from './shown.js';
import { turn } from './slices.js';
import { themeButton } from './theme.js';

const title = element('h1', {}, 'Page faults');
const name = element('span', { class: 'name' });
const main = element('main', {});
let shown: Shown | undefined;
/** The trace that was asked for last: others that are still being read are not shown. */
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
    shown = new Shown(model, main);
  } catch (error) {
    if (mine !== asked) return;
    const text = `${file} cannot be shown: ${(error as Error).message}`;
    main.replaceChildren(element('p', { class: 'damage', role: 'alert' }, text));
  }
}

const open = hearFiles((file) => show(file.name, async () => new Uint8Array(await file.arrayBuffer())));
const theme = themeButton(() => shown?.recolor());
const tools = element('div', { class: 'tools' }, open, theme);
document.body.append(element('header', {}, title, name, tools), main);

const embedded = await embeddedTrace();
if (embedded) await show(embedded.name, async () => embedded.bytes);
else main.append(element('p', { class: 'reading' }, 'Drop a trace here.'));
