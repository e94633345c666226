// Shared by the tests on the real kernel: checks for the kernel, threads that touch memory, mappings, and a handler
// that records every call, so that a call too many fails a test as surely as a call too few.

import { spawnSync } from 'node:child_process';
import { EventEmitter } from 'node:events';
import { closeSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { linuxKernel } from '../../shim/linux.js';
import * as memory from '../../shim/memory.js';
import {
  type FaultHandler,
  type Feature,
  type Kernel,
  type KernelPort,
  type LinearMemory,
  type OpenOptions,
  type UffdError,
  Userfaultfd,
} from '../../src/index.js';
import { skip } from './harness.js';
import type { LooperMessage, LooperOptions } from './looper.js';
import type { Actions } from './toucher.js';
import { callsOf } from './worker-calls.js';

let probed: string | undefined;

/** Skips the test, with the reason, if userfaultfd cannot be used here. */
export function needKernel(): void {
  probed ??= probe();
  if (probed) skip(probed);
}

function probe(): string {
  if (!Userfaultfd.isSupported()) return 'this system has no userfaultfd';
  try {
    Userfaultfd.open().close();
    return '';
  } catch (error) {
    return (error as Error).message;
  }
}

/** Skips the test, in which the kernel touches memory, if only faults of user mode are served here. */
export function needKernelFaults(): void {
  needKernel();
  const uffd = Userfaultfd.open();
  const { userModeOnly } = uffd;
  uffd.close();
  if (userModeOnly) skip('only faults of user mode are served here');
}

/** Opens a userfaultfd; skips the test if the kernel lacks a feature. */
export function openWith(features: OpenOptions['features'] = []): Userfaultfd {
  needKernel();
  try {
    return Userfaultfd.open({ features });
  } catch (error) {
    if ((error as { code?: string }).code === 'ERR_UFFD_UNSUPPORTED') skip((error as Error).message);
    throw error;
  }
}

/** Skips the test if this kernel or this user cannot open a userfaultfd with the feature. */
export function skipWithout(feature: Feature): void {
  needKernel();
  try {
    Userfaultfd.open({ features: [feature] }).close();
  } catch (error) {
    skip((error as Error).message);
  }
}

/** Compiles a C file below test/ to a library and returns its path. Skips the test if there is no compiler. */
export function compileLibrary(name: string): string {
  return compile(name, 'so', '-shared', '-fPIC');
}

/** Compiles a C file below test/ to a program and returns its path. Skips the test if there is no compiler. */
export function compileProgram(name: string, ...flags: string[]): string {
  return compile(name, 'out', ...flags);
}

/** Folders of compiled files, which are removed when the process ends. */
const folders: string[] = [];

function newFolder(): string {
  if (folders.length === 0)
    process.on('exit', () => {
      for (const folder of folders) rmSync(folder, { recursive: true, force: true });
    });
  const folder = mkdtempSync(join(tmpdir(), 'uffd-'));
  folders.push(folder);
  return folder;
}

function compile(name: string, suffix: string, ...flags: string[]): string {
  const source = fileURLToPath(new URL(`../../../test/${name}`, import.meta.url));
  const folder = newFolder();
  const target = join(folder, `${basename(name)}.${suffix}`);
  const compiled = spawnSync('cc', ['-O1', '-pthread', ...flags, '-o', target, source], { encoding: 'utf8' });
  if (compiled.error) skip(`there is no C compiler: ${compiled.error.message}`);
  if (compiled.status !== 0) throw new Error(compiled.stderr);
  return target;
}

/** The real kernel, with some calls of its port replaced. */
export function kernelWith(change: (port: KernelPort, memory: LinearMemory) => Partial<KernelPort>): Kernel {
  const real = linuxKernel();
  return {
    pageSize: real.pageSize,
    attach(memory) {
      const port = real.attach(memory);
      return Object.assign(port, change(port, memory));
    },
  };
}

/** The page size in bytes. */
export const P = memory.pageSize();

/** Maps `pages` pages of private anonymous memory, never in huge pages. The caller unmaps them, or leaves them. */
export function map(pages: number, filled?: number): bigint {
  const flags = memory.MAP_PRIVATE | memory.MAP_ANONYMOUS | memory.MAP_NORESERVE;
  const address = memory.mmap(0n, pages * P, memory.PROT_READ | memory.PROT_WRITE, flags);
  if (address < 0n) throw new Error(`mmap: errno ${-address}`);
  memory.madvise(address, pages * P, memory.MADV_NOHUGEPAGE);
  if (filled !== undefined) new Uint8Array(memory.view(address, pages * P)).fill(filled);
  return address;
}

/** A field of the mapping at `address` in /proc/self/smaps, in bytes. */
export function smaps(address: bigint, field: string): number {
  const text = readFileSync('/proc/self/smaps', 'latin1');
  for (const [, start, end, fields = ''] of text.matchAll(
    /^([0-9a-f]+)-([0-9a-f]+) .*\n((?:[A-Z]\w+:.*\n)*)/gm,
  )) {
    if (address < BigInt(`0x${start}`) || address >= BigInt(`0x${end}`)) continue;
    return Number(new RegExp(`^${field}:\\s*(\\d+) kB$`, 'm').exec(fields)?.[1]) * 1024;
  }
  throw new Error(`nothing is mapped at 0x${address.toString(16)}`);
}

/** Shared memory, mapped twice. */
export interface Shared {
  base: bigint;
  /** A second mapping of the same bytes, to write through. */
  alias: Uint8Array;
  /** Unmaps the alias. Huge pages return to their pool when both mappings are gone. */
  unmapAlias(): void;
}

/** Maps `pages` pages of `pageSize` bytes of shared memory, twice. The caller unmaps them, or leaves them. */
export function mapShared(pages: number, pageSize = P): Shared {
  const length = pages * pageSize;
  const fd = memory.memfdCreate('shared', length, pageSize);
  if (fd < 0) throw new Error(`memfd_create: errno ${-fd}`);
  const mapOnce = (): bigint => {
    const address = memory.mmap(0n, length, memory.PROT_READ | memory.PROT_WRITE, memory.MAP_SHARED, fd);
    if (address < 0n) throw new Error(`mmap: errno ${-address}`);
    return address;
  };
  const [base, other] = [mapOnce(), mapOnce()];
  closeSync(fd);
  return {
    base,
    alias: new Uint8Array(memory.view(other, length)),
    unmapAlias: () => void memory.munmap(other, length),
  };
}

/** The address of page `index` from `base` on. */
export function at(base: bigint, index: number, offset = 0): bigint {
  return base + BigInt(index * P + offset);
}

/** A page full of one byte. */
export function pageOf(byte: number | string): Uint8Array {
  return new Uint8Array(P).fill(typeof byte === 'string' ? byte.charCodeAt(0) : byte);
}

/** Pages that begin with their number plus 1, in 8 bytes, as `Toucher.verify` expects. */
function numbered(pages: number): Uint8Array {
  const words = new BigUint64Array((pages * P) / 8);
  for (let page = 0; page < pages; page++) words[(page * P) / 8] = BigInt(page + 1);
  return new Uint8Array(words.buffer);
}

/** Memory whose pages begin with their numbers plus 1, as a source of copies. */
export function numberedSource(pages: number): bigint {
  const source = map(pages);
  new Uint8Array(memory.view(source, pages * P)).set(numbered(pages));
  return source;
}

type Promised<T> = {
  [K in keyof T]: T[K] extends (...args: infer A) => infer R ? (...args: A) => Promise<R> : never;
};

/** A thread that touches memory. A call resolves when the access is done, which may need an answer to a fault. */
export type Toucher = Promised<Actions> & {
  /** Its kernel thread id. */
  readonly kernelTid: number;
  /** Resolves when the thread sleeps in a page fault, or waits for its event to be read. */
  asleep(): Promise<void>;
  end(): Promise<void>;
};

/** The threads that have not been ended, and their kernel thread ids. */
const living = new Map<Worker, number>();

/** Ends a thread, and waits until /proc does not list it any more: it does for a moment after the thread was joined. */
async function terminate(worker: Worker, tid: number): Promise<void> {
  living.delete(worker);
  await worker.terminate();
  await gone(tid);
}

/** Waits until /proc does not list a thread of this process any more. */
async function gone(tid: number): Promise<void> {
  await until(() => !existsSync(`/proc/self/task/${tid}`), `thread ${tid} to be gone`);
}

export async function toucher(): Promise<Toucher> {
  const worker = new Worker(new URL('./toucher.js', import.meta.url));
  living.set(worker, 0);
  const call = callsOf(worker);
  const kernelTid = (await call('tid', [])) as number;
  living.set(worker, kernelTid);
  const own = {
    kernelTid,
    asleep: () => until(() => waitsInKernel(kernelTid), `thread ${kernelTid} to sleep in a fault`),
    end: () => terminate(worker, kernelTid),
  };
  return new Proxy(own, {
    get: (target, name: string) =>
      name === 'then' ? undefined : ((target as never)[name] ?? ((...args: unknown[]) => call(name, args))),
  }) as unknown as Toucher;
}

export function touchers(count: number): Promise<Toucher[]> {
  return Promise.all(Array.from({ length: count }, toucher));
}

/** Ends all threads that a test has left. Every userfaultfd must be closed before. */
export async function endAll(): Promise<void> {
  await Promise.all([...living].map(([worker, tid]) => terminate(worker, tid)));
}

/** Runs a body with a userfaultfd and a thread, and ends both in any case. */
export function withUffd(
  features: OpenOptions['features'],
  body: (uffd: Userfaultfd, thread: Toucher) => Promise<void>,
): Promise<void> {
  return withOpened(openWith(features), body);
}

/** As `withUffd`, with an open userfaultfd. */
export async function withOpened(
  uffd: Userfaultfd,
  body: (uffd: Userfaultfd, thread: Toucher) => Promise<void>,
): Promise<void> {
  try {
    await body(uffd, await toucher());
  } finally {
    uffd.close();
    await endAll();
  }
}

/** Whether a thread of this process sleeps in a userfault, or waits for an event to be read. */
export function waitsInKernel(tid: number): boolean {
  const place = readFileSync(`/proc/self/task/${tid}/wchan`, 'utf8');
  return place.includes('userfault');
}

/**
 * The number of threads that sleep in a fault whose message was read, from the descriptor's fdinfo. Throws if a message
 * is unread.
 */
export function sleepers(fd: number): number {
  const info = readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8');
  const field = (name: string): number => Number(new RegExp(`^${name}:\\s*(\\d+)`, 'm').exec(info)?.[1]);
  if (field('pending') > 0) throw new Error(`${field('pending')} messages are unread`);
  return field('total');
}

/** The numbers of this process's file descriptors and threads. */
export function holdings(): { descriptors: number; threads: number } {
  return { descriptors: readdirSync('/proc/self/fd').length, threads: readdirSync('/proc/self/task').length };
}

/** Waits for a condition; `_what` describes it for the reader. The test's own time limit applies. */
export async function until(condition: () => boolean, _what?: string): Promise<void> {
  while (!condition()) await sleep(1);
}

export type Call =
  | ['pagefault', bigint, 'read' | 'write']
  | ['removed', bigint, bigint]
  | ['unmapped', bigint, bigint]
  | ['remapped', bigint, bigint, number]
  | ['forked']
  | ['closed', UffdError?];

/** A handler that records every call, and answers faults with `answer`. */
export function recorder(answer: FaultHandler['pagefault']): {
  calls: Call[];
  handler: FaultHandler;
} {
  const calls: Call[] = [];
  return {
    calls,
    handler: {
      pagefault(fault, uffd) {
        calls.push(['pagefault', fault.page, fault.access]);
        return answer(fault, uffd);
      },
      removed: (start, end) => void calls.push(['removed', start, end]),
      unmapped: (start, end) => void calls.push(['unmapped', start, end]),
      remapped: (from, to, length) => void calls.push(['remapped', from, to, length]),
      forked(child) {
        calls.push(['forked']);
        child.close();
      },
      closed: (error) => void calls.push(error ? ['closed', error] : ['closed']),
    },
  };
}

/** A `pagefault` callback that fails the test. */
export function never(): boolean {
  throw new Error('no fault was expected');
}

/** A thread that serves a userfaultfd. */
export interface Looper {
  /** All its messages so far. */
  readonly messages: LooperMessage[];
  /** Resolves with the first message of a type, whether it has arrived or is still to come. */
  waitFor<T extends LooperMessage['type']>(type: T): Promise<Extract<LooperMessage, { type: T }>>;
  /** Stops the loop, and waits until it has stopped. */
  stop(): Promise<Extract<LooperMessage, { type: 'stopped' }>>;
  /** Stops the loop, and waits until its thread has closed the descriptor and ended. */
  end(): Promise<void>;
}

/** Hands a userfaultfd over to a new thread, which serves it. */
export async function looper(
  uffd: Userfaultfd,
  options: Omit<LooperOptions, 'fd' | 'features' | 'ranges'>,
): Promise<Looper> {
  const { features, ranges } = uffd;
  const workerData: LooperOptions = { ...options, features, ranges, fd: uffd.release() };
  const worker = new Worker(new URL('./looper.js', import.meta.url), { workerData });
  const messages: LooperMessage[] = [];
  const exited = new Promise((resolve) => worker.once('exit', resolve));
  const changed = new EventEmitter();
  worker.on('message', (message: LooperMessage) => {
    messages.push(message);
    changed.emit('change');
  });
  let failure: unknown;
  worker.on('error', (error) => {
    failure = error;
    changed.emit('change');
  });
  const waitFor: Looper['waitFor'] = (type) =>
    new Promise((resolve, reject) => {
      const look = (): void => {
        const message = messages.find((one) => one.type === type);
        if (message) resolve(message as never);
        else if (failure) reject(failure);
        else changed.once('change', look);
      };
      look();
    });
  const stop: Looper['stop'] = async () => {
    Userfaultfd.stop((await waitFor('ready')).stopHandle);
    return waitFor('stopped');
  };
  await waitFor('ready');
  return {
    messages,
    waitFor,
    stop,
    async end() {
      await stop();
      await exited;
      await gone((await waitFor('ready')).tid);
    },
  };
}
