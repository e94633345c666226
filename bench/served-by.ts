// A handler as a process: starts it, measures it while it serves, and ends it.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { checked, type Native } from './native.js';

/** Resets the memory peak of a process to its current size (proc(5), clear_refs). */
const RESET_PEAK = '5';

/** A process that uses no processor time for SETTLED_MS is idle. `settled` waits for that at most SETTLED_LIMIT_MS. */
const SETTLED_MS = 5;
const SETTLED_LIMIT_MS = 1000;

const running = new Set<ChildProcess>();
process.once('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

export class ServedBy {
  readonly socket: string;
  readonly #native: Native;
  readonly #child: ChildProcess;

  private constructor(native: Native, child: ChildProcess, socket: string) {
    this.#native = native;
    this.#child = child;
    this.socket = socket;
  }

  /** Starts a handler on a processor (negative: any); resolves when the handler listens. */
  static async start(
    native: Native,
    command: readonly string[],
    cpu: number,
    socket: string,
    options: readonly string[],
  ): Promise<ServedBy> {
    const pinned = cpu < 0 ? [] : ['taskset', '-c', `${cpu}`];
    const [program = '', ...words] = [...pinned, ...command, '--socket', socket, ...options];
    const child = spawn(program, words, { stdio: ['ignore', 'pipe', 'ignore'] });
    running.add(child);
    child.once('exit', () => running.delete(child));
    await Promise.race([once(child.stdout as NodeJS.ReadableStream, 'data'), failure(child)]);
    return new ServedBy(native, child, socket);
  }

  /** Nanoseconds of processor time that the handler's threads have used. */
  cpuNs(): number {
    return checked('the clock of a process', this.#native.cpuNs(this.pid));
  }

  /**
   * Resolves when the handler is idle: its work at the end of a guest must not disturb the next handler's measurement.
   */
  async settled(): Promise<void> {
    const limit = performance.now() + SETTLED_LIMIT_MS;
    for (let before = -1; before !== this.cpuNs() && performance.now() < limit; ) {
      before = this.cpuNs();
      await sleep(SETTLED_MS);
    }
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  resetPeak(): void {
    writeFileSync(`/proc/${this.pid}/clear_refs`, RESET_PEAK);
  }

  /** The peak of the handler's resident memory in MiB. */
  peakMiB(): number {
    const status = readFileSync(`/proc/${this.pid}/status`, 'utf8');
    return Number(/^VmHWM:\s+(\d+) kB/m.exec(status)?.[1]) / 1024;
  }

  /** The handler's private memory in MiB. */
  anonymousMiB(): number {
    return anonymousMiB(this.pid);
  }

  async stop(): Promise<void> {
    const ended = once(this.#child, 'exit');
    this.#child.kill('SIGTERM');
    await ended;
  }
}

async function failure(child: ChildProcess): Promise<never> {
  const [code] = await once(child, 'exit');
  throw new Error(`a handler ended with ${code} before it was ready`);
}

/** The private memory of a process in MiB. */
export function anonymousMiB(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(/^RssAnon:\s+(\d+) kB/m.exec(status)?.[1]) / 1024;
}
