// Shows the progress of the pager's demo on stderr: on a terminal a live line for each phase, elsewhere a plain line now
// and then and at the end of a phase, nothing for --json.

import type { SingleBar } from 'cli-progress';
import type { PagerStats } from '../../pager/index.js';
import { byteSize, columnsOf, grouped } from '../text.js';

const LIVE_MS = 100;
const PLAIN_MS = 5000;
/** Columns of the live line without its bar. */
const LINE_COLUMNS = 92;

/** The counts of a phase so far. */
export interface Sample {
  /** Bytes that the threads have read. */
  readonly read: number;
  readonly ms: number;
  readonly stats: PagerStats;
}

export class PagerProgress {
  readonly #silent: boolean;
  #bar: SingleBar | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(silent: boolean) {
    this.#silent = silent;
  }

  say(line: string): void {
    if (!this.#silent) process.stderr.write(`${line}\n`);
  }

  /** Follows a phase until `end`. */
  async follow(title: string, bytes: number, sample: () => Sample): Promise<void> {
    if (this.#silent) return;
    const stream = process.stderr;
    if (!stream.isTTY || process.env.TERM === 'dumb') {
      this.#timer = setInterval(() => this.say(`${title}: ${described(sample(), bytes)}`), PLAIN_MS);
      return;
    }
    const { default: progress } = await import('cli-progress');
    const bar = new progress.SingleBar({
      stream,
      format: `${title.padEnd(8)} {bar} {text}`,
      barsize: Math.max(5, Math.min(30, columnsOf(stream) - LINE_COLUMNS)),
      barCompleteChar: '█',
      barIncompleteChar: '░',
      hideCursor: false,
      linewrap: true,
    });
    bar.start(bytes, 0, { text: '' });
    this.#bar = bar;
    this.#timer = setInterval(() => this.#draw(sample()), LIVE_MS);
  }

  /** Ends a phase, with its last counts if it was completed. May be called more than once. */
  end(title?: string, bytes = 0, last?: Sample): void {
    clearInterval(this.#timer);
    if (last && this.#bar) this.#draw(last);
    else if (last) this.say(`${title}: ${described(last, bytes)}`);
    this.#bar?.stop();
    this.#bar = undefined;
  }

  #draw(sample: Sample): void {
    this.#bar?.update(sample.read, { text: short(sample) });
  }
}

/** "12 %" */
export function percentage(part: number, whole: number): string {
  return whole === 0 ? '–' : `${Math.round((part / whole) * 100)} %`;
}

/** "345.6 MiB/s" */
export function throughput(bytes: number, ms: number): string {
  return `${((bytes / 2 ** 20 / Math.max(ms, 0.001)) * 1000).toFixed(1)} MiB/s`;
}

function described({ read, ms, stats }: Sample, bytes: number): string {
  const { residentBytes, faults, hits, aheadBytes, aheadUsedBytes } = stats;
  return (
    `${byteSize(read)} of ${byteSize(bytes)}, ${throughput(read, ms)}, ${byteSize(residentBytes)} resident, ` +
    `${grouped(faults)} faults, ${percentage(hits, faults)} hits, ` +
    `${percentage(aheadUsedBytes, aheadBytes)} of the read-ahead used`
  );
}

function short({ read, ms, stats }: Sample): string {
  const { residentBytes, faults, hits, aheadBytes, aheadUsedBytes } = stats;
  return (
    `${throughput(read, ms)}  ${byteSize(residentBytes)} resident  ${grouped(faults)} faults  ` +
    `${percentage(hits, faults)} hits  ${percentage(aheadUsedBytes, aheadBytes)} ahead used`
  );
}
