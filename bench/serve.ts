// Measures served guests. `uffd serve`, and handlers in other languages with the same policy, serve them in turn. In
// each cell, every handler has several rounds.
//
// Rules:
//  - In a turn, each handler serves one round. A ratio compares a handler's round with that of the handler in C in the
//    same turn. Each turn begins with a different handler, so that no handler always follows the same other handler.
//  - Memory is warm, and one round of each handler does not count.

import { mkdtempSync, rmSync } from 'node:fs';
import { freemem, tmpdir } from 'node:os';
import { join } from 'node:path';
import { BASE, type Cell, groupOf, HUGE_PAGE, SMALL_PAGE } from './cells.js';
import { type Placement, placements } from './faults.js';
import { Guest, type GuestOptions, keepBusy, pagesOf, reserveHugePages, writeMemory } from './guest.js';
import { checked, load, type Native } from './native.js';
import { type Server, type ServerName, servers, YARDSTICK } from './peers.js';
import { ServedBy } from './served-by.js';
import { type Spread, spread } from './statistics.js';

/**
 * How much a handler serves before it is measured, because V8 compiles code as it runs: faults, guests, touches of a
 * guest.
 */
const WARM_FAULTS = 16_384;
const WARM_ROUNDS = { least: 6, most: 64 };
const WARM_TOUCHES = 4096;
/** The part of the memory that a guest needs after its restore. */
const WORKING_SET = 1 / 4;

export interface ServedRound {
  /** Distinct pages that were touched, per second. */
  perSecond: number;
  /** Percentiles of the time of a touch. */
  p50Us: number;
  p99Us: number;
  p999Us: number;
  /** Processor time of the handler, for each touched page. */
  cpuUs: number;
}

export interface Entrant {
  name: ServerName;
  rounds: ServedRound[];
  peakMiB: number;
}

/** One cell, and the results of each handler, C first. */
export interface ServeCell extends Cell {
  entrants: Entrant[];
}

export interface ServeResults {
  pages: number;
  cells: ServeCell[];
  /** Milliseconds until a guest has touched its working set, without and with prefetch, and their ratio. */
  workingSet?: WorkingSet;
}

export interface WorkingSet {
  pages: number;
  without: Spread;
  with: Spread;
  ratio: Spread;
}

interface Running {
  readonly name: ServerName;
  readonly by: ServedBy;
}

export class ServeBench {
  readonly #folder = mkdtempSync(join(tmpdir(), 'uffd-bench-serve-'));
  readonly #pages: number;
  readonly #native: Native;
  readonly #placements: Placement[];
  readonly #guest = new Guest(this.#folder);
  readonly #memories = new Map<number, string>();
  #sockets = 0;
  readonly leftOut: string[] = [];

