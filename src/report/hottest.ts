// The visible ranges with the most faults: the touched regions in blocks of equal size.

import type { Model } from './collect.js';
import { element, panel } from './dom.js';
import { isFault } from './events.js';
import { byteSize, counted, firstIndex, hex } from './numbers.js';
import type { View } from './view.js';

const TOLD = 10;
/** The address space is cut into about BLOCKS blocks. No block is smaller than LEAST_PAGES. */
const BLOCKS = 256;
const LEAST_PAGES = 16;

interface Block {
  readonly first: number;
  readonly end: number;
  readonly row: number;
  reads: number;
  writes: number;
}

export class Hottest {
  readonly panel: HTMLElement;
  readonly #model: Model;
  readonly #view: View;
  readonly #blocks: readonly Block[];
  readonly #list = element('ol', { class: 'hottest' });

  constructor(model: Model, view: View) {
    this.#model = model;
    this.#view = view;
    this.#blocks = blocksOf(model);
    this.panel = panel('hottest', 'Ranges with the most faults', this.#list);
  }

  /** Counts the visible events again. */
  find(): void {
    const found = this.#count();
    const most = Math.max(1, (found[0]?.reads ?? 0) + (found[0]?.writes ?? 0));
    this.#list.replaceChildren(...found.map((block) => element('li', {}, this.#entry(block, most))));
    if (found.length === 0) this.#list.append(element('li', { class: 'told' }, 'No faults in view.'));
  }

  #count(): Block[] {
    const blocks = this.#blocks;
    for (const block of blocks) Object.assign(block, { reads: 0, writes: 0 });
    const { events, row } = this.#model;
    const { time, rows } = this.#view;
    const end = events.firstAfter(time.to);
    for (let at = events.firstAt(time.from); at < end; at++) {
      const line = row[at] as number;
      if (!isFault(events, at) || line < rows.from || line >= rows.to) continue;
      const block = blocks[
        firstIndex(blocks.length, (index) => (blocks[index] as Block).row > line) - 1
      ] as Block;
      if (events.what[at] === 1) block.writes++;
      else block.reads++;
    }
    return blocks
      .filter(({ reads, writes }) => reads + writes > 0)
      .sort((a, b) => b.reads + b.writes - a.reads - a.writes)
      .slice(0, TOLD);
  }

  #entry({ first, end, row, reads, writes }: Block, most: number): HTMLElement {
    const { pageSize } = this.#model.summary;
    const bar = element('span', { class: 'bar', 'aria-hidden': 'true' });
    for (const [name, count] of [
      ['read', reads],
      ['write', writes],
    ] as const) {
      const part = element('span', { class: name });
      part.style.width = `${(100 * count) / most}%`;
      bar.append(part);
    }
    const where = hex(first, pageSize);
    const size = byteSize((end - first) * pageSize);
    const told = `${counted(reads + writes, 'fault')}${writes > 0 && reads > 0 ? `, ${counted(writes, 'write')}` : ''}`;
    const made = element(
      'button',
      { type: 'button', title: `Show ${where}, ${size}` },
      element('span', { class: 'where' }, `${where} `, element('small', {}, size)),
      element('span', { class: 'count' }, told),
      bar,
    );
    made.addEventListener('click', () =>
      this.#view.show(this.#view.time, { from: row, to: row + end - first }),
    );
    return made;
  }
}

/** Regions, cut at multiples of a power of two. */
function blocksOf({ rows }: Model): Block[] {
  const size = Math.max(LEAST_PAGES, 2 ** Math.ceil(Math.log2(rows.count / BLOCKS)));
  const blocks: Block[] = [];
  for (const region of rows.regions) {
    for (let first = region.first; first < region.end; ) {
      const end = Math.min(region.end, (Math.floor(first / size) + 1) * size);
      blocks.push({ first, end, row: region.row + first - region.first, reads: 0, writes: 0 });
      first = end;
    }
  }
  return blocks;
}
