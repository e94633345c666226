// `npm run bench -- --operator`: the figures that matter to an operator of a handler. It compares `uffd serve` with
// handlers in C and in Rust (bench/peers/) in the same run: the time until the handler is ready, the first page, the
// first guest, memory that is used again after a balloon, several guests at once, processor time, private memory.
//
// Rules:
//  - Two handlers alternate, and every other round has the reverse order. A ratio compares the two handlers of one
//    round. For times and for rates alike, it is the figure of `uffd serve` divided by that of the other handler.
//  - "Fresh": each handler starts a new process for each round. "Warm": its process has served guests before.
//  - The benchmark runs the command as it is published.

import type { ChildProcess } from 'node:child_process';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { HUGE_PAGE, SMALL_PAGE } from './cells.js';
import {
  Guest,
  type GuestOptions,
  keepBusy,
  pagesOf,
  reserveHugePages,
  type Told,
  writeMemory,
} from './guest.js';
import { load, type Native } from './native.js';
import { servers, UFFD, YARDSTICK } from './peers.js';
import { ServedBy } from './served-by.js';
import { type Spread, spread } from './statistics.js';

/**
 * One row of the table: the time or rate of `uffd serve`, that of the other handler, and the value that the aim limits.
 */
export interface OperatorRow {
  /** The row's name. */
  readonly figure: string;
  readonly unit: string;
  readonly ours: Spread;
  readonly theirs: Spread | undefined;
  /** The other handler. */
  readonly to: string;
  /** A ratio, or the value of `uffd serve` alone. */
  readonly value: Spread;
  readonly aim: number;
  readonly atMost: boolean;
}

export interface OperatorResults {
  readonly rows: OperatorRow[];
  /** The setting of transparent huge pages, which is the same for all handlers. */
  readonly transparentHuge: string;
  readonly rounds: number;
  /** Rounds in which the other handler came first. */
  readonly reversed: number;
  readonly leftOut: string[];
}

/** The minimum number of rounds. */
const ROUNDS_LEAST = 9;
/** How many fresh processes are started for the 99th percentile of the time to the first page. */
const FRESH = 200;
/** Milliseconds between "ready" and the hand-off, in which a monitor would load its snapshot. */
const RESTORE_MS = 300;
/** Pages of a guest; touches of a restored guest; pages of a guest with a balloon (200 MiB), of one with 64 MiB. */
const GUEST = 20_000;
const CHECKED = 4000;
const BALLOON = 51_200;
const SMALL_GUEST = 16_384;
const WARM_GUESTS = 6;

interface Handler {
  readonly name: string;
  readonly command: readonly string[];
}

type Measure = (handler: Handler) => Promise<number>;
type Base = Partial<GuestOptions> & { readonly pages: number };

const OURS: Handler = { name: 'uffd serve', command: UFFD };

export class OperatorBench {
  readonly #native: Native;
  readonly #folder = mkdtempSync(join(tmpdir(), 'uffd-operator-'));
  readonly #guest: Guest;
  readonly #rounds: number;
  readonly #fresh: number;
  readonly #memories = new Map<number, string>();
  readonly #rows: OperatorRow[] = [];
  readonly #leftOut: string[];
  readonly #c: Handler;
  readonly #rust: Handler | undefined;
  #sockets = 0;
  #turns = 0;
  #reversed = 0;

