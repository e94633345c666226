// Shows how far the demo is, on stderr: the live line of `uffd serve` where that is a terminal, a line now and then
// where it is not, nothing for --json.

import type { Server } from '../../serve/index.js';
import { type Display, liveDisplay } from '../serve/display.js';
import { byteSize, counted, grouped, printable } from '../text.js';
import type { DemoOptions } from './report.js';

export interface Progress {
  begin(options: DemoOptions, fileBytes: number): void;
  /** Follows what is served until `end`. */
  follow(server: Server, title: string): void;
  /** The same, where no server serves it: how many bytes are there, and how many faults were answered. */
  watch(counts: () => Counts): void;
  /** May be called at any time, and again. */
  end(): void;
}

export interface Counts {
  faults: number;
  resident: number;
}

const INTERVAL_MS = 5000;

export function createProgress(silent: boolean, stream = process.stderr): Progress {
  if (silent) return { begin() {}, follow() {}, watch() {}, end() {} };
  return new LineProgress(stream);
}

class LineProgress implements Progress {
  readonly #stream: NodeJS.WriteStream;
  #display: Display | undefined;
  #timer: NodeJS.Timeout | undefined;

  constructor(stream: NodeJS.WriteStream) {
    this.#stream = stream;
  }

  begin({ file, threads, seed, wait, window }: DemoOptions, fileBytes: number): void {
    this.#say(
      `${printable(file)}: ${byteSize(fileBytes)}; ${counted(threads, 'thread')} touching, wait ${wait}, ` +
        `window ${window}, seed ${seed}`,
    );
  }

  follow(server: Server, title: string): void {
    this.#say(`${title}:`);
    this.#display = liveDisplay(server, this.#stream);
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

  watch(counts: () => Counts): void {
    let before = counts().faults;
    this.#timer = setInterval(() => {
      const { faults, resident } = counts();
      this.#say(
        `${byteSize(resident)} resident, ${grouped(((faults - before) * 1000) / INTERVAL_MS)} faults/s`,
      );
      before = faults;
    }, INTERVAL_MS);
  }

  end(): void {
    clearInterval(this.#timer);
    this.#display?.end();
  }

  #say(line: string): void {
    this.#stream.write(`${line}\n`);
  }
}
