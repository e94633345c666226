// A trace on the page: figures, heat map, charts, ranges and list, which all follow one view.

import { inView, PERCENTILES } from './bins.js';
import { Charts } from './charts.js';
import type { Model } from './collect.js';
import { button, eachFrame, element, panel, whenQuiet } from './dom.js';
import { WHATS } from './events.js';
import { details, figures } from './figures.js';
import { onGestures } from './gestures.js';
import { HeatMap } from './heat-map.js';
import { Hottest } from './hottest.js';
import { hoverBox } from './hover.js';
import { onKeys } from './keys.js';
import { List } from './list.js';
import { counted, duration } from './numbers.js';
import { AddressLabels } from './ticks.js';
import { View } from './view.js';

const ZOOM = 0.5;
const QUIET_MS = 150;
/** The context shown around a chosen event, as a part of the whole trace. */
const AROUND = 0.02;

const KEYS = 'Drag to zoom, Shift-drag to pan, Ctrl-wheel or pinch to zoom; keys: ← → + − [ ] 0';

export class TraceView {
  readonly #model: Model;
  readonly #view: View;
  readonly #map: HeatMap;
  readonly #charts: Charts;
  readonly #list: List;
  readonly #hottest: Hottest;
  readonly #inView = element('p', { class: 'told', role: 'status', id: 'in-view' });
  readonly #ended = new AbortController();

  constructor(model: Model, place: HTMLElement) {
    this.#model = model;
    const view = new View(model.duration, model.rows.count);
    this.#view = view;
    this.#charts = new Charts(model, view);
    this.#list = new List(model, view);
    this.#hottest = new Hottest(model, view);
    const canvas = element('div', {
      class: 'map',
      tabindex: '0',
      role: 'application',
      'aria-roledescription': 'heat map',
      'aria-label': `Pages over time, ${counted(model.events.length, 'event')}. ${KEYS}`,
    });
    const map = panel('map', 'Address space', this.#inView, canvas, element('p', { class: 'hint' }, KEYS));
    const lower = element('div', { class: 'lower' }, this.#hottest.panel, this.#list.panel);
    place.replaceChildren(
      ...this.#damage(),
      figures(model.summary),
      map,
      ...this.#charts.panels,
      lower,
      details(model.summary),
    );
    const labels = new AddressLabels(model.rows, model.summary.pageSize);
    this.#map = new HeatMap(model, view, labels, canvas);
    this.#charts.begin(labels);
    map.firstElementChild?.append(this.#legend(), this.#buttons());
    this.#listen(canvas);
    view.reset();
  }

  /** The colours have changed. */
  recolor(): void {
    this.#map.draw();
    this.#charts.recolor();
  }

  close(): void {
    this.#ended.abort();
    this.#map.close();
    this.#charts.close();
  }

  #listen(canvas: HTMLElement): void {
    const view = this.#view;
    const draw = eachFrame(() => {
      this.#map.draw();
      this.#charts.draw();
    });
    const settle = whenQuiet(() => {
      this.#tellView();
      this.#list.find();
      this.#hottest.find();
    }, QUIET_MS);
    view.onChange(() => {
      draw();
      settle();
    });
    hoverBox(this.#map.chart, this.#model, this.#map.shown);
    onGestures(this.#map.chart, view, true);
    for (const chart of this.#charts.charts) onGestures(chart, view, false);
    onKeys(view, canvas, this.#list.search, this.#ended.signal);
    addEventListener('resize', draw, { signal: this.#ended.signal });
    this.#list.onChoose = (at) => this.#reveal(at);
  }

  /** Shows where an event lies. */
  #reveal(at: number): void {
    const { events, row, height } = this.#model;
    const { time, rows, fullTime, fullRows } = this.#view;
    const when = events.time[at] as number;
    const middle = (row[at] as number) + (height[at] as number) / 2;
    const width = Math.min(time.to - time.from, fullTime.to * AROUND);
    const tall = Math.min(rows.to - rows.from, Math.max(fullRows.to * AROUND, (height[at] as number) * 2));
    this.#view.show(
      { from: when - width / 2, to: when + width / 2 },
      { from: middle - tall / 2, to: middle + tall / 2 },
    );
    this.#map.mark(at);
    this.#map.chart.root.scrollIntoView({ block: 'nearest' });
  }

  #tellView(): void {
    const { time, whole } = this.#view;
    const { faults, percentiles } = inView(this.#model, time);
    const latencies = percentiles.flatMap((us, index) =>
      us === null ? [] : [`p${PERCENTILES[index]} ${duration(us)}`],
    );
    const span = whole ? 'All' : `${duration(time.from)} – ${duration(time.to)}`;
    this.#inView.textContent = [`${span}: ${counted(faults, 'fault')}`, ...latencies].join(', ');
  }

  #damage(): HTMLElement[] {
    const { damage } = this.#model.summary;
    if (damage === undefined) return [];
    return [element('p', { class: 'damage', role: 'alert' }, `This trace is not whole: ${damage}.`)];
  }

  /**
   * The sorts of events with their colours, which can be switched off and on. Sorts that do not occur in the trace are
   * left out.
   */
  #legend(): HTMLElement {
    const legend = element('div', { class: 'legend', role: 'group', 'aria-label': 'What is drawn' });
    const { shown } = this.#map;
    const { what, length } = this.#model.events;
    const there = WHATS.map((_, sort) => what.subarray(0, length).includes(sort));
    for (const [sort, name] of WHATS.entries()) {
      if (!there[sort]) continue;
      const toggle = element('button', { type: 'button', 'aria-pressed': 'true', class: name }, name);
      toggle.addEventListener('click', () => {
        shown[sort] = !shown[sort];
        toggle.setAttribute('aria-pressed', `${shown[sort]}`);
        this.#map.draw();
      });
      legend.append(toggle);
    }
    return legend;
  }

  #buttons(): HTMLElement {
    const view = this.#view;
    const group = element('div', { class: 'buttons', role: 'group', 'aria-label': 'View' });
    group.append(
      button('+', 'Zoom in', () => view.zoomTime(ZOOM)),
      button('−', 'Zoom out', () => view.zoomTime(1 / ZOOM)),
      button('Reset', 'Show all', () => view.reset()),
    );
    return group;
  }
}
