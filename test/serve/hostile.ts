// `uffd serve` among hostile and broken clients (test/guest/hostile.c): kinds of them by seed, some at a time.
//
// Invariants, after each batch of tries:
//  - The server lives. It answers /healthz in bounded time, during the batch too.
//  - Descriptors are as before, and none of the clients' is left: each of theirs is marked with O_APPEND, which its copies
//    share. Threads are as before, but for those that are kept for the next guests. It has no children.
//  - A guest of an honest monitor, begun in the middle of it, is served to its end, with the right bytes; and one after it.

import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { get } from 'node:http';
import { createServer } from 'node:net';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { commandLine, inDirectory } from '../cli/command.js';
import { compileProgram, needKernelFaults } from '../kernel/support.js';
import { Running, writeMemory } from './process.js';

/** Bounds for what never ends. None says how fast anything is. */
const HEALTH_MS = 30_000;
const SETTLE_MS = 60_000;
const GUEST_S = 120;
/** Looks at a server that rests. */
const LOOKS = 10;

const PAGES = 256;
const SOCKETS = 3;
/** Sessions' threads that the server keeps for the next guests (src/serve/threads.ts). */
const KEPT_THREADS = 16;
const O_APPEND = 0o2000;

export interface SiegeOptions {
  readonly seed: number;
  /** Number of the first try; by it and the seed every try is chosen. */
  readonly first?: number;
  readonly tries: number;
  /** Tries between two looks at the server. */
  readonly batch: number;
  /** Clients at a time. */
  readonly jobs?: number;
  /** Plays only these kinds; default: all. */
  readonly kind?: string;
  /** More options of `uffd serve`. */
  readonly options?: readonly string[];
  /** Called after each batch. */
  readonly tell?: (siege: Progress) => void;
}

export interface Progress {
  /** Tries until now. */
  readonly tries: number;
  readonly kinds: Readonly<Record<string, number>>;
  /** Processes of clients that the server has killed. */
  readonly killed: number;
  /** Of the server: bytes of its own memory. */
  readonly memory: number;
}

/** Plays so many tries against a server of its own. Rejects when an invariant does not hold. */
export async function besiege({
  seed,
  first = 0,
  tries,
  batch,
  jobs = 6,
  kind,
  options = [],
  tell,
}: SiegeOptions): Promise<Progress> {
  needKernelFaults();
  const hostile = compileProgram('../guest/hostile.c');
  const monitor = compileProgram('../guest/monitor.c');
  const port = await freePort();
  let progress: Progress = { tries: 0, kinds: {}, killed: 0, memory: 0 };
  await inDirectory(async (directory) => {
    const vms = Array.from({ length: SOCKETS }, (_, index) => ({
      socket: join(directory, `${index}.sock`),
      memory: join(directory, `${index}.mem`),
    }));
    for (const [index, { memory }] of vms.entries()) writeMemory(memory, PAGES, seed + index);
    const log = join(directory, 'log');
    const places = vms.flatMap(({ socket, memory }) => ['--vm', `socket=${socket},memory=${memory}`]);
    const words = commandLine([
      'serve',
      ...places,
      '--metrics',
      `${port}`,
      '--hand-off-timeout',
      '2000',
      ...options,
    ]);
    const server = new Running(['sh', '-c', 'exec "$@" 2>"$0"', log, ...words]);
    let guests = 0;
    const guest = async (): Promise<void> => {
      const { socket, memory } = vms[guests++ % SOCKETS] as (typeof vms)[number];
      const one = new Running([monitor, '-t', '2', '-r', '1', '-b', '-l', `${GUEST_S}`, socket, memory]);
      const { code, stdout, stderr } = await one.ended;
      if (code === 0) return;
      const told = textOf(log)
        .split('\n')
        .filter((line) => line.includes(`"pid":${one.pid},`));
      throw new Error(
        `an honest guest was not served to its end: ${code} ${stdout}${stderr}\n${told.join('\n')}`,
      );
    };
    const attack = (from: number, count: number): Running => {
      const only = kind === undefined ? [] : ['-k', kind];
      const flags = [...only, '-j', `${jobs}`, '-p', `${server.pid}`, '-m', `${port}`];
      const where = [`${seed}`, `${from}`, `${count}`, ...vms.map(({ socket }) => socket)];
      return new Running([hostile, ...flags, ...where]);
    };
    try {
      await server.says(`ready: ${vms.at(-1)?.socket}\n`);
      await Promise.all([guest(), guest(), guest()]);
      const before = await atRest(server.pid, port);
      while (progress.tries < tries) {
        const count = Math.min(batch, tries - progress.tries);
        const what = `seed ${seed}, tries ${first + progress.tries} to ${first + progress.tries + count - 1}`;
        const clients = attack(first + progress.tries, count);
        try {
          // What they hold of connections they keep, until the server was seen to do without.
          await watched(port, server, [clients.says('\n'), guest()]);
          await guest();
          progress = together(progress, count, clients.output.stdout, memoryOf(server.pid));
          clients.kill();
          await clients.ended;
          await Promise.race([settled(server.pid, (now) => isAsBefore(now, before), port), ended(server)]);
          await guest();
        } catch (error) {
          throw new Error(`${what}: ${(error as Error).message}\n${lastLines(log)}`, { cause: error });
        } finally {
          clients.kill();
        }
        tell?.(progress);
      }
    } finally {
      server.kill();
      await server.ended;
    }
  });
  return progress;
}