  /** `quick`: 3 rounds, to check that every row can be measured. */
  constructor(library: string, rounds: number, quick: boolean, say: (text: string) => void) {
    this.#native = load(library);
    this.#guest = new Guest(this.#folder);
    this.#rounds = quick ? 3 : Math.max(rounds, ROUNDS_LEAST);
    this.#fresh = quick ? 5 : FRESH;
    const { servers: found, leftOut } = servers(['Rust'], say);
    this.#leftOut = leftOut;
    this.#c = { name: YARDSTICK, command: found.find(({ name }) => name === YARDSTICK)?.command ?? [] };
    const rust = found.find(({ name }) => name === 'Rust');
    if (rust) this.#rust = { name: 'Rust', command: [...rust.command, '--policy', 'unregister'] };
    process.once('exit', () => rmSync(this.#folder, { recursive: true, force: true }));
  }

  /** Measures all rows in parts; calls `say` with the rows of each part when the part is done. */
  async run(say: (row: OperatorRow) => void): Promise<OperatorResults> {
    for (const part of [
      () => this.#firstPages(),
      () => this.#ready(),
      () => this.#firstGuests(),
      () => this.#restores(),
      () => this.#balloon(),
      () => this.#hugePages(),
      () => this.#crowds(),
      () => this.#steady(),
      () => this.#memory(),
    ]) {
      const before = this.#rows.length;
      await part();
      for (const row of this.#rows.slice(before)) say(row);
    }
    const transparentHuge = readFileSync('/sys/kernel/mm/transparent_hugepage/enabled', 'utf8').trim();
    return {
      ...{ rows: this.#rows, transparentHuge, leftOut: this.#leftOut },
      ...{ rounds: this.#turns, reversed: this.#reversed },
    };
  }

  // ---- rows ----------------------------------------------------------------------------------------------

  async #firstPages(): Promise<void> {
    const first: Measure = (handler) => this.#freshGuest(handler, { pages: 256, touches: 1 }, 'firstNs');
    const [ours, theirs] = await this.#alternate(this.#c, first, this.#fresh);
    const figure = 'first page after the hand-off, fresh process that is ready';
    for (const [part, aim] of [
      [50, 2],
      [99, 10],
    ] as const) {
      const [our, their] = [ours, theirs].map((all) => atPercent(all, part) / 1e6) as [number, number];
      const value = spread([our]);
      const rest = { unit: 'ms', to: this.#c.name, value, aim, atMost: true };
      this.#rows.push({ figure: `${figure}: p${part}`, ours: value, theirs: spread([their]), ...rest });
    }
    const slowest: Measure = (handler) => this.#freshGuest(handler, { pages: GUEST }, 'maxNs');
    const [worst, worstOfC] = await this.#alternate(this.#c, slowest);
    this.#own('slowest page of a fresh guest of 20,000', 'ms', worst, worstOfC, 1e6, 10);
  }

  async #ready(): Promise<void> {
    const nothing: Handler = { name: '`node -e 0`', command: [process.execPath, '-e', '0'] };
    const start: Measure = async (handler) => {
      const begun = performance.now();
      if (handler === nothing) {
        const [program = '', ...words] = handler.command;
        await once(spawn(program, words, { stdio: 'ignore' }), 'exit');
        return performance.now() - begun;
      }
      const by = await this.#start(handler);
      const ms = performance.now() - begun;
      await by.stop();
      return ms;
    };
    await this.#compare('`uffd serve` ready', 'ms', nothing, start, 1, 2.5, true);
  }

  async #firstGuests(): Promise<void> {
    const rates: [first: number, tenth: number][] = [];
    const first: Measure = async (handler) => {
      const by = await this.#start(handler);
      await sleep(RESTORE_MS);
      const all: number[] = [];
      for (let guest = 0; guest < (handler === OURS ? 10 : 1); guest++) {
        all.push(rate(this.#run(by, { pages: GUEST })));
        await by.settled();
      }
      if (handler === OURS) rates.push([all[0] as number, all[9] as number]);
      await by.stop();
      return all[0] as number;
    };
    const name = "first guest's pages/s";
    await this.#compare(`${name}, to C's first guest`, 'pages/s', this.#c, first, 1, 0.9, false);
    const ours = spread(rates.map(([one]) => one));
    const theirs = spread(rates.map(([, ten]) => ten));
    const value = spread(rates.map(([one, ten]) => one / ten));
    const rest = { unit: 'pages/s', to: 'its tenth guest', aim: 0.9, atMost: false };
    this.#rows.push({ figure: `${name}, to the tenth's`, ours, theirs, value, ...rest });
  }

  /** Random pages of a guest that was just restored, with a fresh handler. */
  async #restores(): Promise<void> {
    const rust = this.#rust;
    if (!rust) return;
    const options: Base = { pages: GUEST, touches: CHECKED };
    const check: Measure = (handler) => this.#freshGuest(handler, options, 'ns');
    const figure = `${CHECKED} random pages, fresh process`;
    await this.#compare(`${figure}, quiet`, 'ms', rust, check, 1e6, 1, true);
    const busy = Array.from({ length: availableParallelism() }, keepBusy);
    try {
      await this.#compare(`${figure}, a busy process on each processor`, 'ms', rust, check, 1e6, 1, true);
    } finally {
      for (const one of busy) one.kill('SIGKILL');
    }
    const trace = join(this.#folder, 'trace');
    const recording = await this.#start(OURS, GUEST, SMALL_PAGE, ['--record', trace]);
    this.#run(recording, options);
    await recording.stop();
    const prefetched: Measure = (handler) => {
      const words = handler === OURS ? ['--prefetch', trace] : [];
      return this.#freshGuest(handler, options, 'ns', words);
    };
    await this.#compare(`${figure}, with prefetch`, 'ms', rust, prefetched, 1e6, 0.25, true);
  }

  async #balloon(): Promise<void> {
    if (!this.#rust) return;
    const figure = '200 MiB used again after a balloon gave them back';
    await this.#warm(figure, 'ms', this.#rust, { pages: BALLOON, reuse: true }, 'reuseNs', 1);
  }

  async #hugePages(): Promise<void> {
    if (!this.#rust) return;
    const pages = pagesOf(GUEST, HUGE_PAGE);
    const reason = reserveHugePages(pages);
    if (reason !== undefined) {
      this.#leftOut.push(`pages of 2 MiB: ${reason}`);
      return;
    }
    const figure = `pages of 2 MiB, a whole guest of ${pages}`;
    await this.#warm(
      figure,
      'ms',
      this.#rust,
      { pages, pageSize: HUGE_PAGE, order: 'ascending' },
      'ns',
      1.05,
    );
  }

  /** Several guests at once: one process of `uffd serve` serves all of them, C takes one process for each. */
  async #crowds(): Promise<void> {
    for (const guests of [4, 16]) {
      const by = new Map<Handler, ServedBy[]>();
      for (const [handler, processes] of [
        [OURS, 1],
        [this.#c, guests],
      ] as const) {
        const all: ServedBy[] = [];
        while (all.length < processes) all.push(await this.#start(handler));
        by.set(handler, all);
      }
      const together: Measure = async (handler) => {
        const all = by.get(handler) as ServedBy[];
        const begun = performance.now();
        const running = Array.from({ length: guests }, (_, guest) =>
          this.#guest.runBeside(
            (all[guest % all.length] as ServedBy).socket,
            this.#options({ pages: GUEST }),
          ),
        );
        await Promise.all(running);
        const ms = performance.now() - begun;
        for (const one of all) await one.settled();
        return ms;
      };
      for (const handler of by.keys()) await together(handler);
      await this.#compare(
        `${guests} guests at once, until the last is done`,
        ...(['ms', this.#c, together, 1, 1, true] as const),
      );
      for (const one of [...by.values()].flat()) await one.stop();
    }
  }

  /** Warm handlers: rates, and processor time. */
  async #steady(): Promise<void> {
    for (const [threads, aim] of [
      [1, 2.5],
      [8, 1],
      [64, 1.1],
    ] as const) {
      await this.#rates(`${threads} ${threads === 1 ? 'thread' : 'threads'}, warm`, threads, aim);
    }
    const busy: ChildProcess = keepBusy();
    try {
      await this.#rates('one thread, a busy neighbour, warm', 1, 1);
    } finally {
      busy.kill('SIGKILL');
    }
  }

  async #rates(where: string, threads: number, aim: number): Promise<void> {
    const [ours, theirs] = await this.#warmPair(this.#c);
    const cpu = new Map<Handler, number[]>([OURS, this.#c].map((handler) => [handler, []]));
    const measure: Measure = async (handler) => {
      const by = handler === OURS ? ours : theirs;
      const before = by.cpuNs();
      const told = this.#run(by, { pages: GUEST, threads });
      cpu.get(handler)?.push((by.cpuNs() - before) / 1000 / told.pages);
      await by.settled();
      return rate(told);
    };
    await this.#compare(`pages/s, ${where}`, 'pages/s', this.#c, measure, 1, aim, false);
    const [our = [], their = []] = [...cpu.values()];
    this.#ratio(`processor time a fault, ${where}`, 'µs', this.#c, our, their, 1, 1.2, true);
    await ours.stop();
    await theirs.stop();
  }

  /** Private memory of the server alone, and how much each further guest adds. */
  async #memory(): Promise<void> {
    const alone: number[] = [];
    const further: number[] = [];
    const guests = 8;
    for (let round = 0; round < 3; round++) {
      const by = await this.#start(OURS, SMALL_GUEST);
      await sleep(RESTORE_MS);
      alone.push(by.anonymousMiB());
      const options = this.#options({ pages: SMALL_GUEST, holdMs: 1500 });
      const holding: Promise<unknown>[] = [];
      const sizes: number[] = [];
      for (const count of [1, guests]) {
        while (holding.length < count) holding.push(this.#guest.runBeside(by.socket, options));
        await sleep(1000);
        sizes.push(by.anonymousMiB());
      }
      await Promise.all(holding);
      further.push(((sizes[1] as number) - (sizes[0] as number)) / (guests - 1));
      await by.stop();
    }
    this.#own('private memory (RssAnon), server alone', 'MiB', alone, undefined, 1, 70);
    this.#own('private memory, each further guest of 64 MiB', 'MiB', further, undefined, 1, 8);
  }

  // ---- how rows are measured -----------------------------------------------------------------------------

  /** Measures `uffd serve` and another handler in turn. */
  async #alternate(
    other: Handler,
    measure: Measure,
    rounds = this.#rounds,
  ): Promise<[ours: number[], theirs: number[]]> {
    const ours: number[] = [];
    const theirs: number[] = [];
    for (let round = 0; round < rounds; round++) {
      const reverse = round % 2 === 1;
      for (const handler of reverse ? [other, OURS] : [OURS, other]) {
        (handler === OURS ? ours : theirs).push(await measure(handler));
      }
      this.#turns++;
      if (reverse) this.#reversed++;
    }
    return [ours, theirs];
  }

  async #compare(
    figure: string,
    unit: string,
    other: Handler,
    measure: Measure,
    scale: number,
    aim: number,
    atMost: boolean,
  ): Promise<void> {
    const [ours, theirs] = await this.#alternate(other, measure);
    this.#ratio(figure, unit, other, ours, theirs, scale, aim, atMost);
  }

  #ratio(
    figure: string,
    unit: string,
    other: Handler,
    ours: number[],
    theirs: number[],
    scale: number,
    aim: number,
    atMost: boolean,
  ): void {
    const scaled = (all: number[]): Spread => spread(all.map((one) => one / scale));
    const value = spread(ours.map((our, round) => our / (theirs[round] as number)));
    this.#rows.push({
      ...{ figure, unit, ours: scaled(ours), theirs: scaled(theirs), to: other.name, value, aim, atMost },
    });
  }