  constructor(library: string, pages: number) {
    process.once('exit', () => rmSync(this.#folder, { recursive: true, force: true }));
    this.#pages = pages;
    this.#native = load(library);
    const { possible, leftOut } = placements(this.#native);
    this.#placements = possible;
    this.leftOut.push(...leftOut.map((what) => `of guests, ${what}`));
    const bytes = Math.min(pages * SMALL_PAGE * 4, Math.floor(freemem() / 2 / SMALL_PAGE) * SMALL_PAGE);
    checked('mmap', this.#native.warm(bytes));
  }

  /** Measures every handler in every cell. */
  async *run(
    cells: readonly Cell[],
    wanted: readonly string[],
    rounds: number,
    say: (text: string) => void,
  ): AsyncGenerator<ServeCell> {
    const { servers: contestants, leftOut } = servers(wanted, say);
    this.leftOut.push(...leftOut);
    let group: { key: string; running: Running[] } = { key: '', running: [] };
    for (const cell of this.#possible(cells)) {
      if (group.key !== groupOf(cell)) {
        await stop(group.running);
        group = { key: groupOf(cell), running: await this.#begin(contestants, cell) };
      }
      yield await this.#contest(group.running, cell, rounds);
    }
    await stop(group.running);
  }

  #possible(cells: readonly Cell[]): Cell[] {
    const placed = cells.filter(({ placement }) => this.#placements.some(({ name }) => name === placement));
    if (placed.every(({ pageSize }) => pageSize !== HUGE_PAGE)) return placed;
    const reason = reserveHugePages(pagesOf(this.#pages, HUGE_PAGE));
    if (reason === undefined) return placed;
    this.leftOut.push(`guests with pages of 2 MiB: ${reason}`);
    return placed.filter(({ pageSize }) => pageSize !== HUGE_PAGE);
  }

  async #begin(contestants: readonly Server[], cell: Cell): Promise<Running[]> {
    const running: Running[] = [];
    for (const { name, command } of contestants) {
      const adaptive = name === 'uffd serve, adaptive window';
      // The adaptive window replaces the cell's window, so this handler is measured only in cells with a window of 1.
      if (adaptive && cell.window !== 1) continue;
      const options = adaptive ? ['--window', 'adaptive'] : [];
      running.push({ name, by: await this.#start(command, cell, options) });
    }
    return running;
  }

  /** Starts a handler, and lets it serve some guests. */
  async #start(command: readonly string[], cell: Cell, options: readonly string[] = []): Promise<ServedBy> {
    const { pageSize, window } = cell;
    const memory = this.#memory(pageSize);
    const words = ['--memory', memory, '--window', `${window}`, ...options];
    const by = await ServedBy.start(this.#native, command, this.#placed(cell).handler, this.#socket(), words);
    const { pages, ...first } = this.#options(cell);
    const touches = Math.min(pages, WARM_TOUCHES);
    const enough = Math.ceil((WARM_FAULTS * window) / touches);
    const rounds = Math.min(Math.max(enough, WARM_ROUNDS.least), WARM_ROUNDS.most);
    for (let round = 0; round < rounds; round++) {
      this.#guest.run(by.socket, { ...first, pages, touches });
      await by.settled();
    }
    return by;
  }

  async #contest(running: readonly Running[], cell: Cell, rounds: number): Promise<ServeCell> {
    const options = this.#options(cell);
    const busy = cell.busy ? keepBusy() : undefined;
    const entrants: Entrant[] = running.map(({ name, by }) => {
      by.resetPeak();
      return { name, rounds: [], peakMiB: 0 };
    });
    try {
      for (const { by } of running) await this.#round(by, options);
      for (let round = 0; round < rounds; round++) {
        for (let turn = 0; turn < running.length; turn++) {
          const index = (turn + round) % running.length;
          const { by } = running[index] as Running;
          entrants[index]?.rounds.push(await this.#round(by, options));
        }
      }
    } finally {
      busy?.kill('SIGKILL');
    }
    for (const [index, { by }] of running.entries()) (entrants[index] as Entrant).peakMiB = by.peakMiB();
    return { ...cell, entrants };
  }

  async #round(by: ServedBy, options: GuestOptions): Promise<ServedRound> {
    const before = by.cpuNs();
    const { pages, ns, p50Ns, p99Ns, p999Ns } = this.#guest.run(by.socket, options);
    const cpuNs = by.cpuNs() - before;
    await by.settled();
    return {
      perSecond: (pages / ns) * 1e9,
      p50Us: p50Ns / 1000,
      p99Us: p99Ns / 1000,
      p999Us: p999Ns / 1000,
      cpuUs: cpuNs / 1000 / pages,
    };
  }

  /** Measures the effect of a recorded working set. */
  async workingSet(rounds: number): Promise<WorkingSet> {
    const command = servers(['uffd serve']).servers.find(({ name }) => name === 'uffd serve')?.command ?? [];
    const touches = Math.round(this.#pages * WORKING_SET);
    const options = { ...this.#options(BASE), touches };
    const trace = join(this.#folder, 'trace');
    const memory = ['--memory', this.#memory(SMALL_PAGE)];
    const recording = await ServedBy.start(this.#native, command, -1, this.#socket(), [
      ...memory,
      '--record',
      trace,
    ]);
    this.#guest.run(recording.socket, options);
    await recording.stop();
    const plain = await this.#start(command, BASE);
    const prefetching = await this.#start(command, BASE, ['--prefetch', trace]);
    try {
      const ms = ({ socket }: ServedBy): number => this.#guest.run(socket, options).ns / 1e6;
      const pairs = Array.from({ length: rounds }, () => [ms(plain), ms(prefetching)] as const);
      return {
        pages: touches,
        without: spread(pairs.map(([without]) => without)),
        with: spread(pairs.map(([, prefetched]) => prefetched)),
        ratio: spread(pairs.map(([without, prefetched]) => prefetched / without)),
      };
    } finally {
      await plain.stop();
      await prefetching.stop();
    }
  }

  /**
   * Serves several guests at once, with a userfaultfd each, by one handler process for all or by one for each. Returns
   * the pages per second of all guests together, and the processor time of the handlers for each page, in microseconds.
   */
  async together(
    command: readonly string[],
    guests: number,
    inOne: boolean,
    rounds: number,
  ): Promise<{ perSecond: Spread; cpuUs: Spread }> {
    const by: ServedBy[] = [];
    while (by.length < (inOne ? 1 : guests)) by.push(await this.#start(command, BASE));
    const options = this.#options(BASE);
    const cpuNs = (): number => by.reduce((sum, one) => sum + one.cpuNs(), 0);
    const round = async (touches: number): Promise<{ perSecond: number; cpuUs: number }> => {
      const before = cpuNs();
      const begin = performance.now();
      const all = Array.from({ length: guests }, (_, i) =>
        this.#guest.runBeside((by[i % by.length] as ServedBy).socket, { ...options, touches }),
      );
      await Promise.all(all);
      const seconds = (performance.now() - begin) / 1000;
      const pages = guests * touches;
      return { perSecond: pages / seconds, cpuUs: (cpuNs() - before) / 1000 / pages };
    };
    try {
      // `uffd serve` has a thread for each guest, and each thread must be warm.
      for (let warm = 0; warm < WARM_ROUNDS.least; warm++) await round(Math.min(options.pages, WARM_TOUCHES));
      const all: { perSecond: number; cpuUs: number }[] = [];
      while (all.length < rounds) all.push(await round(options.pages));
      return {
        perSecond: spread(all.map(({ perSecond }) => perSecond)),
        cpuUs: spread(all.map(({ cpuUs }) => cpuUs)),
      };
    } finally {
      for (const one of by) await one.stop();
    }
  }

  #options({ pageSize, threads, order, balloon, ...cell }: Cell): GuestOptions {
    const cpu = this.#placed({ pageSize, threads, order, balloon, ...cell }).toucher;
    return { pages: pagesOf(this.#pages, pageSize), pageSize, threads, order, balloon, cpu };
  }

  #placed({ placement }: Cell): Placement {
    const found = this.#placements.find(({ name }) => name === placement);
    if (!found) throw new Error(`this machine has no placement '${placement}'`);
    return found;
  }

  #memory(pageSize: number): string {
    const known = this.#memories.get(pageSize);
    if (known !== undefined) return known;
    const file = join(this.#folder, `memory-${pageSize}`);
    writeMemory(file, pagesOf(this.#pages, pageSize) * pageSize);
    this.#memories.set(pageSize, file);
    return file;
  }

  #socket(): string {
    return join(this.#folder, `socket-${++this.#sockets}`);
  }
}

async function stop(running: readonly Running[]): Promise<void> {
  for (const { by } of running) await by.stop();
}

/** A figure of one handler divided by that of another (default: C) in the same turn. */
export function ratio(
  { entrants }: ServeCell,
  entrant: Entrant,
  figure: keyof ServedRound,
  to: string = YARDSTICK,
): Spread {
  const other = entrants.find(({ name }) => name === to);
  return spread(
    entrant.rounds.map((round, turn) => round[figure] / (other?.rounds[turn]?.[figure] ?? Number.NaN)),
  );
}

/** A figure of all rounds. */
export function figure({ rounds }: Entrant, of: keyof ServedRound): Spread {
  return spread(rounds.map((round) => round[of]));
}
