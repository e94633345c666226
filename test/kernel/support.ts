// What the tests on the real kernel share: whether there is one, threads that touch memory, memory, and a
// handler that writes down every call, so that one too many fails a test as surely as one too few.

import { spawnSync } from 'node:child_process';
import { EventEmitter } from 'node:events';
import { closeSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
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
import { skip } from '../harness.js';
import type { LooperMessage, LooperOptions } from './looper.js';
import type { Actions } from './toucher.js';

let probed: string | undefined;

/** Ends the test where userfaultfd cannot be used here, saying why. */
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

/** Ends the test where only faults of user mode are served, saying so: it has the kernel touch memory. */
export function needKernelFaults(): void {
  needKernel();
  const uffd = Userfaultfd.open();
  const { userModeOnly } = uffd;
  uffd.close();
  if (userModeOnly) skip('only faults of user mode are served here');
}

/** Opens a userfaultfd, or skips where the kernel lacks a feature. */
export function openWith(features: OpenOptions['features'] = []): Userfaultfd {
  needKernel();
  try {
    return Userfaultfd.open({ features });
  } catch (error) {
    if ((error as { code?: string }).code === 'ERR_UFFD_UNSUPPORTED') skip((error as Error).message);
    throw error;
  }
}

/** Skips where this kernel, or this user, cannot have a feature. */
export function skipWithout(feature: Feature): void {
  needKernel();
  try {
    Userfaultfd.open({ features: [feature] }).close();
  } catch (error) {
    skip((error as Error).message);
  }
}

/** Compiles a C file, named from this folder, to a library; the library's path. Skips where there is no compiler. */
export function compileLibrary(name: string): string {
  return compile(name, 'so', '-shared', '-fPIC');
}

/** Compiles a C file beside the tests to a program; its path. Skips where there is no compiler. */
export function compileProgram(name: string): string {
  return compile(name, 'out');
}

function compile(name: string, suffix: string, ...flags: string[]): string {
  const source = fileURLToPath(new URL(`../../../test/kernel/${name}`, import.meta.url));
  const folder = mkdtempSync(join(tmpdir(), 'uffd-'));
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
  const target = join(folder, `${basename(name)}.${suffix}`);
  const compiled = spawnSync('cc', ['-O1', '-pthread', ...flags, '-o', target, source], { encoding: 'utf8' });
  if (compiled.error) skip(`there is no C compiler: ${compiled.error.message}`);
  if (compiled.status !== 0) throw new Error(compiled.stderr);
  return target;
}

/** The real kernel with some calls answered otherwise. */
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

/** Bytes of a page. */
export const P = memory.pageSize();

/** Fresh private anonymous memory, `pages` pages, never in huge pages. Not unmapped by itself. */
export function map(pages: number, filled?: number): bigint {
  const flags = memory.MAP_PRIVATE | memory.MAP_ANONYMOUS | memory.MAP_NORESERVE;
  const address = memory.mmap(0n, pages * P, memory.PROT_READ | memory.PROT_WRITE, flags);
  if (address < 0n) throw new Error(`mmap: errno ${-address}`);
  memory.madvise(address, pages * P, memory.MADV_NOHUGEPAGE);
  if (filled !== undefined) new Uint8Array(memory.view(address, pages * P)).fill(filled);
  return address;
}

/** A field of the mapping that holds `address`, in bytes, as /proc/self/smaps says it. */
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
  /** The same bytes elsewhere, to write through. */
  alias: Uint8Array;
  /** Unmaps the alias; huge pages go back to their pool when neither is mapped any more. */
  unmapAlias(): void;
}

/** Shared memory, `pages` pages of `pageSize` bytes. Not unmapped by itself. */
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

/** Address of page `index` behind `base`. */
export function at(base: bigint, index: number, offset = 0): bigint {
  return base + BigInt(index * P + offset);
}

/** A page full of one byte. */
export function pageOf(byte: number | string): Uint8Array {
  return new Uint8Array(P).fill(typeof byte === 'string' ? byte.charCodeAt(0) : byte);
}

/** Pages that carry their number plus 1 in their first 8 bytes, as `Toucher.verify` expects. */
function numbered(pages: number): Uint8Array {
  const words = new BigUint64Array((pages * P) / 8);
  for (let page = 0; page < pages; page++) words[(page * P) / 8] = BigInt(page + 1);
  return new Uint8Array(words.buffer);
}

/** Memory whose pages carry their numbers, to copy from. */
export function numberedSource(pages: number): bigint {
  const source = map(pages);
  new Uint8Array(memory.view(source, pages * P)).set(numbered(pages));
  return source;
}

type Promised<T> = {
  [K in keyof T]: T[K] extends (...args: infer A) => infer R ? (...args: A) => Promise<R> : never;
};

/** A thread that touches memory. Its calls resolve when it got through; they may wait for a fault's answer. */
export type Toucher = Promised<Actions> & {
  /** Its kernel thread id. */
  readonly kernelTid: number;
  /** Resolves when it sleeps in a page fault or in the wait for an event's reader. */
  asleep(): Promise<void>;
  end(): Promise<void>;
};