  /** Adds a row whose aim is for the value of `uffd serve` itself, not for a ratio. */
  #own(
    figure: string,
    unit: string,
    ours: number[],
    theirs: number[] | undefined,
    scale: number,
    aim: number,
  ): void {
    const scaled = (all: number[]): Spread => spread(all.map((one) => one / scale));
    const value = scaled(ours);
    const rest = { to: theirs ? this.#c.name : '', aim, atMost: true };
    this.#rows.push({ figure, unit, ours: value, theirs: theirs && scaled(theirs), value, ...rest });
  }

  /** Compares one time of a guest between two warm handlers. */
  async #warm(
    figure: string,
    unit: string,
    other: Handler,
    options: Base,
    what: keyof Told,
    aim: number,
  ): Promise<void> {
    const [ours, theirs] = await this.#warmPair(other, options);
    const measure: Measure = async (handler) => {
      const by = handler === OURS ? ours : theirs;
      const told = this.#run(by, options);
      await by.settled();
      return told[what];
    };
    await this.#compare(figure, unit, other, measure, 1e6, aim, true);
    await ours.stop();
    await theirs.stop();
  }

  async #warmPair(other: Handler, options: Base = { pages: GUEST }): Promise<[ServedBy, ServedBy]> {
    const started: ServedBy[] = [];
    for (const handler of [OURS, other]) {
      const by = await this.#start(handler, options.pages, options.pageSize);
      for (let guest = 0; guest < WARM_GUESTS; guest++) {
        this.#run(by, options);
        await by.settled();
      }
      started.push(by);
    }
    return started as [ServedBy, ServedBy];
  }

  /** Serves a guest with a fresh process; returns one figure that the guest reports. */
  async #freshGuest(
    handler: Handler,
    options: Base,
    what: keyof Told,
    words: readonly string[] = [],
  ): Promise<number> {
    const by = await this.#start(handler, options.pages, options.pageSize, words);
    try {
      // For the time of its first page, the guest starts as soon as the handler is ready.
      if (what !== 'firstNs') await sleep(RESTORE_MS);
      return this.#run(by, options)[what];
    } finally {
      await by.stop();
    }
  }

  #start(
    { command }: Handler,
    pages = GUEST,
    pageSize = SMALL_PAGE,
    words: readonly string[] = [],
  ): Promise<ServedBy> {
    const socket = join(this.#folder, `socket-${++this.#sockets}`);
    return ServedBy.start(this.#native, command, -1, socket, [
      '--memory',
      this.#memoryOf(pages * pageSize),
      ...words,
    ]);
  }

  #run({ socket }: ServedBy, options: Base): Told {
    return this.#guest.run(socket, this.#options(options));
  }

  #options(options: Base): GuestOptions {
    return { threads: 1, order: 'random', pageSize: SMALL_PAGE, balloon: false, cpu: -1, ...options };
  }

  #memoryOf(bytes: number): string {
    const known = this.#memories.get(bytes);
    if (known !== undefined) return known;
    const file = join(this.#folder, `memory-${bytes}`);
    writeMemory(file, bytes);
    this.#memories.set(bytes, file);
    return file;
  }
}

function rate({ pages, ns }: Told): number {
  return (pages / ns) * 1e9;
}

function atPercent(values: readonly number[], percent: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.max(Math.ceil((sorted.length * percent) / 100) - 1, 0)] ?? Number.NaN;
}