/** Rejects when it has ended. */
async function ended(server: Running): Promise<never> {
  const { code } = await server.ended;
  throw new Error(`the server has ended: ${code}`);
}

/** Waits for all, while the server answers; rejects at once when it has ended. */
async function watched(port: number, server: Running, both: readonly Promise<void>[]): Promise<void> {
  const over = new AbortController();
  const died = ended(server);
  const asked = (async () => {
    while (!over.signal.aborted) {
      await healthy(port);
      await sleep(100);
    }
  })();
  // Each is looked at until the race is over.
  died.catch(() => {});
  asked.catch(() => {});
  try {
    await Promise.race([Promise.all(both), died, asked.then(() => new Promise<never>(() => {}))]);
  } finally {
    over.abort();
  }
}

/** Resolves when /healthz is answered with 200. A connection that is refused is tried again: many are open. */
async function healthy(port: number): Promise<void> {
  const end = performance.now() + HEALTH_MS;
  let why = 'nothing was tried';
  while (performance.now() < end) {
    const answer = await ask(port, '/healthz', end - performance.now());
    if (answer.startsWith('200')) return;
    why = answer;
    await sleep(50);
  }
  throw new Error(`/healthz was not answered within ${HEALTH_MS} ms: ${why}`);
}

/** The status and the text of an answer, or why there is none. */
export function ask(port: number, path: string, limitMs: number): Promise<string> {
  return new Promise((resolve) => {
    const request = get({ port, path, host: '127.0.0.1', agent: false, timeout: limitMs }, (response) => {
      let text = `${response.statusCode} `;
      response.setEncoding('utf8').on('data', (more: string) => {
        text += more;
      });
      response.on('end', () => resolve(text)).on('error', ({ message }) => resolve(message));
    });
    request.on('timeout', () => request.destroy(new Error('no answer')));
    request.on('error', ({ message }) => resolve(message));
  });
}

// ---- what a process holds ----------------------------------------------------------------------------------

interface Census {
  /** Descriptors by what they are of; but for those that each thread has of its own. */
  readonly descriptors: Readonly<Record<string, number>>;
  /** What clients have sent and was not closed. */
  readonly left: readonly string[];
  readonly threads: number;
  readonly children: string;
  readonly sessions: number;
}

async function census(pid: number, port: number): Promise<Census> {
  const descriptors: Record<string, number> = {};
  const left: string[] = [];
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    const [target, info] = [linkOf(`/proc/${pid}/fd/${fd}`), textOf(`/proc/${pid}/fdinfo/${fd}`)];
    const name = basename(target.replace(/:?\[\d+\]$/, ''));
    if (Number.parseInt(/^flags:\s*(\d+)/m.exec(info)?.[1] ?? '0', 8) & O_APPEND) left.push(target);
    else if (!/^(anon_inode:\[(event(poll|fd)|io_uring)\]|pipe)$/.test(name))
      descriptors[name] = (descriptors[name] ?? 0) + 1;
  }
  const metrics = await ask(port, '/metrics', HEALTH_MS);
  return {
    descriptors,
    left,
    threads: readdirSync(`/proc/${pid}/task`).length,
    children: textOf(`/proc/${pid}/task/${pid}/children`).trim(),
    sessions: Number(/^uffd_guests (\d+)$/m.exec(metrics)?.[1] ?? Number.NaN),
  };
}

/** What it holds when nobody is served: the least of several looks, since the looks themselves open connections. */
async function atRest(pid: number, port: number): Promise<Census> {
  let least = await settled(pid, (now) => now.sessions === 0, port);
  for (let look = 0; look < LOOKS; look++) {
    await sleep(50);
    const now = await census(pid, port);
    if (sum(now.descriptors) < sum(least.descriptors)) least = now;
  }
  return least;
}

/** Waits until the server is as it should be. */
async function settled(pid: number, right: (now: Census) => boolean, port: number): Promise<Census> {
  const end = performance.now() + SETTLE_MS;
  for (;;) {
    await healthy(port);
    const now = await census(pid, port);
    if (right(now)) return now;
    if (performance.now() > end) throw new Error(`it does not become as before: ${JSON.stringify(now)}`);
    await sleep(50);
  }
}

function isAsBefore(now: Census, before: Census): boolean {
  return (
    now.left.length === 0 &&
    now.sessions === 0 &&
    now.children === '' &&
    now.threads <= before.threads + KEPT_THREADS &&
    Object.entries(now.descriptors).every(([name, count]) => count <= (before.descriptors[name] ?? 0))
  );
}

function sum(counts: Readonly<Record<string, number>>): number {
  return Object.values(counts).reduce((all, count) => all + count, 0);
}

/** Bytes of a process that are its own. */
export function memoryOf(pid: number): number {
  return Number(/^RssAnon:\s*(\d+)/m.exec(textOf(`/proc/${pid}/status`))?.[1] ?? 0) * 1024;
}

function linkOf(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return 'gone';
  }
}

function textOf(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

function lastLines(log: string): string {
  return textOf(log).split('\n').slice(-15).join('\n');
}

function together(before: Progress, count: number, told: string, memory: number): Progress {
  const { kinds, killed } = JSON.parse(told) as Progress;
  const all: Record<string, number> = { ...before.kinds };
  for (const [name, much] of Object.entries(kinds)) all[name] = (all[name] ?? 0) + much;
  return { tries: before.tries + count, kinds: all, killed: before.killed + killed, memory };
}

/** A port of this machine that nothing listens at. */
export async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}