const living = new Set<Worker>();

export async function toucher(): Promise<Toucher> {
  const worker = new Worker(new URL('./toucher.js', import.meta.url));
  living.add(worker);
  let last = 0;
  const waiting = new Map<number, { resolve(result: unknown): void; reject(error: unknown): void }>();
  worker.on('message', ({ id, result }) => {
    waiting.get(id)?.resolve(result);
    waiting.delete(id);
  });
  worker.on('error', (error) => {
    for (const { reject } of waiting.values()) reject(error);
  });
  const call = (action: string, args: unknown[]): Promise<unknown> =>
    new Promise((resolve, reject) => {
      const id = ++last;
      waiting.set(id, { resolve, reject });
      worker.postMessage({ id, action, args });
    });
  const kernelTid = (await call('tid', [])) as number;
  const own = {
    kernelTid,
    asleep: () => until(() => waitsInKernel(kernelTid), `thread ${kernelTid} to sleep in a fault`),
    async end() {
      living.delete(worker);
      await worker.terminate();
    },
  };
  return new Proxy(own, {
    get: (target, name: string) =>
      name === 'then' ? undefined : ((target as never)[name] ?? ((...args: unknown[]) => call(name, args))),
  }) as unknown as Toucher;
}

export function touchers(count: number): Promise<Toucher[]> {
  return Promise.all(Array.from({ length: count }, toucher));
}

/** Ends all threads that a test has left. Every userfaultfd must be closed by then. */
export async function endAll(): Promise<void> {
  await Promise.all([...living].map((worker) => worker.terminate()));
  living.clear();
}

/** Runs a body with a userfaultfd and a thread, and ends both whatever happens. */
export function withUffd(
  features: OpenOptions['features'],
  body: (uffd: Userfaultfd, thread: Toucher) => Promise<void>,
): Promise<void> {
  return withOpened(openWith(features), body);
}

/** The same with one that is open. */
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
 * Threads that sleep in a fault whose message was read, by the descriptor's fdinfo. Fails where an unread
 * message is there too.
 */
export function sleepers(fd: number): number {
  const info = readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8');
  const field = (name: string): number => Number(new RegExp(`^${name}:\\s*(\\d+)`, 'm').exec(info)?.[1]);
  if (field('pending') > 0) throw new Error(`${field('pending')} messages are unread`);
  return field('total');
}

/** File descriptors and threads of this process. */
export function holdings(): { descriptors: number; threads: number } {
  return { descriptors: readdirSync('/proc/self/fd').length, threads: readdirSync('/proc/self/task').length };
}

/** Waits for a condition; what it is may be said for whoever reads. No limit of its own: the test has one. */
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

/** A handler that writes down every call, and answers faults with `answer`. */
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

/** Fails a test that gets a fault it does not expect. */
export function never(): boolean {
  throw new Error('no fault was expected');
}

/** A thread that serves a userfaultfd. */
export interface Looper {
  /** Everything it told so far. */
  readonly told: LooperMessage[];
  /** Resolves with the first message of a type, told or still to come. */
  heard<T extends LooperMessage['type']>(type: T): Promise<Extract<LooperMessage, { type: T }>>;
  /** Asks its loop to stop, and waits until it has. */
  stop(): Promise<Extract<LooperMessage, { type: 'stopped' }>>;
  /** Stops it, and waits until its thread has closed the descriptor and ended. */
  end(): Promise<void>;
}

/** Gives a userfaultfd away to a thread of its own, which serves it. */
export async function looper(
  uffd: Userfaultfd,
  options: Omit<LooperOptions, 'fd' | 'features' | 'ranges'>,
): Promise<Looper> {
  const { features, ranges } = uffd;
  const workerData: LooperOptions = { ...options, features, ranges, fd: uffd.release() };
  const worker = new Worker(new URL('./looper.js', import.meta.url), { workerData });
  const told: LooperMessage[] = [];
  const exited = new Promise((resolve) => worker.once('exit', resolve));
  const changed = new EventEmitter();
  worker.on('message', (message: LooperMessage) => {
    told.push(message);
    changed.emit('told');
  });
  let failure: unknown;
  worker.on('error', (error) => {
    failure = error;
    changed.emit('told');
  });
  const heard: Looper['heard'] = (type) =>
    new Promise((resolve, reject) => {
      const look = (): void => {
        const message = told.find((one) => one.type === type);
        if (message) resolve(message as never);
        else if (failure) reject(failure);
        else changed.once('told', look);
      };
      look();
    });
  const stop: Looper['stop'] = async () => {
    Userfaultfd.stop((await heard('ready')).stopHandle);
    return heard('stopped');
  };
  await heard('ready');
  return {
    told,
    heard,
    stop,
    async end() {
      await stop();
      await exited;
    },
  };
}
