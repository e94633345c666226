// Guests that churn (test/guest/churn.c) under `uffd serve`, a process of its own: touches, removals, mappings that are
// split and joined, prefetched pages and windows at once; or huge pages from a pool that runs dry and refills.
//
// Invariants: no page is wrong, every thread of a guest comes to its end, descriptors are as before the first guest; and
// the server's own memory stops growing.

import { strict as assert } from 'node:assert';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { commandLine, inDirectory } from '../cli/command.js';
import { withHugePages } from '../kernel/huge-pages.js';
import { compileProgram, needKernel } from '../kernel/support.js';
import { ask, freePort, memoryOf } from './hostile.js';
import { Running, writeMemory } from './process.js';
import { descriptors } from './support.js';

const PAGES = 4096;
/** For what never ends; none says how fast anything is. */
const GUEST_S = 3600;
const ANSWER_MS = 60_000;
const LOOK_MS = 250;
/** Of a thousand rounds of a guest's thread, those that split or join its mappings. */
const SPLITS = 20;

const HUGE = 2 ** 21;
const HUGE_PAGES = 32;
const POOL = '/proc/sys/vm/nr_hugepages';
const POOL_CHANGES_MS = 1000;

/** What is seen of the server at a time. */
export interface Churned {
  /** Faults that it has answered. */
  readonly faults: number;
  /** Bytes of its own memory. */
  readonly memory: number;
}

export interface ChurnOptions {
  /** Until the server has answered so many. */
  readonly faults: number;
  /** Rounds of each thread of a guest. */
  readonly rounds: number;
  readonly seed: number;
  /** Of `uffd serve`. */
  readonly options?: readonly string[];
  readonly tell?: (churned: Churned) => void;
}

/** Two guests at a time, pair after pair. All that was seen, in order. */
export async function churn({ faults, rounds, seed, options = [], tell }: ChurnOptions): Promise<Churned[]> {
  needKernel();
  const program = compileProgram('../guest/churn.c');
  const seen: Churned[] = [];
  await inDirectory(async (directory) => {
    const memory = join(directory, 'memory');
    writeMemory(memory, PAGES, seed, (page) => page % 7 === 3 || page % 101 > 90);
    const trace = join(directory, 'trace');
    await serving(directory, memory, ['--once', '--record', trace], async ({ server, socket }) => {
      await ended([program, '-n', '300', '-s', `${seed}`, socket, memory]);
      assert.equal((await server.ended).code, 0);
    });
    await serving(directory, memory, ['--prefetch', trace, ...options], async ({ server, socket, port }) => {
      let before: number | undefined;
      const look = async (): Promise<Churned> => {
        const churned = { faults: await metric(port, ANSWERED), memory: memoryOf(server.pid) };
        seen.push(churned);
        tell?.(churned);
        return churned;
      };
      for (let pair = 0; (seen.at(-1)?.faults ?? 0) < faults; pair++) {
        const words = [program, '-t', '2', '-n', `${rounds}`, '-x', `${SPLITS}`, '-l', `${GUEST_S}`];
        const guests = [0, 1].map((index) => [...words, '-s', `${seed + 2 * pair + index}`, socket, memory]);
        await watched(Promise.all(guests.map(ended)), look);
        // Not before the server has seen that they are gone.
        while ((await metric(port, 'uffd_guests')) > 0) await sleep(LOOK_MS);
        await look();
        before ??= descriptors(server.pid);
        await asBefore(server.pid, before);
      }
    });
  });
  return seen;
}

/** Waits until a process has no more descriptors than it had: what asks for metrics is a connection, too. */
async function asBefore(pid: number, before: number): Promise<void> {
  const end = performance.now() + ANSWER_MS;
  for (let now = descriptors(pid); now > before; now = descriptors(pid)) {
    assert.ok(performance.now() < end, `${now} descriptors, ${before} before`);
    await sleep(LOOK_MS);
  }
}

/** One guest on huge pages, whose pool is emptied and filled again and again. Faults that were answered. */
export async function churnInDryPool(
  rounds: number,
  seed: number,
  tell?: (churned: Churned) => void,
): Promise<number> {
  needKernel();
  const program = compileProgram('../guest/churn.c');
  let faults = 0;
  await withHugePages(HUGE_PAGES, async () => {
    await inDirectory(async (directory) => {
      const memory = join(directory, 'memory');
      writeMemory(memory, (HUGE_PAGES * HUGE) / 4096, seed);
      const pool = new Pool();
      try {
        await serving(directory, memory, [], async ({ server, socket, port }) => {
          const words = ['-t', '4', '-n', `${rounds}`, '-p', `${HUGE}`, '-s', `${seed}`, '-l', `${GUEST_S}`];
          await watched(ended([program, ...words, socket, memory]), async () => {
            faults = await metric(port, ANSWERED);
            tell?.({ faults, memory: memoryOf(server.pid) });
          });
        });
      } finally {
        pool.refill();
      }
    });
  });
  return faults;
}

/** The pages that a test has added to the pool: taken from it, and given back, by turns. */
class Pool {
  #dry = false;
  readonly #timer = setInterval(() => this.#change(), POOL_CHANGES_MS);
  readonly #atExit = (): void => this.refill();

  constructor() {
    process.prependOnceListener('exit', this.#atExit);
  }

  /** All are in it again, and stay. */
  refill(): void {
    clearInterval(this.#timer);
    process.off('exit', this.#atExit);
    if (this.#dry) this.#change();
  }

  #change(): void {
    const now = Number(readFileSync(POOL, 'utf8'));
    writeFileSync(POOL, `${now + (this.#dry ? HUGE_PAGES : -HUGE_PAGES)}`);
    this.#dry = !this.#dry;
  }
}

const ANSWERED = 'uffd_faults_total{result="answered"}';

async function metric(port: number, name: string): Promise<number> {
  const text = await ask(port, '/metrics', ANSWER_MS);
  const line = text.split('\n').find((one) => one.startsWith(`${name} `));
  return Number(line?.slice(name.length) ?? Number.NaN);
}

interface Scene {
  readonly server: Running;
  readonly socket: string;
  readonly port: number;
}

async function serving(
  directory: string,
  memory: string,
  options: readonly string[],
  body: (scene: Scene) => Promise<void>,
): Promise<void> {
  const socket = join(directory, 'socket');
  const port = await freePort();
  const places = ['--socket', socket, '--memory', memory, '--metrics', `${port}`];
  const server = new Running(commandLine(['serve', ...places, ...options]));
  try {
    await server.says(`ready: ${socket}\n`);
    await body({ server, socket, port });
  } catch (error) {
    throw new Error(`${(error as Error).message}\n${server.output.stderr.slice(-2000)}`, { cause: error });
  } finally {
    server.kill();
    await server.ended;
  }
}

/** Runs a guest to its end, which must be a good one. */
async function ended(words: readonly string[]): Promise<void> {
  const guest = new Running(words);
  try {
    const { code, stdout, stderr } = await guest.ended;
    assert.equal(code, 0, `a guest: ${code} ${stdout}${stderr}`);
  } finally {
    guest.kill();
  }
}

/** Looks now and then until the guests have ended. */
async function watched(guests: Promise<unknown>, look: () => Promise<unknown>): Promise<void> {
  let over = false;
  const end = guests.finally(() => {
    over = true;
  });
  const looks = (async () => {
    while (!over) {
      await look();
      await Promise.race([sleep(LOOK_MS), end]);
    }
  })();
  await Promise.all([end, looks]);
}
