// The monitor of test/guest/bare.c: it keeps no copy of its userfaultfd, so whoever closes the handler's lets it run on.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { compileProgram } from '../kernel/support.js';
import { P } from './process.js';

let program: string | undefined;

/** A hand-off of so many pages, from wherever the monitor has its memory. */
export function handOffText(pages: number, members: object = {}): string {
  const region = { base_host_virt_addr: 'BASE', size: pages * P, offset: 0, page_size: P, ...members };
  return JSON.stringify([region]).replace('"BASE"', 'BASE');
}

export class Bare {
  /** The exit code, or the signal. */
  readonly ended: Promise<number | string>;
  /** Whether it has ended. */
  over = false;
  said = '';
  readonly #child: ChildProcess;

  /** `does`: what is written at the top of bare.c. `under`: started instead, with its command line behind. */
  constructor(
    socket: string,
    pages: number,
    text: string,
    does: readonly string[] = [],
    under: readonly string[] = [],
  ) {
    program ??= compileProgram('../guest/bare.c');
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

  /** Has a thread read a page: it says `page N: …` if it ever can. */
  touch(page: number): void {
    this.#child.stdin?.write(`touch ${page}\n`);
  }

  end(): void {
    this.#child.stdin?.write('end\n');
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }
}
