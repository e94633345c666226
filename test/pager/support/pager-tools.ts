// Shared by the tests of the pager on the real kernel: threads that touch its memory, programs that may die of it, and
// what the kernel says about its memory.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { Pager, type PagerMemory, type PagerOptions } from '../../../src/pager/index.js';
import { until, waitsInKernel } from '../../support/real-kernel.js';
import { callsOf } from '../../support/worker-calls.js';
import { fillBytes } from './pager-source.js';
import type { PagerActions } from './pager-thread.js';

export const KIB = 1024;
export const MIB = 2 ** 20;

/** The data that all tests read. */
export function dataOf(size: number): Uint8Array {
  return fillBytes(new Uint8Array(size), 0);
}

// ---- threads -----------------------------------------------------------------------------------------------

type Promised<T> = {
  [K in keyof T]: T[K] extends (...args: infer A) => infer R ? (...args: A) => Promise<R> : never;
};

export type PagerUser = Promised<PagerActions> & {
  /** Resolves when the thread sleeps in a fault. */
  asleep(): Promise<void>;
  /** Does not keep the process alive any more. */
  unref(): void;
  end(): Promise<void>;
};

const living = new Set<Worker>();

/** A thread that touches a pager's memory. */
export async function userOf(memory: PagerMemory): Promise<PagerUser> {
  const worker = new Worker(new URL('./pager-thread.js', import.meta.url), { workerData: memory.share() });
  living.add(worker);
  const call = callsOf(worker);
  const tid = (await call('tid', [])) as number;
  const own = {
    asleep: () => until(() => waitsInKernel(tid), `thread ${tid} to sleep in a fault`),
    unref: () => worker.unref(),
    async end() {
      living.delete(worker);
      await worker.terminate();
    },
  };
  return new Proxy(own, {
    get: (target, name: string) =>
      name === 'then' ? undefined : ((target as never)[name] ?? ((...args: unknown[]) => call(name, args))),
  }) as unknown as PagerUser;
}

/** Opens a pager and threads for a body, and ends all of them. */
export async function withPager(
  options: PagerOptions | Promise<Pager>,
  threads: number,
  body: (pager: Pager, ...users: PagerUser[]) => Promise<void>,
): Promise<void> {
  const pager = await (options instanceof Promise ? options : Pager.open(options));
  try {
    const users = await Promise.all(Array.from({ length: threads }, () => userOf(pager)));
    await body(pager, ...users);
    await Promise.all(users.map((user) => user.end()));
  } catch (error) {
    // Printed here, because ending the test may take the process with it.
    console.error(error);
    throw error;
  } finally {
    const ended = Promise.all([...living].map((worker) => worker.terminate()));
    if (!(await Promise.race([ended.then(() => true), sleep(3000).then(() => false)]))) exitAsleep();
    living.clear();
    await pager.close({ discard: true });
  }
}

/** A failed test has left a thread asleep in a fault, which would never end: the process ends instead. */
function exitAsleep(): never {
  console.error('a thread sleeps in a fault');
  process.exit(1);
}

// ---- the kernel's view -------------------------------------------------------------------------------------

/** The numbers of the memfds of this process's pagers. */
export function memfds(): number[] {
  return readdirSync('/proc/self/fd')
    .map(Number)
    .filter((fd) => linkOf(fd).startsWith('/memfd:userfaultfd-pager'));
}

function linkOf(fd: number): string {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    return '';
  }
}

/** Bytes of memory that the memfds of this process's pagers have. */
export function memfdBytes(): number {
  return memfds().reduce((sum, fd) => sum + statSync(`/proc/self/fd/${fd}`).blocks * 512, 0);
}

/** Calls `body`, and measures the memory of all memfds there are, all the time. Returns the most that it has seen. */
export async function mostBytes(body: () => Promise<unknown>): Promise<number> {
  const paths = memfds().map((fd) => `/proc/self/fd/${fd}`);
  let most = 0;
  const look = (): void => {
    most = Math.max(
      most,
      paths.reduce((sum, path) => sum + statSync(path).blocks * 512, 0),
    );
  };
  const timer = setInterval(look, 1);
  try {
    await body();
    look();
  } finally {
    clearInterval(timer);
  }
  return most;
}

/** Bytes of memory that only this process has. */
export function privateBytes(): number {
  const rollup = readFileSync('/proc/self/smaps_rollup', 'latin1');
  return Number(/^Private_Dirty:\s*(\d+) kB$/m.exec(rollup)?.[1]) * KIB;
}

/**
 * How many mappings of one of these sizes, in bytes, cannot be read: those of closed pagers. (Threads that have ended
 * leave mappings of their own, which the C library keeps.)
 */
export function closedMappings(...sizes: number[]): number {
  const lines = readFileSync('/proc/self/maps', 'latin1').matchAll(/^([0-9a-f]+)-([0-9a-f]+) ---p/gm);
  return [...lines].filter(([, start, end]) =>
    sizes.includes(Number(BigInt(`0x${end}`) - BigInt(`0x${start}`))),
  ).length;
}

// ---- programs ----------------------------------------------------------------------------------------------

const PROGRAM = fileURLToPath(new URL('./pager-program.js', import.meta.url));

export interface Ran {
  /** Exit code, or the signal that has ended it. */
  readonly code: number | string;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  under?: readonly string[];
  /** Called when the program runs. */
  started?: (child: ChildProcess, saw: (what: RegExp) => Promise<void>) => Promise<void>;
}

/** Runs a case of pager-program.ts to its end. */
export async function program(
  what: string,
  args: readonly unknown[] = [],
  { under = [], started }: RunOptions = {},
): Promise<Ran> {
  const conditions = process.execArgv.filter((argument) => argument.startsWith('--'));
  const line = [...under, process.execPath, ...conditions, PROGRAM, what, ...args.map(String)];
  const child = spawn(line[0] as string, line.slice(1), { stdio: ['ignore', 'pipe', 'pipe'] });
  const out = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].setEncoding('utf8').on('data', (text: string) => {
      out[name] += text;
    });
  }
  const closed = once(child, 'close') as Promise<[number | null, string | null]>;
  const saw = async (text: RegExp): Promise<void> => {
    while (!text.test(out.stdout)) {
      const over = await Promise.race([
        once(child.stdout, 'data').then(() => false),
        closed.then(() => true),
      ]);
      if (over && !text.test(out.stdout))
        throw new Error(`it has not said ${text}: ${out.stdout}${out.stderr}`);
    }
  };
  const kill = (): void => void child.kill('SIGKILL');
  process.once('exit', kill);
  try {
    await started?.(child, saw);
  } catch (error) {
    kill();
    throw error;
  }
  const [code, signal] = await closed;
  process.off('exit', kill);
  return { code: code ?? signal ?? '', ...out };
}
