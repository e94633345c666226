// `uffd serve` as a process of its own, a monitor as another one, and memory files for them.

import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { Guest } from '../../src/cli/guest/guest.js';
import type { GuestOptions } from '../../src/cli/guest/protocol.js';
import { commandLine, type Ended, inDirectory } from '../cli/command.js';
import { generator } from '../harness.js';
import { needKernel } from '../kernel/support.js';

/** Bytes of a page of the guests. */
export const P = 4096;

/** What --stats-json holds, as far as it is looked at. */
export interface Stats {
  readonly sessions: readonly {
    readonly bytes: number;
    readonly regions: number;
    readonly residentBytes: number;
    readonly end: string;
    readonly counts: Readonly<Record<string, number>>;
  }[];
  readonly refused: number;
  readonly killed: number;
}

/** A memory file of random pages. Those for which `hole` holds are not written. */
export function writeMemory(
  path: string,
  pages: number,
  start: number,
  hole = (_page: number) => false,
): void {
  const below = generator(start);
  const words = new Uint32Array(P / 4);
  const fd = openSync(path, 'w');
  try {
    ftruncateSync(fd, pages * P);
    for (let page = 0; page < pages; page++) {
      if (hole(page)) continue;
      for (let word = 0; word < words.length; word++) words[word] = below(2 ** 32);
      writeSync(fd, words, 0, P, page * P);
    }
  } finally {
    closeSync(fd);
  }
}

/**
 * Serves the first monitor with `uffd serve --once`, which must end with exit code 0. `make` makes the memory file;
 * `monitor` is given the socket and the file, and says what to start.
 */
export async function served(
  options: readonly string[],
  make: (memory: string) => void,
  monitor: (socket: string, memory: string) => readonly string[],
): Promise<{ monitor: Ended; stats: Stats }> {
  let result: { monitor: Ended; stats: Stats } | undefined;
  await inDirectory(async (directory) => {
    const [socket, memory, statsFile] = ['socket', 'memory', 'stats'].map((name) =>
      join(directory, name),
    ) as [string, string, string];
    make(memory);
    const places = ['--socket', socket, '--memory', memory, '--stats-json', statsFile];
    const server = new Running(commandLine(['serve', ...places, '--once', ...options]));
    let guest: Running | undefined;
    try {
      await server.says(`ready: ${socket}\n`);
      guest = new Running(monitor(socket, memory));
      const ended = await guest.ended;
      const { code, stderr } = await server.ended;
      if (code !== 0)
        throw new Error(`uffd serve: ${code}\n${stderr}\nthe monitor: ${JSON.stringify(ended)}`);
      result = { monitor: ended, stats: JSON.parse(readFileSync(statsFile, 'utf8')) };
    } finally {
      guest?.kill();
      server.kill();
    }
  });
  return result as NonNullable<typeof result>;
}

/** A process that is killed when this one ends. */
export class Running {
  readonly ended: Promise<Ended>;
  readonly #child: ChildProcess;
  readonly #output = { stdout: '', stderr: '' };
  /** Called when it has said more, and when it has ended. */
  #heard = (): void => {};

  constructor([program, ...args]: readonly string[]) {
    const child = spawn(program as string, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    this.#child = child;
    for (const name of ['stdout', 'stderr'] as const) {
      child[name].setEncoding('utf8').on('data', (text: string) => {
        this.#output[name] += text;
        this.#heard();
      });
    }
    const kill = (): void => this.kill();
    process.once('exit', kill);
    this.ended = new Promise((resolve, reject) => {
      child.once('error', reject);
      child.once('close', (code, signal) => {
        process.off('exit', kill);
        resolve({ code: code ?? signal ?? '', ...this.#output });
      });
    });
    this.ended.then(
      () => this.#heard(),
      () => this.#heard(),
    );
  }

  get pid(): number {
    return this.#child.pid as number;
  }

  /** What it has written until now. */
  get output(): { readonly stdout: string; readonly stderr: string } {
    return this.#output;
  }

  /** Resolves once it has written something; rejects where it ends without. */
  async says(text: string, where: 'stdout' | 'stderr' = 'stdout'): Promise<void> {
    let over = false;
    this.ended
      .catch(() => {})
      .finally(() => {
        over = true;
      });
    while (!this.#output[where].includes(text)) {
      if (over) throw new Error(`it has ended: ${JSON.stringify(await this.ended)}`);
      await new Promise<void>((resolve) => {
        this.#heard = resolve;
      });
    }
  }

  /** 'SIGSTOP' stops it where it is, until 'SIGCONT'. */
  signal(name: 'SIGSTOP' | 'SIGCONT' | 'SIGTERM'): void {
    this.#child.kill(name);
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }
}

/** `uffd serve` in a process of its own, and guests of it; everything is ended and gone afterwards. */
export async function servingApart(
  { pages, pageSize = P, options = [] }: { pages: number; pageSize?: number; options?: readonly string[] },
  body: (scene: {
    server: Running;
    socket: string;
    /** Starts a guest, and waits until it has handed over. */
    guest(options?: Partial<GuestOptions>): Promise<Guest>;
  }) => Promise<void>,
): Promise<void> {
  needKernel();
  await inDirectory(async (directory) => {
    const [socket, memory] = [join(directory, 'socket'), join(directory, 'memory')];
    writeMemory(memory, (pages * pageSize) / P, pages);
    const server = new Running(commandLine(['serve', '--socket', socket, '--memory', memory, ...options]));
    const guests: Guest[] = [];
    const kill = (): void => {
      for (const guest of guests) guest.kill();
    };
    process.once('exit', kill);
    try {
      await server.says(`ready: ${socket}\n`);
      await body({
        ...{ server, socket },
        async guest(more = {}) {
          const guest = new Guest({ socket, memory, pageSize, ...more });
          guests.push(guest);
          await guest.handedOver;
          return guest;
        },
      });
    } finally {
      kill();
      process.off('exit', kill);
      await Promise.all(guests.map(({ ended }) => ended));
      server.kill();
      await server.ended;
    }
  });
}
