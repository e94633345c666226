// Access to pager.c and pager-swap.c from TypeScript: compiled when the benchmark starts, into a folder that is removed
// at the end.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import koffi from 'koffi';
import { checked, compileC } from './native.js';

/** The functions of pager.c, which are described there. They run in a thread of libuv's pool, so the caller can wait. */
export interface PagerNative {
  readMemory(
    memory: bigint,
    step: number,
    places: number,
    count: number,
    seed: number,
    cpu: number,
  ): Promise<number>;
  writeMemory(
    memory: bigint,
    step: number,
    places: number,
    count: number,
    seed: number,
    cpu: number,
  ): Promise<number>;
  readFile(
    fd: number,
    bytes: number,
    places: number,
    count: number,
    seed: number,
    cpu: number,
  ): Promise<number>;
  writeFile(
    fd: number,
    memory: bigint,
    bytes: number,
    count: number,
    sync: boolean,
    cpu: number,
  ): Promise<number>;
  dropCache(fd: number): void;
}

/** The path of a C file, which this file finds from build/bench and from bench. */
function sourceOf(name: string): string {
  const path = import.meta.url.includes('/build/') ? `../../bench/${name}` : name;
  return fileURLToPath(new URL(path, import.meta.url));
}

/** Compiles pager.c and pager-swap.c into a folder. @throws Error if that fails */
export function compilePager(folder: string): { library: string; swap: string } {
  const library = join(folder, 'pager.so');
  const swap = join(folder, 'pager-swap');
  const reason =
    compileC(sourceOf('pager.c'), library, ['-O2', '-shared', '-fPIC']) ??
    compileC(sourceOf('pager-swap.c'), swap, ['-O2', '-pthread']);
  if (reason !== undefined) throw new Error(reason);
  return { library, swap };
}

type AsyncFunction = { async(...args: unknown[]): void };

/** Loads the library. Every function that finds wrong data throws. */
export function loadPager(library: string): PagerNative {
  const c = koffi.load(library);
  const touch = ['uintptr_t', 'uint64_t', 'uint64_t', 'uint64_t', 'uint64_t', 'int'];
  const readMemory = c.func('read_memory', 'int64_t', [...touch, 'uint64_t *']);
  const writeMemory = c.func('write_memory', 'int64_t', touch);
  const readFile = c.func('read_file', 'int64_t', ['int', ...touch.slice(1), 'uint64_t *']);
  const writeFile = c.func('write_file', 'int64_t', [
    'int',
    'uintptr_t',
    'uint64_t',
    'uint64_t',
    'int',
    'int',
  ]);
  const dropCache = c.func('drop_cache', 'int', ['int']);
  const call = (what: string, native: unknown, ...args: unknown[]): Promise<number> =>
    new Promise((resolve, reject) => {
      (native as AsyncFunction).async(...args, (error: unknown, result: number | bigint) => {
        try {
          if (error) throw error;
          resolve(checked(what, Number(result)));
        } catch (failure) {
          reject(failure);
        }
      });
    });
  const reading = async (what: string, native: unknown, ...args: unknown[]): Promise<number> => {
    const wrong = new BigUint64Array(1);
    const ns = await call(what, native, ...args, wrong);
    if (wrong[0] !== 0n) throw new Error(`${what}: ${wrong[0]} pages held wrong bytes`);
    return ns;
  };
  return {
    readMemory: (...args) => reading('reading memory', readMemory, ...args),
    writeMemory: (...args) => call('writing to memory', writeMemory, ...args),
    readFile: (...args) => reading('reading a file', readFile, ...args),
    writeFile: (fd, memory, bytes, count, sync, cpu) =>
      call('writing a file', writeFile, fd, memory, bytes, count, sync ? 1 : 0, cpu),
    dropCache: (fd) => void checked('posix_fadvise', dropCache(fd)),
  };
}

/** The swap engine in C, as a process. */
export class SwapProgram {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  constructor(
    program: string,
    file: string,
    { block, bytes, resident, cpu }: { block: number; bytes: number; resident: number; cpu: number },
  ) {
    const words = [file, block, bytes, resident, cpu, cpu].map(String);
    this.#child = spawn(program, words, { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#lines = createInterface({ input: this.#child.stdout as NodeJS.ReadableStream })[
      Symbol.asyncIterator
    ]();
  }

  /** Nanoseconds of `writes` writes. */
  async write(writes: number, seed: number): Promise<number> {
    this.#child.stdin?.write(`${writes} ${seed}\n`);
    const { value, done } = await this.#lines.next();
    if (done) throw new Error('the swap engine in C has ended');
    return Number(value);
  }

  async close(): Promise<void> {
    const ended = once(this.#child, 'exit');
    this.#child.stdin?.end();
    await ended;
  }
}
