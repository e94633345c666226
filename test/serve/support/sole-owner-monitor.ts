// Runs the monitor of test/guest/bare.c. It keeps no copy of its userfaultfd, so its threads run on as soon as the
// handler's copy is closed.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { compileProgram, until } from '../../support/real-kernel.js';
import { P, waitingFor } from './serve-process.js';

let program: string | undefined;

/** The text of a hand-off of some pages. bare.c replaces BASE with the address of its memory. */
export function handOffText(pages: number, members: object = {}): string {
  const region = { base_host_virt_addr: 'BASE', size: pages * P, offset: 0, page_size: P, ...members };
  return JSON.stringify([region]).replace('"BASE"', 'BASE');
}

export class Bare {
  /** The exit code, or the signal that ended the process. */
  readonly ended: Promise<number | string>;
  /** Whether the process has ended. */
  over = false;
  said = '';
  readonly #child: ChildProcess;

  /** `does`: behaviours from the list at the top of bare.c. `under`: a command that starts the monitor. */
  constructor(
    socket: string,
    pages: number,
    text: string,
    does: readonly string[] = [],
    under: readonly string[] = [],
  ) {
    program ??= compileProgram('guest/bare.c');
    const [first, ...rest] = [...under, program, socket, `${pages * P}`, text, ...does] as [
      string,
      ...string[],
    ];
    const child = spawn(first, rest, { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#child = child;
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.said += text;
    });
    child.stdin?.on('error', () => {});
    const kill = (): void => this.kill();
    process.once('exit', kill);
    this.ended = once(child, 'exit').then(([code, signal]) => {
      this.over = true;
      process.off('exit', kill);
      return code ?? signal;
    });
  }

  get pid(): number {
    return this.#child.pid as number;
  }

  /** Makes a thread of the monitor read a page, and print `page N: …` if the read returns. */
  touch(page: number): void {
    this.#child.stdin?.write(`touch ${page}\n`);
  }

  /** Resolves when the monitor has handed its memory over, and a thread of it sleeps in a fault or has read a page. */
  async waits(): Promise<void> {
    await until(() => {
      return this.said.includes('handed over\n') && (waitingFor(this.pid) > 0 || this.said.includes('page'));
    });
  }

  end(): void {
    this.#child.stdin?.write('end\n');
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }
}
