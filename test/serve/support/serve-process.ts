// Runs `uffd serve` and monitors as processes of their own, and writes memory files for them.

import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, ftruncateSync, openSync, readdirSync, readFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Guest } from '../../../src/cli/guest/guest.js';
import type { GuestOptions } from '../../../src/cli/guest/protocol.js';
import { embed } from '../../../src/embed.js';
import { BUNDLED, commandLine, type Ended, inDirectory } from '../../cli/support/command.js';
import { generator } from '../../support/harness.js';
import { needKernel } from '../../support/real-kernel.js';

/** With the bundle, guests and serving threads start in half the time that separate module files take. */
embed({ entry: BUNDLED });

/** Page size of the guests in bytes. */
export const P = 4096;

/** The fields of --stats-json that tests use. */
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

/** Writes a memory file of random pages. Pages for which `hole` is true become holes. */
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
 * Serves the first monitor with `uffd serve --once`, which must end with exit code 0. `make` writes the memory file;
 * `monitor` returns the monitor's command line for a socket and a memory file.
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

/** Counts the threads of a process that wait until their fault is resolved or their remove event is read. */
export function waitingFor(pid: number): number {
  const places = readdirSync(`/proc/${pid}/task`).map((tid) => {
    try {
      return readFileSync(`/proc/${pid}/task/${tid}/wchan`, 'utf8');
    } catch {
      return '';
    }
  });
  return places.filter((place) => place.includes('userfault')).length;
}

/** The states of the threads of a process, a letter each, as in proc(5). */
function statesOf(pid: number): string[] {
  return readdirSync(`/proc/${pid}/task`).flatMap((tid) => {
    try {
      const stat = readFileSync(`/proc/${pid}/task/${tid}/stat`, 'latin1');
      return stat.slice(stat.lastIndexOf(')') + 2, stat.lastIndexOf(')') + 3);
    } catch {
      // The thread has ended.
      return [];
    }
  });
}

/**
 * Resolves when a server has started and warmed up all threads that it needs now: for a second, all of its threads sleep
 * and it has the same descriptors.
 */
export async function atRest(pid: number): Promise<void> {
  for (let before: string | undefined; ; ) {
    const sleeps = statesOf(pid).every((state) => state === 'S');
    const now = sleeps ? readdirSync(`/proc/${pid}/fd`).join() : undefined;
    if (sleeps && now === before) return;
    before = now;
    await sleep(sleeps ? 1000 : 20);
  }
}

/** A child process, which is killed when this process ends. */
export class Running {
  readonly ended: Promise<Ended>;
  readonly #child: ChildProcess;
  readonly #output = { stdout: '', stderr: '' };
  /** Called when the process has written more, and when it has ended. */
  #changed = (): void => {};

  constructor([program, ...args]: readonly string[], env: NodeJS.ProcessEnv = process.env) {
    const child = spawn(program as string, args, { env, stdio: ['ignore', 'pipe', 'pipe'] });
    this.#child = child;
    for (const name of ['stdout', 'stderr'] as const) {
      child[name].setEncoding('utf8').on('data', (text: string) => {
        this.#output[name] += text;
        this.#changed();
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
      () => this.#changed(),
      () => this.#changed(),
    );
  }

  get pid(): number {
    return this.#child.pid as number;
  }

  /** Everything that the process has written so far. */
  get output(): { readonly stdout: string; readonly stderr: string } {
    return this.#output;
  }

  /** Resolves once the output contains `text`; rejects if the process ends before that. */
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
        this.#changed = resolve;
      });
    }
  }

  signal(name: 'SIGCONT' | 'SIGTERM'): void {
    this.#child.kill(name);
  }

  /** Stops all threads of the process until SIGCONT. Until the first of them has got the signal, the others run on. */
  async halt(): Promise<void> {
    this.#child.kill('SIGSTOP');
    while (!statesOf(this.pid).every((state) => state === 'T')) await sleep(1);
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }
}

/** Runs `uffd serve` in a process of its own, with guests. All of them have ended when this resolves. */
export async function servingApart(
  { pages, pageSize = P, options = [] }: { pages: number; pageSize?: number; options?: readonly string[] },
  body: (scene: {
    server: Running;
    socket: string;
    /** Starts a guest, and waits until it has handed its memory over. */
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
