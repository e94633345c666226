// The list of events, with its search. Only the visible rows are elements.

import type { Model } from './collect.js';
import { element, panel, whenQuiet } from './dom.js';
import { NO_LATENCY, nameOf, WHATS } from './events.js';
import { duration, grouped, hex } from './numbers.js';
import { HINT, parse, type Test } from './search.js';
import type { View } from './view.js';

const ROW = 28;
/**
 * Most pixels of the list's height: browsers allow no taller elements, so a longer list is scrolled in larger steps.
 */
const TALLEST = 8_000_000;
const QUIET_MS = 120;
/** Rows above the chosen event when the list scrolls to it. */
const ROWS_ABOVE = 3;

export class List {
  readonly panel: HTMLElement;
  readonly search = element('input', {
    type: 'search',
    placeholder: HINT,
    'aria-label': 'Search events',
    spellcheck: 'false',
    autocomplete: 'off',
  });
  /** Called with an event that was chosen. */
  onChoose: (at: number) => void = () => {};
  readonly #model: Model;
  readonly #view: View;
  readonly #order = element(
    'select',
    { 'aria-label': 'Order' },
    element('option', { value: 'time' }, 'by time'),
    element('option', { value: 'latency' }, 'slowest first'),
  );
  readonly #told = element('p', { class: 'told', role: 'status' });
  readonly #scroller = element('div', {
    class: 'rows',
    role: 'listbox',
    tabindex: '0',
    'aria-label': 'Events',
  });
  readonly #spacer = element('div', { class: 'spacer', role: 'presentation' });
  readonly #window = element('div', { class: 'window', role: 'presentation' });
  /** Matching events, in order. */
  #found: Uint32Array = new Uint32Array(0);
  /** The index of the highlighted one among them; −1 if there is none. */
  #active = -1;
  /** The chosen event; it stays chosen in another view. */
  #chosen = -1;

  constructor(model: Model, view: View) {
    this.#model = model;
    this.#view = view;
    this.#scroller.append(this.#spacer, this.#window);
    const head = element('div', { class: 'row columns', 'aria-hidden': 'true' });
    for (const name of ['time', 'what', 'address', 'thread', 'latency'])
      head.append(element('span', { class: name }, name));
    const tools = element('div', { class: 'tools' }, this.search, this.#order);
    this.panel = panel('events', 'Events in view', tools, this.#told, head, this.#scroller);
    this.search.addEventListener(
      'input',
      whenQuiet(() => this.find(), QUIET_MS),
    );
    this.#order.addEventListener('change', () => this.find());
    this.#scroller.addEventListener('scroll', () => this.#draw());
    this.#scroller.addEventListener('keydown', (event) => this.#key(event));
    this.#window.addEventListener('click', (event) => {
      const row = (event.target as HTMLElement).closest<HTMLElement>('[data-index]');
      if (row) this.#choose(Number(row.dataset.index));
    });
    new ResizeObserver(() => this.#draw()).observe(this.#scroller);
  }

  /** Finds the visible and matching events again. */
  find(): void {
    this.search.removeAttribute('aria-invalid');
    try {
      this.#found = this.#matching(parse(this.search.value, this.#model));
      const count = this.#found.length;
      this.#told.textContent = `${grouped(count)} of ${grouped(this.#model.events.length)} events`;
    } catch (error) {
      this.#found = new Uint32Array(0);
      this.search.setAttribute('aria-invalid', 'true');
      this.#told.textContent = `${(error as Error).message}. Try: ${HINT}`;
    }
    this.#spacer.style.height = `${Math.min(this.#found.length * ROW, TALLEST)}px`;
    this.#active = this.#found.indexOf(this.#chosen);
    this.#scrollTo(Math.max(0, this.#active - ROWS_ABOVE));
    this.#draw();
  }

  #matching(test: Test): Uint32Array {
    const { events, row, height } = this.#model;
    const { time, rows } = this.#view;
    const end = events.firstAfter(time.to);
    const first = events.firstAt(time.from);
    const found = new Uint32Array(end - first);
    let count = 0;
    for (let at = first; at < end; at++) {
      const low = row[at] as number;
      if (low < rows.to && low + (height[at] as number) > rows.from && test(at)) found[count++] = at;
    }
    const all = found.subarray(0, count);
    if (this.#order.value !== 'latency') return all;
    const { latency } = events;
    return all.sort((a, b) => (latency[b] as number) - (latency[a] as number));
  }

  /** The index of the first visible row. */
  #first(): number {
    const { scrollTop, clientHeight } = this.#scroller;
    const full = this.#found.length * ROW;
    if (full <= TALLEST) return Math.floor(scrollTop / ROW);
    const part = scrollTop / (TALLEST - clientHeight);
    return Math.floor(part * (this.#found.length - clientHeight / ROW));
  }

  #draw(): void {
    const { scrollTop, clientHeight } = this.#scroller;
    const first = this.#first();
    const tall = this.#found.length * ROW > TALLEST;
    const count = Math.min(Math.ceil(clientHeight / ROW) + 1, this.#found.length - first);
    this.#window.style.transform = `translateY(${tall ? scrollTop : first * ROW}px)`;
    this.#window.replaceChildren(
      ...Array.from({ length: Math.max(0, count) }, (_, index) => this.#row(first + index)),
    );
    this.#scroller.setAttribute('aria-activedescendant', this.#active < 0 ? '' : `event-${this.#active}`);
  }

  #row(index: number): HTMLElement {
    const at = this.#found[index] as number;
    const { events, summary } = this.#model;
    const pages = events.pages[at] as number;
    const latency = events.latency[at] as number;
    const row = element('div', {
      class: 'row',
      role: 'option',
      id: `event-${index}`,
      'data-index': `${index}`,
      'aria-posinset': `${index + 1}`,
      'aria-setsize': `${this.#found.length}`,
      'aria-selected': `${index === this.#active}`,
    });
    const cell = (name: string, text: string): void => row.append(element('span', { class: name }, text));
    cell('time', duration(events.time[at] as number));
    cell(`what ${WHATS[events.what[at] as number]}`, nameOf(events, at));
    cell(
      'address',
      `${hex(events.page[at] as number, summary.pageSize)}${pages > 1 ? ` +${grouped(pages)}` : ''}`,
    );
    cell('thread', events.thread[at] === 0 ? '' : `${events.thread[at]}`);
    cell('latency', latency === NO_LATENCY ? '' : duration(latency));
    return row;
  }

  #choose(index: number): void {
    this.#active = index;
    this.#chosen = this.#found[index] as number;
    this.#draw();
    this.onChoose(this.#chosen);
  }

  #key(event: KeyboardEvent): void {
    const page = Math.floor(this.#scroller.clientHeight / ROW) - 1;
    const steps: Record<string, number> = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page };
    const step = steps[event.key];
    if (step !== undefined && this.#found.length > 0) {
      event.preventDefault();
      const first = this.#first();
      const next = this.#active < 0 ? first : this.#active + step;
      this.#active = Math.min(Math.max(next, 0), this.#found.length - 1);
      if (this.#active < first || this.#active >= first + page) this.#scrollTo(this.#active);
      this.#draw();
    } else if ((event.key === 'Enter' || event.key === ' ') && this.#active >= 0) {
      event.preventDefault();
      this.#choose(this.#active);
    }
  }

  #scrollTo(index: number): void {
    const full = this.#found.length * ROW;
    this.#scroller.scrollTop = index * ROW * Math.min(1, TALLEST / full);
  }
}
