// What part of a trace is looked at: a stretch of time, and of rows. All that draws it is told when it changes.

/** Microseconds and rows that are looked at at least. */
const LEAST_US = 10;
const LEAST_ROWS = 4;

export interface Part {
  readonly from: number;
  readonly to: number;
}

export class View {
  readonly fullTime: Part;
  readonly fullRows: Part;
  time: Part;
  rows: Part;
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

  show(time: Part, rows: Part = this.rows): void {
    this.time = within(time, this.fullTime, LEAST_US);
    this.rows = within(rows, this.fullRows, LEAST_ROWS);
    for (const listener of this.#listeners) listener();
  }

  reset(): void {
    this.show(this.fullTime, this.fullRows);
  }

  /** Shows so many times as much; what lies at `at` (a part of the view, 0 to 1) stays where it is. */
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

function scaled({ from, to }: Part, factor: number, at: number): Part {
  const fixed = from + (to - from) * at;
  return { from: fixed - (fixed - from) * factor, to: fixed + (to - fixed) * factor };
}

function moved({ from, to }: Part, by: number): Part {
  const distance = (to - from) * by;
  return { from: from + distance, to: to + distance };
}

/** The nearest part that lies in the full one. */
function within(part: Part, full: Part, least: number): Part {
  const size = Math.max(part.to - part.from, Math.min(least, full.to - full.from));
  if (!(size < full.to - full.from)) return full;
  const middle = (part.from + part.to) / 2;
  const from = Math.min(Math.max(middle - size / 2, full.from), full.to - size);
  return { from, to: from + size };
}
