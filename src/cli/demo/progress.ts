// Shows how far the demo is, on stderr: a bar where that is a terminal, a line now and then where it is not,
// nothing for --json. Between `watch` and `end` the bar hides the cursor and switches wrapping off; `end` may
// be called at any time, and again.

import { SingleBar } from 'cli-progress';
import { byteSize, columnsOf, counted, grouped, printable } from '../text.js';
import type { Board } from './board.js';
import type { DemoOptions } from './report.js';

export interface Progress {
  begin(options: DemoOptions, fileBytes: number, pages: number): void;
  /** Follows the counts until `end`. */
  watch(board: Board): void;
  end(): void;
  hashing(): void;
}

const BAR_INTERVAL_MS = 100;
const LINE_INTERVAL_MS = 5000;
/** Below this many columns the bar says less beside it. */
const ROOMY_COLUMNS = 76;

export function createProgress(silent: boolean, stream = process.stderr): Progress {
  if (silent) return { begin() {}, watch() {}, end() {}, hashing() {} };
  return stream.isTTY && process.env.TERM !== 'dumb' ? new BarProgress(stream) : new LineProgress(stream);
}

/** A line for each stage, and one every few seconds. */
class LineProgress implements Progress {
  protected readonly stream: NodeJS.WriteStream;
  protected pages = 0;
  #timer: NodeJS.Timeout | undefined;
  #begun = 0;

  constructor(stream: NodeJS.WriteStream) {
    this.stream = stream;
  }

  begin({ file, threads, seed, wait, window }: DemoOptions, fileBytes: number, pages: number): void {
    this.pages = pages;
    this.say(
      `${printable(file)}: ${byteSize(fileBytes)}, ${counted(pages, 'page')}; ${counted(threads, 'thread')} ` +
        `touching, wait ${wait}, window ${window}, seed ${seed}`,
    );
  }

  watch(board: Board): void {
    this.#begun = performance.now();
    this.#timer = setInterval(() => this.tell(board), this.intervalMs);
  }

  end(): void {
    clearInterval(this.#timer);
  }

  hashing(): void {
    this.say('hashing the memory and the file');
  }

  protected readonly intervalMs: number = LINE_INTERVAL_MS;

  protected tell(board: Board): void {
    const { resident } = board;
    const percent = Math.floor((resident / this.pages) * 100);
    this.say(`${percent}%, ${grouped(resident)} pages resident, ${this.rate(board)} faults/s`);
  }

  /** Faults a second so far. */
  protected rate(board: Board): string {
    return grouped(board.faults / Math.max((performance.now() - this.#begun) / 1000, 0.001));
  }

  protected say(line: string): void {
    this.stream.write(`${line}\n`);
  }
}

class BarProgress extends LineProgress {
  protected override readonly intervalMs = BAR_INTERVAL_MS;
  #bar: SingleBar | undefined;
  #board: Board | undefined;

  override watch(board: Board): void {
    super.watch(board);
    const columns = columnsOf(this.stream);
    const roomy = columns >= ROOMY_COLUMNS;
    const long = '{bar} {percentage}%  {value}/{total} pages resident  {rate} faults/s';
    this.#board = board;
    this.#bar = new SingleBar({
      stream: this.stream,
      format: roomy ? long : '{bar} {percentage}% {rate} faults/s',
      barsize: Math.max(5, Math.min(30, columns - (roomy ? 60 : 26))),
      barCompleteChar: '█',
      barIncompleteChar: '░',
      formatValue: (value, _options, kind) => (kind === 'percentage' ? `${value}` : grouped(value)),
      hideCursor: true,
    });
    this.#bar.start(this.pages, 0, { rate: '0' });
  }

  override end(): void {
    super.end();
    if (this.#board) this.tell(this.#board);
    this.#bar?.stop();
    this.#bar = undefined;
  }

  protected override tell(board: Board): void {
    this.#bar?.update(board.resident, { rate: this.rate(board) });
  }
}
