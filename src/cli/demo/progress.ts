// Shows the progress of the demo on stderr: on a terminal the live line of `uffd serve`, elsewhere a line now and
// then, nothing for --json.

import type { Server } from '../../serve/index.js';
import { type Display, loadLiveDisplay } from '../serve/display.js';
import { byteSize, counted, grouped, printable } from '../text.js';
import type { DemoOptions } from './report.js';

const INTERVAL_MS = 5000;

export class DemoProgress {
  readonly #silent: boolean;
  #display: Display | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(silent: boolean) {
    this.#silent = silent;
  }

  begin({ file, threads, seed, wait, window }: DemoOptions, fileBytes: number): void {
    this.#say(
      `${printable(file)}: ${byteSize(fileBytes)}; ${counted(threads, 'thread')} touching, wait ${wait}, ` +
        `window ${window}, seed ${seed}`,
    );
  }

  /** Follows the server until `end`. */
  async follow(server: Server, title: string): Promise<void> {
    if (this.#silent) return;
    this.#say(`${title}:`);
    this.#display = (await loadLiveDisplay())?.(server);
    if (this.#display) return;
    server.on('begun', ({ peer }) => this.#say(`the guest, process ${peer.pid}, has handed its memory over`));
    this.watch(() => {
      const sessions = [...server.sessions];
      return {
        faults: sessions.reduce((sum, { tally }) => sum + tally.get('faults'), 0),
        resident: sessions.reduce((sum, { resident }) => sum + resident, 0),
      };
    });
  }

  /**
   * Follows a run without a server: `counts` returns how many bytes are installed, and how many faults were answered.
   */
  watch(counts: () => { faults: number; resident: number }): void {
    if (this.#silent) return;
    let before = counts().faults;
    this.#timer = setInterval(() => {
      const { faults, resident } = counts();
      this.#say(
        `${byteSize(resident)} resident, ${grouped(((faults - before) * 1000) / INTERVAL_MS)} faults/s`,
      );
      before = faults;
    }, INTERVAL_MS);
  }

  /** May be called at any time, and more than once. */
  end(): void {
    clearInterval(this.#timer);
    this.#display?.end();
  }

  #say(line: string): void {
    if (!this.#silent) process.stderr.write(`${line}\n`);
  }
}
