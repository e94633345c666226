// The address space over time: a chart whose axes, cursor and selection come from the library, and whose cells are
// painted here, from counts.

import uPlot from 'uplot';
import { cellsOf } from './bins.js';
import { fitted, interaction, leftAxis, PADDING, timeAxis } from './chart-look.js';
import type { Model } from './collect.js';
import { WHATS, What } from './events.js';
import { color, parts } from './theme.js';
import { type AddressLabels, addressTicks } from './ticks.js';
import type { View } from './view.js';

/** Pixels of a cell. */
export const CELL = 3;
const TICK_DISTANCE = 44;
/** The opacity of a cell with one event. */
const FAINTEST = 0.45;

export class HeatMap {
  readonly chart: uPlot;
  /** The sorts of events that are drawn, by `What`. */
  readonly shown: boolean[] = WHATS.map(() => true);
  readonly #model: Model;
  readonly #view: View;
  readonly #canvas = document.createElement('canvas');
  readonly #observer: ResizeObserver;
  /** The highlighted event. */
  #marked: number | undefined;

  constructor(model: Model, view: View, labels: AddressLabels, place: HTMLElement) {
    this.#model = model;
    this.#view = view;
    const { cursor, hooks } = interaction(view, true);
    this.chart = new uPlot(
      {
        width: Math.floor(place.clientWidth),
        height: height(),
        padding: PADDING,
        scales: { x: { time: false }, y: { auto: false, range: () => [view.rows.from, view.rows.to] } },
        axes: [timeAxis(), this.#addressAxis(labels)],
        series: [{}, { paths: () => null, points: { show: false } }],
        legend: { show: false },
        ...(cursor ? { cursor } : {}),
        hooks: { ...hooks, draw: [() => this.#paint()] },
      },
      [
        [0, view.fullTime.to],
        [0, 0],
      ],
      place,
    );
    this.#observer = fitted(this.chart, place, height);
  }

  #addressAxis(labels: AddressLabels): uPlot.Axis {
    const { rows } = this.#model;
    return leftAxis(labels.length, {
      splits: (chart, _axis, from, to) =>
        addressTicks(rows, { from, to }, Math.floor(chart.over.clientHeight / TICK_DISTANCE)),
      values: (_chart, splits) =>
        splits.map((row) => {
          const page = rows.pageAt(row);
          return page === undefined ? '' : labels.label(page);
        }),
    });
  }

  draw(): void {
    const { time, rows } = this.#view;
    this.chart.batch(() => {
      this.chart.setScale('x', { min: time.from, max: time.to });
      this.chart.setScale('y', { min: rows.from, max: rows.to });
      this.chart.redraw(false, true);
    });
  }

  /** Highlights an event. */
  mark(at: number | undefined): void {
    this.#marked = at;
    this.draw();
  }

  close(): void {
    this.#observer.disconnect();
    this.chart.destroy();
  }

  #paint(): void {
    const { ctx, bbox } = this.chart;
    const pixel = bbox.width / Math.max(1, this.chart.over.clientWidth);
    const columns = Math.max(1, Math.round(bbox.width / pixel / CELL));
    const lines = Math.max(1, Math.round(bbox.height / pixel / CELL));
    const counts = cellsOf(this.#model, this.#view, columns, lines, this.shown);
    Object.assign(this.#canvas, { width: columns, height: lines });
    const context = this.#canvas.getContext('2d') as CanvasRenderingContext2D;
    const image = context.createImageData(columns, lines);
    colorCells(image, counts, columns, lines);
    context.putImageData(image, 0, 0);
    ctx.save();
    ctx.imageSmoothingEnabled = false;
    ctx.drawImage(this.#canvas, bbox.left, bbox.top, bbox.width, bbox.height);
    this.#paintBorders(pixel);
    this.#paintMark(pixel);
    ctx.restore();
  }

  /** Draws a band for the untouched memory between two regions. */
  #paintBorders(pixel: number): void {
    const { ctx, bbox } = this.chart;
    const { regions } = this.#model.rows;
    ctx.fillStyle = color('gap');
    for (const [index, { row }] of regions.entries()) {
      const before = regions[index - 1];
      if (!before) continue;
      const [top, bottom] = [row, before.row + before.end - before.first].map((at) =>
        Math.min(Math.max(this.chart.valToPos(at, 'y', true), bbox.top), bbox.top + bbox.height),
      ) as [number, number];
      if (bottom > top) ctx.fillRect(bbox.left, top, bbox.width, Math.max(pixel, bottom - top));
    }
  }

  #paintMark(pixel: number): void {
    const at = this.#marked;
    if (at === undefined) return;
    const { ctx } = this.chart;
    const { events, row } = this.#model;
    const x = this.chart.valToPos(events.time[at] as number, 'x', true);
    const y = this.chart.valToPos((row[at] as number) + 0.5, 'y', true);
    ctx.strokeStyle = color('text');
    ctx.lineWidth = 1.5 * pixel;
    ctx.beginPath();
    ctx.arc(x, y, 8 * pixel, 0, 2 * Math.PI);
    ctx.stroke();
  }
}

function height(): number {
  return Math.round(Math.min(520, Math.max(280, innerHeight * 0.5)));
}

/**
 * Colours the cells. If a cell has several sorts of events, faults hide removals, and removals hide prefetched pages.
 */
function colorCells(image: ImageData, counts: Uint32Array, columns: number, lines: number): void {
  const colors = WHATS.map(parts);
  const sorts = WHATS.length;
  let most = 1;
  for (const count of counts) if (count > most) most = count;
  const scale = (1 - FAINTEST) / Math.log2(most + 1);
  const pixels = image.data;
  for (let line = 0; line < lines; line++) {
    // Low rows are at the bottom.
    let pixel = (lines - 1 - line) * columns * 4;
    for (let column = 0; column < columns; column++, pixel += 4) {
      const cell = (column * lines + line) * sorts;
      const reads = counts[cell + What.read] as number;
      const writes = counts[cell + What.write] as number;
      const removed = counts[cell + What.removed] as number;
      const prefetched = counts[cell + What.prefetched] as number;
      const faults = reads + writes;
      const count = faults + removed + prefetched;
      if (count === 0) continue;
      const sort =
        faults > 0 && faults >= removed
          ? writes >= reads
            ? What.write
            : What.read
          : removed > 0
            ? What.removed
            : What.prefetched;
      const [red, green, blue] = colors[sort] as readonly [number, number, number];
      pixels[pixel] = red;
      pixels[pixel + 1] = green;
      pixels[pixel + 2] = blue;
      pixels[pixel + 3] = 255 * (FAINTEST + scale * Math.log2(count + 1));
    }
  }
}
