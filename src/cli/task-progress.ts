// The progress of a command that does one task after the other: on a terminal a live line on stderr, elsewhere nothing.

import type { SingleBar } from 'cli-progress';
import { columnsOf } from './text.js';

const LIVE_MS = 100;
/** Columns of the line without its bar. */
const LINE_COLUMNS = 48;

export class TaskProgress {
  readonly #bar: SingleBar;
  #lastMs = 0;
  #total = 0;

  static async begin(title: string, silent: boolean): Promise<TaskProgress | undefined> {
    const stream = process.stderr;
    if (silent || !stream.isTTY || process.env.TERM === 'dumb') return undefined;
    const { default: progress } = await import('cli-progress');
    const bar = new progress.SingleBar({
      stream,
      format: `${title} {bar} {percentage}% {text}`,
      barsize: Math.max(5, Math.min(30, columnsOf(stream) - LINE_COLUMNS)),
      barCompleteChar: '█',
      barIncompleteChar: '░',
      // If the command is interrupted, the cursor and other settings of the terminal could not be restored.
      hideCursor: false,
      linewrap: true,
      // Drawn when something is done: the loop may be busy with hashing.
      synchronousUpdate: true,
    });
    return new TaskProgress(bar);
  }

  private constructor(bar: SingleBar) {
    this.#bar = bar;
  }

  show(done: number, total: number, text: string): void {
    if (this.#total === 0) this.#bar.start(total, 0, { text: '' });
    this.#total = total;
    const now = performance.now();
    if (now - this.#lastMs < LIVE_MS && done < total) return;
    this.#lastMs = now;
    this.#bar.update(done, { text });
  }

  end(): void {
    if (this.#total > 0) this.#bar.stop();
  }
}
