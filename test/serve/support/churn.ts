// Guests that churn (test/guest/churn.c) under `uffd serve`, which is a process of its own. They combine touches,
// removals, mappings that are split and joined, prefetched pages and windows, or use huge pages from a pool that runs
// dry and refills.
//
// Invariants: no page is wrong, every thread of a guest finishes, the server has as many descriptors as before the
// first guest, and its own memory stops growing.

import { strict as assert } from 'node:assert';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { commandLine, inDirectory } from '../../cli/support/command.js';
import { freePort } from '../../support/free-port.js';
import { withHugePages } from '../../support/huge-pages.js';
import { compileProgram, needKernel } from '../../support/real-kernel.js';
import { ask, memoryOf } from './hostile-clients.js';
import { Running, writeMemory } from './serve-process.js';
import { descriptors } from './server.js';

const PAGES = 4096;
/** Limits for calls that never end; they do not measure speed. */
const GUEST_S = 3600;
const ANSWER_MS = 60_000;
const LOOK_MS = 250;
/** Of 1000 rounds of a guest's thread, this many split or join its mappings. */
const SPLITS = 20;

const HUGE = 2 ** 21;
const HUGE_PAGES = 32;
const POOL = '/proc/sys/vm/nr_hugepages';
const POOL_CHANGES_MS = 1000;

/** A sample of the server. */
export interface Churned {
  /** Faults that the server has answered. */
  readonly faults: number;
  /** Bytes of the server's own memory. */
  readonly memory: number;
}

export interface ChurnOptions {
  /** Guests are started until the server has answered this many faults. */
  readonly faults: number;
  /** Rounds of each thread of a guest. */
  readonly rounds: number;
  readonly seed: number;
  /** More options of `uffd serve`. */
  readonly options?: readonly string[];
  readonly onProgress?: (churned: Churned) => void;
}

/** Runs two guests at a time, pair after pair. Returns all samples, in order. */
export async function churn({
  faults,
  rounds,
  seed,
  options = [],
  onProgress,
}: ChurnOptions): Promise<Churned[]> {
  needKernel();
  const program = compileProgram('guest/churn.c');
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
        onProgress?.(churned);
        return churned;
      };
      for (let pair = 0; (seen.at(-1)?.faults ?? 0) < faults; pair++) {
        const words = [program, '-t', '2', '-n', `${rounds}`, '-x', `${SPLITS}`, '-l', `${GUEST_S}`];
        const guests = [0, 1].map((index) => [...words, '-s', `${seed + 2 * pair + index}`, socket, memory]);
        await watched(Promise.all(guests.map(ended)), look);
        // The next pair starts only after the server has noticed the end of this one.
        while ((await metric(port, 'uffd_guests')) > 0) await sleep(LOOK_MS);
        await look();
        before ??= descriptors(server.pid);
        await asBefore(server.pid, before);
      }
    });
  });
  return seen;
}

/** Waits until a process has at most `before` descriptors. Each request for metrics opens a connection for a while. */
async function asBefore(pid: number, before: number): Promise<void> {
  const end = performance.now() + ANSWER_MS;
  for (let now = descriptors(pid); now > before; now = descriptors(pid)) {
    assert.ok(performance.now() < end, `${now} descriptors, ${before} before`);
    await sleep(LOOK_MS);
  }
}

/** Runs one guest while its pool of huge pages is emptied and refilled repeatedly. Returns the answered faults. */
export async function churnInDryPool(
  rounds: number,
  seed: number,
  onProgress?: (churned: Churned) => void,
): Promise<number> {
  needKernel();
  const program = compileProgram('guest/churn.c');
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
            onProgress?.({ faults, memory: memoryOf(server.pid) });
          });
          // The guest may have ended before the first look.
          faults = await metric(port, ANSWERED);
        });
      } finally {
        pool.refill();
      }
    });
  });
  return faults;
}

/**
 * The pages that a test has added to the pool of huge pages: removed and added again by turns. If memory is short, the
 * kernel adds only some: the others are added at the next turn.
 */
class Pool {
  /** How many are removed now. */
  #missing = 0;
  readonly #timer = setInterval(() => this.#change(), POOL_CHANGES_MS);
  readonly #atExit = (): void => this.refill();

  constructor() {
    process.prependOnceListener('exit', this.#atExit);
  }

  /** Adds the pages again if they are missing, and stops the changes. */
  refill(): void {
    clearInterval(this.#timer);
    process.off('exit', this.#atExit);
    if (this.#missing > 0) this.#change();
  }

  #change(): void {
    const before = this.#size();
    writeFileSync(POOL, `${this.#missing > 0 ? before + this.#missing : Math.max(before - HUGE_PAGES, 0)}`);
    this.#missing += before - this.#size();
  }

  #size(): number {
    return Number(readFileSync(POOL, 'utf8'));
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

/** Runs a guest to its end; it must succeed. */
async function ended(words: readonly string[]): Promise<void> {
  const guest = new Running(words);
  try {
    const { code, stdout, stderr } = await guest.ended;
    assert.equal(code, 0, `a guest: ${code} ${stdout}${stderr}`);
  } finally {
    guest.kill();
  }
}

/** Takes samples at intervals until the guests have ended. */
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
