// native.c from TypeScript: compiled when the benchmark starts, into a directory that goes with the process.

import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import koffi from 'koffi';

/** From dist/bench as from bench: two levels down, or one. */
const SOURCE = fileURLToPath(
  new URL(import.meta.url.includes('/dist/') ? '../../bench/native.c' : 'native.c', import.meta.url),
);

const FLAGS = ['-O2', '-shared', '-fPIC', '-pthread'];

/** How the handler in C waits: the numbers of native.c. */
export const CWait = { sleep: 0, readFirst: 1, spin: 2 } as const;
export type CWait = (typeof CWait)[keyof typeof CWait];

/** What native.c offers; the meaning of each is told there. */
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

/** Compiles native.c: where the library is, or why there is none. */
export function compile(): { library: string } | { reason: string } {
  const directory = mkdtempSync(join(tmpdir(), 'uffd-bench-'));
  process.on('exit', () => rmSync(directory, { recursive: true, force: true }));
  const library = join(directory, 'native.so');
  const reason = compileC(SOURCE, library, FLAGS);
  return reason === undefined ? { library } : { reason };
}

/** Compiles a C file: why it cannot be done, or nothing. */
export function compileC(source: string, output: string, flags: readonly string[]): string | undefined {
  const compiler = process.env.CC || 'cc';
  const result = spawnSync(compiler, [...flags, '-o', output, source], { encoding: 'utf8' });
  if (result.error) return `there is no C compiler: ${result.error.message} (CC names another)`;
  return result.status === 0 ? undefined : `${compiler} could not compile ${source}:\n${result.stderr}`;
}

/** Loads the library on this thread. All threads that load it share its one set of variables. */
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

/** The number that a function of native.c answered, or an error where it failed. */
export function checked(what: string, result: number): number {
  if (result < 0) throw new Error(`${what} failed: errno ${-result}`);
  return result;
}
