// Access to native.c from TypeScript: compiled when the benchmark starts, into a folder that is removed at the end.

import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import koffi from 'koffi';

/** The path of native.c, which this file finds from build/bench and from bench. */
const SOURCE = fileURLToPath(
  new URL(import.meta.url.includes('/build/') ? '../../bench/native.c' : 'native.c', import.meta.url),
);

const FLAGS = ['-O2', '-shared', '-fPIC', '-pthread'];

/** How the handler in C waits, numbered as in native.c. */
export const CWait = { sleep: 0, readFirst: 1, spin: 2 } as const;
export type CWait = (typeof CWait)[keyof typeof CWait];

/** The functions of native.c, which are described there. */
export interface Native {
  processor(index: number): number;
  pin(cpu: number): number;
  cpuNs(pid: number): number;
  warm(bytes: number): number;
  touch(
    region: bigint,
    page: number,
    first: number,
    count: number,
    cpu: number,
    limit: number,
    latency: Uint32Array,
    elapsed: BigUint64Array,
  ): number;
  wrongPages(region: bigint, page: number, count: number, source: bigint): number;
  serveBegin(region: bigint, bytes: number, page: number, source: bigint, wait: CWait, cpu: number): number;
  serveEnd(): number;
}

/** Compiles native.c. Returns the path of the library, or why it could not be compiled. */
export function compile(): { library: string } | { reason: string } {
  const directory = mkdtempSync(join(tmpdir(), 'uffd-bench-'));
  process.on('exit', () => rmSync(directory, { recursive: true, force: true }));
  const library = join(directory, 'native.so');
  const reason = compileC(SOURCE, library, FLAGS);
  return reason === undefined ? { library } : { reason };
}

/** Compiles a C file. Returns why that failed, or undefined. */
export function compileC(source: string, output: string, flags: readonly string[]): string | undefined {
  const compiler = process.env.CC || 'cc';
  const result = spawnSync(compiler, [...flags, '-o', output, source], { encoding: 'utf8' });
  if (result.error) return `there is no C compiler: ${result.error.message} (CC names another)`;
  return result.status === 0 ? undefined : `${compiler} could not compile ${source}:\n${result.stderr}`;
}

/** Loads the library on this thread. All threads that load it share its static variables. */
export function load(library: string): Native {
  const c = koffi.load(library);
  return {
    processor: c.func('processor', 'int', ['int']),
    pin: c.func('pin', 'int', ['int']),
    cpuNs: c.func('cpu_ns', 'int64_t', ['int']),
    warm: c.func('warm', 'int64_t', ['size_t']),
    touch: c.func('touch', 'int', [
      'uintptr_t',
      'size_t',
      'int',
      'int',
      'int',
      'uint64_t',
      'uint32_t *',
      'uint64_t *',
    ]),
    wrongPages: c.func('wrong_pages', 'int', ['uintptr_t', 'size_t', 'int', 'uintptr_t']),
    serveBegin: c.func('serve_begin', 'int', ['uintptr_t', 'size_t', 'size_t', 'uintptr_t', 'int', 'int']),
    serveEnd: c.func('serve_end', 'int', []),
  };
}

/** The result of a function of native.c, or an error if it failed. */
export function checked(what: string, result: number): number {
  if (result < 0) throw new Error(`${what} failed: errno ${-result}`);
  return result;
}
