// A guest that is served: by `uffd serve`, and by a handler in C with the same policy. The guest is a process of its own
// (bench/serve/guest.c) that knows nothing of who serves it; each of its rounds is a hand-off and every page touched.
//
// Rule: a round in which the guest found a wrong page does not count, it throws.

import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { WrongAnswer } from './faults.js';
import { compileC } from './native.js';
import { type Spread, spread } from './statistics.js';

const PAGE = 4096;
/** Pages that another thread of the guest gives back at once, where there is a balloon. */
const BALLOON = 16;
/** Threads; each with pages in ascending order, and at random. */
const THREADS = [1, 8] as const;
const WINDOWS = [1, 16] as const;
/** Guests that a handler serves before it is measured: it is compiled as it runs. */
const WARM_ROUNDS = 6;
/** A part of the memory: what a guest needs after it was restored. */
const WORKING_SET = 1 / 4;
const SEED = 7;

const UFFD = fileURLToPath(new URL('../src/cli/main.js', import.meta.url));
const SOURCES = fileURLToPath(new URL('../../bench/serve/', import.meta.url));

export interface ServeCell {
  placement: 'left to the scheduler' | 'on the guest’s processor';
  threads: number;
  order: 'ascending' | 'random';
  window: number;
  balloon: boolean;
  /** Pages a second, and microseconds of a touch. */
  ours: { perSecond: Spread; p50Us: Spread; p99Us: Spread };
  c: { perSecond: Spread; p50Us: Spread; p99Us: Spread };
  /** Ours by that of the C round before it. */
  speed: Spread;
  p99: Spread;
}

export interface ServeResults {
  pages: number;
  cells: ServeCell[];
  /** Milliseconds until a guest has touched its working set, without and with prefetch, and their ratio. */
  workingSet: { pages: number; without: Spread; with: Spread; ratio: Spread };
}

/** What a guest tells of a round. */
interface Told {
  pages: number;
  wrong: number;
  ns: number;
  p50Ns: number;
  p99Ns: number;
}

interface Round {
  perSecond: number;
  p50Us: number;
  p99Us: number;
}

/** Who serves, and where. */
interface Handler {
  readonly child: ChildProcess;
  readonly socket: string;
}

export class ServeBench {
  readonly #directory = mkdtempSync(join(tmpdir(), 'uffd-bench-serve-'));
  readonly #memory = join(this.#directory, 'memory');
  readonly #pages: number;
  readonly #children: ChildProcess[] = [];
  #handlers = 0;

