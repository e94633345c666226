// The visible part of a trace: a range of time, and of rows. Every part of the report that draws it is notified of
// changes.

/** The least visible microseconds and rows. */
const LEAST_US = 10;
const LEAST_ROWS = 4;

export interface Interval {
  readonly from: number;
  readonly to: number;
}

export class View {
  readonly fullTime: Interval;
  readonly fullRows: Interval;
  time: Interval;
  rows: Interval;
  readonly #listeners: (() => void)[] = [];

  constructor(duration: number, rows: number) {
    this.fullTime = { from: 0, to: Math.max(duration, LEAST_US) };
    this.fullRows = { from: 0, to: Math.max(rows, LEAST_ROWS) };
    this.time = this.fullTime;
    this.rows = this.fullRows;
  }

  onChange(listener: () => void): void {
    this.#listeners.push(listener);
  }

  get whole(): boolean {
    return this.time === this.fullTime && this.rows === this.fullRows;
  }

  show(time: Interval, rows: Interval = this.rows): void {
    this.time = within(time, this.fullTime, LEAST_US);
    this.rows = within(rows, this.fullRows, LEAST_ROWS);
    for (const listener of this.#listeners) listener();
  }

  reset(): void {
    this.show(this.fullTime, this.fullRows);
  }

  /** Zooms by a factor; the point `at` (a part of the view, 0 to 1) stays in place. */
  zoomTime(factor: number, at = 0.5): void {
    this.show(scaled(this.time, factor, at));
  }

  zoomRows(factor: number, at = 0.5): void {
    this.show(this.time, scaled(this.rows, factor, at));
  }

  /** Moves by parts of the view. */
  pan(time: number, rows: number): void {
    this.show(moved(this.time, time), moved(this.rows, rows));
  }
}

function scaled({ from, to }: Interval, factor: number, at: number): Interval {
  const fixed = from + (to - from) * at;
  return { from: fixed - (fixed - from) * factor, to: fixed + (to - fixed) * factor };
}

function moved({ from, to }: Interval, by: number): Interval {
  const distance = (to - from) * by;
  return { from: from + distance, to: to + distance };
}

/** The interval nearest to `part` that lies in `full`. */
function within(part: Interval, full: Interval, least: number): Interval {
  const size = Math.max(part.to - part.from, Math.min(least, full.to - full.from));
  if (!(size < full.to - full.from)) return full;
  const middle = (part.from + part.to) / 2;
  const from = Math.min(Math.max(middle - size / 2, full.from), full.to - size);
  return { from, to: from + size };
}
