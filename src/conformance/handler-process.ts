// The handler under test: a process group of its own, which is ended as a whole.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, watch } from 'node:fs';
import { basename, dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { groupOf } from './process-state.js';

/** Bytes of output that are kept, of each stream. */
const OUTPUT_MOST = 256 * 1024;
/** How long a handler has after SIGTERM. */
const TERMINATED_MS = 2000;

export interface HandlerOptions {
  /** With `{socket}` and `{memory}` in its words, which are replaced. */
  readonly command: readonly string[];
  readonly env?: Readonly<Record<string, string>> | undefined;
  /** Printed when the handler is ready; default: it is ready when the socket's file exists. */
  readonly ready?: RegExp | undefined;
}

/** How the handler has ended. */
export interface HandlerExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export class HandlerProcess {
  readonly pid: number;
  readonly exited: Promise<HandlerExit>;
  exit: HandlerExit | undefined;
  readonly #child: ChildProcess;
  readonly #output = { stdout: '', stderr: '' };
  #printed = (): void => {};

  /** Also called if this process ends in the middle of a check. */
  readonly #killGroup = (): void => {
    try {
      process.kill(-this.pid, 'SIGKILL');
    } catch {
      // All of them have ended.
    }
  };

  private constructor(child: ChildProcess) {
    this.#child = child;
    this.pid = child.pid as number;
    process.on('exit', this.#killGroup);
    this.exited = once(child, 'exit').then(([code, signal]) => {
      this.exit = { code, signal };
      return this.exit;
    });
    for (const name of ['stdout', 'stderr'] as const) {
      child[name]?.setEncoding('utf8').on('data', (text: string) => {
        this.#output[name] = (this.#output[name] + text).slice(-OUTPUT_MOST);
        this.#printed();
      });
    }
  }

  /** @throws Error of spawn: ENOENT, EACCES */
  static async start(
    { command, env }: HandlerOptions,
    { socket, memory }: { socket: string; memory: string },
  ): Promise<HandlerProcess> {
    const [program = '', ...words] = command.map((word) =>
      word.replaceAll('{socket}', socket).replaceAll('{memory}', memory),
    );
    const child = spawn(program, words, {
      // The group can be ended as a whole, and Ctrl-C is handled by the supervisor.
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...env },
    });
    await once(child, 'spawn');
    return new HandlerProcess(child);
  }

  get stdout(): string {
    return this.#output.stdout;
  }

  get stderr(): string {
    return this.#output.stderr;
  }

  /** Waits until the handler is ready. A connection would be its first monitor, so none is tried. */
  async untilReady(socket: string, ready: RegExp | undefined): Promise<void> {
    const isReady = (): boolean =>
      ready ? ready.test(this.stdout) || ready.test(this.stderr) : existsSync(socket);
    await new Promise<void>((resolve, reject) => {
      const watcher = watch(dirname(socket), (_, name) => {
        if (name === basename(socket)) look();
      });
      const look = (): void => {
        if (!isReady()) return;
        watcher.close();
        resolve();
      };
      this.#printed = look;
      watcher.on('error', reject);
      void this.exited.then(() => {
        watcher.close();
        resolve();
      });
      look();
    });
  }

  /** Lets a stopped handler go on. */
  resume(): void {
    try {
      process.kill(-this.pid, 'SIGCONT');
    } catch {
      // It has ended.
    }
  }

  /** Lets the handler end by SIGTERM, because it may be a program that writes a file at its end. Then as `kill`. */
  async end(): Promise<void> {
    try {
      if (this.exit === undefined) process.kill(-this.pid, 'SIGTERM');
    } catch {
      // All of them have ended.
    }
    const timer = new AbortController();
    const late = sleep(TERMINATED_MS, undefined, { signal: timer.signal }).catch(() => {});
    await Promise.race([this.exited, late]);
    timer.abort();
    await this.kill();
  }

  /** Ends all processes of the group, also those that its leader has left behind. */
  async kill(): Promise<void> {
    this.#killGroup();
    await this.exited;
    process.off('exit', this.#killGroup);
    this.#child.stdout?.destroy();
    this.#child.stderr?.destroy();
  }

  /** Whether a process of the group still runs. */
  get runs(): boolean {
    return this.exit === undefined || groupOf(this.pid).length > 0;
  }
}

/** How a process has ended, in words. */
export function exitInWords({ code, signal }: HandlerExit): string {
  return signal === null ? `exited with status ${code}` : `was ended by ${signal}`;
}