  constructor(pages: number) {
    this.#pages = pages;
    process.once('exit', () => {
      for (const child of this.#children) child.kill('SIGKILL');
      rmSync(this.#directory, { recursive: true, force: true });
    });
    writeFileSync(this.#memory, memoryOf(pages));
    for (const name of ['guest', 'handler']) this.#compile(name);
  }

  async run(rounds: number, say: (text: string) => void): Promise<ServeResults> {
    const cells: ServeCell[] = [];
    for (const cpu of [-1, 0]) {
      for (const window of WINDOWS) {
        const ours = await this.#ours(cpu, ['--window', `${window}`]);
        const c = await this.#start([join(this.#directory, 'handler')], (socket) => [
          socket,
          this.#memory,
          `${window}`,
          `${cpu}`,
        ]);
        try {
          const first = { cpu, threads: 1, order: 'random', balloon: false };
          for (let round = 0; round < WARM_ROUNDS; round++) this.#guest(ours, first);
          for (const threads of THREADS) {
            for (const [order, balloon] of [
              ['ascending', false],
              ['random', false],
              ['random', true],
            ] as const) {
              const cell = this.#contest(ours, c, rounds, { cpu, threads, order, window, balloon });
              cells.push(cell);
              say(told(cell));
            }
          }
        } finally {
          await stop(ours);
          await stop(c);
        }
      }
    }
    return { pages: this.#pages, cells, workingSet: await this.#workingSet(rounds) };
  }

  #contest(
    ours: Handler,
    c: Handler,
    rounds: number,
    how: { cpu: number; threads: number; order: ServeCell['order']; window: number; balloon: boolean },
  ): ServeCell {
    const guest = (handler: Handler): Round => roundOf(this.#guest(handler, how));
    // What is slow at first does not count.
    guest(ours);
    guest(c);
    const pairs = Array.from({ length: rounds }, () => ({ c: guest(c), ours: guest(ours) }));
    const figures = (who: 'c' | 'ours') => ({
      perSecond: spread(pairs.map((pair) => pair[who].perSecond)),
      p50Us: spread(pairs.map((pair) => pair[who].p50Us)),
      p99Us: spread(pairs.map((pair) => pair[who].p99Us)),
    });
    const { cpu, ...rest } = how;
    return {
      ...rest,
      placement: cpu < 0 ? 'left to the scheduler' : 'on the guest’s processor',
      ours: figures('ours'),
      c: figures('c'),
      speed: spread(pairs.map((pair) => pair.ours.perSecond / pair.c.perSecond)),
      p99: spread(pairs.map((pair) => pair.ours.p99Us / pair.c.p99Us)),
    };
  }

  async #workingSet(rounds: number): Promise<ServeResults['workingSet']> {
    const pages = Math.round(this.#pages * WORKING_SET);
    const how = { cpu: -1, threads: 1, order: 'random', balloon: false, touched: pages } as const;
    const trace = join(this.#directory, 'trace');
    const recording = await this.#ours(-1, ['--record', trace]);
    this.#guest(recording, how);
    await stop(recording);
    const [plain, prefetching] = [await this.#ours(-1, []), await this.#ours(-1, ['--prefetch', trace])];
    try {
      const ms = (handler: Handler): number => this.#guest(handler, how).ns / 1e6;
      for (let round = 0; round < WARM_ROUNDS; round++) {
        ms(plain);
        ms(prefetching);
      }
      const pairs = Array.from({ length: rounds }, () => [ms(plain), ms(prefetching)] as const);
      return {
        pages,
        without: spread(pairs.map(([without]) => without)),
        with: spread(pairs.map(([, prefetched]) => prefetched)),
        ratio: spread(pairs.map(([without, prefetched]) => prefetched / without)),
      };
    } finally {
      await stop(plain);
      await stop(prefetching);
    }
  }

  #ours(cpu: number, options: readonly string[]): Promise<Handler> {
    const pinned = cpu < 0 ? [] : ['taskset', '-c', `${cpu}`];
    return this.#start([...pinned, process.execPath, UFFD, 'serve'], (socket) => [
      ...['--socket', socket, '--memory', this.#memory],
      ...options,
    ]);
  }

  async #start(
    [program, ...first]: readonly string[],
    args: (socket: string) => readonly string[],
  ): Promise<Handler> {
    const socket = join(this.#directory, `socket-${++this.#handlers}`);
    const child = spawn(program as string, [...first, ...args(socket)], {
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    this.#children.push(child);
    await Promise.race([once(child.stdout as NodeJS.ReadableStream, 'data'), failure(child)]);
    return { child, socket };
  }

  #guest(
    { socket }: Handler,
    how: { cpu: number; threads: number; order: string; balloon: boolean; touched?: number },
  ): Told {
    const { cpu, threads, order, balloon, touched = this.#pages } = how;
    const numbers = [
      this.#pages,
      threads,
      order === 'random' ? 1 : 0,
      SEED,
      cpu,
      balloon ? BALLOON : 0,
      touched,
    ];
    const { stdout, stderr, status } = spawnSync(
      join(this.#directory, 'guest'),
      [socket, ...numbers.map(String)],
      { encoding: 'utf8' },
    );
    if (status !== 0)
      throw new WrongAnswer(`a guest that was served ended with ${status}: ${stderr}${stdout}`);
    return JSON.parse(stdout);
  }

  #compile(name: string): void {
    const source = join(SOURCES, `${name}.c`);
    const reason = compileC(source, join(this.#directory, name), ['-O2', '-pthread']);
    if (reason !== undefined) throw new Error(reason);
  }
}

/** Every page ends with its number, as guest.c expects it. */
function memoryOf(pages: number): Buffer {
  const bytes = Buffer.alloc(pages * PAGE);
  for (let page = 0; page < pages; page++) {
    bytes.fill(page % 251, page * PAGE, (page + 1) * PAGE);
    bytes.writeUInt32LE(page + 1, (page + 1) * PAGE - 4);
  }
  return bytes;
}

function roundOf({ pages, ns, p50Ns, p99Ns }: Told): Round {
  return { perSecond: (pages / ns) * 1e9, p50Us: p50Ns / 1000, p99Us: p99Ns / 1000 };
}

async function failure(child: ChildProcess): Promise<never> {
  const [code] = await once(child, 'exit');
  throw new Error(`a handler ended with ${code} before it was ready`);
}

async function stop({ child }: Handler): Promise<void> {
  const ended = once(child, 'exit');
  child.kill('SIGTERM');
  await ended;
}

function told({ placement, threads, order, window, balloon, ours, c, speed }: ServeCell): string {
  const where = `${placement}, ${threads} threads, ${order}, window ${window}${balloon ? ', balloon' : ''}`;
  const [mine, its] = [ours, c].map(({ perSecond }) => Math.round(perSecond.median).toLocaleString('en'));
  return `${where}: ${mine} pages/s, C ${its}: ${speed.median.toFixed(2)}`;
}
