// The charts below the heat map: the rate of faults, their latency, and how the working set grows.

import uPlot from 'uplot';
import { type ChartSteps, PERCENTILES, stepsOf } from './bins.js';
import { fitted, interaction, leftAxis, PADDING, timeAxis } from './chart-look.js';
import type { Model } from './collect.js';
import { element, panel } from './dom.js';
import { brief, byteSize, duration } from './numbers.js';
import { color } from './theme.js';
import type { AddressLabels } from './ticks.js';
import type { View } from './view.js';

/** Pixels of a step. */
const STEP = 4;
/** If fewer events are visible, steps are wider. */
const EVENTS_A_STEP = 4;
const STEPS_LEAST = 20;
const HEIGHT = 150;
const POWERS_OF_TWO = Array.from({ length: 52 }, (_, power) => 2 ** power);

interface Kind {
  readonly id: string;
  readonly title: string;
  readonly series: readonly { readonly label: string; readonly color: string; readonly filled?: boolean }[];
  /** The format of values. */
  readonly tell: (value: number) => string;
  readonly logarithmic?: boolean;
  /** Distances that the axis may have between two values. */
  readonly steps?: number[];
  readonly values: (steps: ChartSteps) => (number | null)[][];
}

const CHARTS: readonly Kind[] = [
  {
    id: 'rate',
    title: 'Faults a second',
    series: [
      { label: 'faults', color: 'read', filled: true },
      { label: 'writes', color: 'write', filled: true },
    ],
    tell: brief,
    values: ({ faults, writes }) => [faults, writes],
  },
  {
    id: 'latency',
    title: 'Latency',
    series: PERCENTILES.map((percent) => ({ label: `p${percent}`, color: `p${percent}` })),
    tell: duration,
    logarithmic: true,
    values: ({ percentiles }) => percentiles.map((row) => row.map((us) => us && Math.max(us, 1))),
  },
  {
    id: 'growth',
    title: 'Working set',
    series: [
      { label: 'present', color: 'prefetched', filled: true },
      { label: 'faulted on', color: 'read', filled: true },
    ],
    tell: byteSize,
    steps: POWERS_OF_TWO,
    values: ({ present, faulted }) => [present, faulted],
  },
];

/** A trace without writes has no line for them. */
function withoutWrites(kind: Kind): Kind {
  if (kind.id !== 'rate') return kind;
  return { ...kind, series: kind.series.slice(0, 1), values: ({ faults }) => [faults] };
}

export class Charts {
  readonly panels: HTMLElement[] = [];
  readonly charts: uPlot[] = [];
  readonly #model: Model;
  readonly #view: View;
  readonly #observers: ResizeObserver[] = [];
  readonly #kinds: readonly Kind[];

  constructor(model: Model, view: View) {
    this.#model = model;
    this.#view = view;
    const writes = Object.values(model.summary.faultsByKind).some(({ write }) => write > 0);
    this.#kinds = writes ? CHARTS : CHARTS.map(withoutWrites);
    for (const kind of this.#kinds) this.panels.push(panel(kind.id, kind.title));
  }

  /** Makes the charts, once their panels are in the page. */
  begin(labels: AddressLabels): void {
    for (const [index, kind] of this.#kinds.entries()) {
      const place = element('div', { class: 'chart' });
      const [head] = (this.panels[index] as HTMLElement).children;
      head?.after(place);
      const options = optionsOf(kind, this.#view, labels, place.clientWidth, head as HTMLElement);
      const chart = new uPlot(options, [[], ...kind.series.map(() => [])], place);
      this.charts.push(chart);
      this.#observers.push(fitted(chart, place, () => HEIGHT));
    }
  }

  draw(): void {
    const { time } = this.#view;
    const width = Math.max(1, this.charts[0]?.over.clientWidth ?? 0);
    const { events } = this.#model;
    const few = Math.max(
      STEPS_LEAST,
      (events.firstAfter(time.to) - events.firstAt(time.from)) / EVENTS_A_STEP,
    );
    const steps = stepsOf(this.#model, time, Math.ceil(Math.min(width / STEP, few)));
    for (const [index, chart] of this.charts.entries()) {
      const values = (this.#kinds[index] as Kind).values(steps);
      chart.batch(() => {
        // The last step lasts to the end.
        chart.setData(
          [
            [...steps.time, time.to],
            ...values.map((row) => [...row, row.at(-1) ?? null]),
          ] as uPlot.AlignedData,
          false,
        );
        chart.setScale('x', { min: time.from, max: time.to });
      });
    }
  }

  /** The colours have changed. */
  recolor(): void {
    for (const chart of this.charts) chart.redraw(false, true);
  }

  close(): void {
    for (const observer of this.#observers) observer.disconnect();
    for (const chart of this.charts) chart.destroy();
  }
}

function optionsOf(
  kind: Kind,
  view: View,
  labels: AddressLabels,
  width: number,
  head: HTMLElement,
): uPlot.Options {
  return {
    width,
    height: HEIGHT,
    padding: PADDING,
    scales: {
      x: { time: false },
      y: kind.logarithmic ? { distr: 3, range: decades } : { range: fromZero },
    },
    axes: [
      timeAxis(),
      leftAxis(labels.length, {
        ...(kind.steps ? { incrs: kind.steps } : {}),
        ...(kind.logarithmic ? { space: 18 } : {}),
        values: (_chart, splits) => splits.map((value) => (value === null ? '' : kind.tell(value))),
      }),
    ],
    series: [
      { label: 'time', value: (_chart, us) => (us === null ? '–' : duration(us)) },
      ...kind.series.map(({ label, color: name, filled = false }) => ({
        label,
        stroke: () => color(name),
        width: 1.5,
        ...(filled ? { fill: () => `${color(name)}33` } : {}),
        paths: (uPlot.paths.stepped as uPlot.Series.SteppedPathBuilderFactory)({ align: 1 }),
        points: { show: false },
        value: (_chart: uPlot, value: number | null) => (value === null ? '–' : kind.tell(value)),
      })),
    ],
    legend: { mount: (_chart, legend) => head.append(legend) },
    ...interaction(view, false),
  };
}

function fromZero(_chart: uPlot, _least: number | null, most: number | null): uPlot.Range.MinMax {
  return [0, (most || 1) * 1.08];
}

/** Whole powers of ten around the values. */
function decades(_chart: uPlot, least: number | null, most: number | null): uPlot.Range.MinMax {
  const [low, high] = [Math.floor(Math.log10(least || 1)), Math.ceil(Math.log10((most || 10) * 1.01))];
  return [10 ** low, 10 ** Math.max(high, low + 1)];
}
