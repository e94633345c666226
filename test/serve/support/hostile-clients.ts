// `uffd serve` among hostile and broken clients (test/guest/hostile.c), several at a time. A seed chooses their kinds.
//
// Invariants, after each batch of tries:
//  - The server lives. It answers /healthz in bounded time, during the batch too.
//  - It has no more descriptors than before, and none from a client: clients mark theirs with O_APPEND, which the
//    server's copies share. It has no more threads, except those kept for the next guests. It has no children.
//  - Guests of honest monitors, one during the batch and others after it, are served to their end with the right bytes.

import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { get } from 'node:http';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { commandLine, inDirectory } from '../../cli/support/command.js';
import { freePort } from '../../support/free-port.js';
import { compileProgram, needKernelFaults } from '../../support/real-kernel.js';
import { Running, writeMemory } from './serve-process.js';

/** Limits for calls that never end; they do not measure speed. */
const HEALTH_MS = 30_000;
const SETTLE_MS = 60_000;
const GUEST_S = 120;
/** Samples of a server that serves no guest. */
const LOOKS = 10;

const PAGES = 256;
const SOCKETS = 3;
/** Idle session threads that the server keeps for the next guests (src/serve/worker-pool.ts). */
const KEPT_THREADS = 16;
const O_APPEND = 0o2000;

export interface SiegeOptions {
  readonly seed: number;
  /** Number of the first try. What a try does depends on its number and the seed. */
  readonly first?: number;
  readonly tries: number;
  /** Tries between two checks of the server. */
  readonly batch: number;
  /** Clients that run at the same time. */
  readonly jobs?: number;
  /** Plays only this kind; default: all. */
  readonly kind?: string;
  /** More options of `uffd serve`. */
  readonly options?: readonly string[];
  /** Called after each batch. */
  readonly onProgress?: (siege: Progress) => void;
}

export interface Progress {
  /** Tries so far. */
  readonly tries: number;
  readonly kinds: Readonly<Record<string, number>>;
  /** Client processes that the server has killed. */
  readonly killed: number;
  /** Bytes of the server's own memory. */
  readonly memory: number;
}

/** Plays a number of tries against a server of its own. Rejects if an invariant is broken. */
export async function besiege({
  seed,
  first = 0,
  tries,
  batch,
  jobs = 6,
  kind,
  options = [],
  onProgress,
}: SiegeOptions): Promise<Progress> {
  needKernelFaults();
  const hostile = compileProgram('guest/hostile.c');
  const monitor = compileProgram('guest/monitor.c');
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
      const lines = textOf(log)
        .split('\n')
        .filter((line) => line.includes(`"pid":${one.pid},`));
      throw new Error(
        `an honest guest was not served to its end: ${code} ${stdout}${stderr}\n${lines.join('\n')}`,
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
          // hostile.c keeps its ends of connections until it is killed: the server must do without their end.
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
        onProgress?.(progress);
      }
    } finally {
      server.kill();
      await server.ended;
    }
  });
  return progress;
}

/** Rejects when the server has ended. */
async function ended(server: Running): Promise<never> {
  const { code } = await server.ended;
  throw new Error(`the server has ended: ${code}`);
}

/** Waits for all of `both` while the server answers /healthz. Rejects at once if the server has ended. */
async function watched(port: number, server: Running, both: readonly Promise<void>[]): Promise<void> {
  const over = new AbortController();
  const died = ended(server);
  const asked = (async () => {
    while (!over.signal.aborted) {
      await healthy(port);
      await sleep(100);
    }
  })();
  // Neither may be an unhandled rejection after the race.
  died.catch(() => {});
  asked.catch(() => {});
  try {
    await Promise.race([Promise.all(both), died, asked.then(() => new Promise<never>(() => {}))]);
  } finally {
    over.abort();
  }
}

/** Resolves when /healthz answers 200. Retries a refused connection, since many are open. */
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

/** Resolves to the status and text of an answer, or to the reason why it is missing. */
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

// ---- resources of a process --------------------------------------------------------------------------------

interface Census {
  /** Descriptors counted by kind, without those that each thread has of its own. */
  readonly descriptors: Readonly<Record<string, number>>;
  /** Descriptors from clients that the server has not closed. */
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

/** The server's resources without guests: the least of several samples, since each sample opens a connection. */
async function atRest(pid: number, port: number): Promise<Census> {
  let least = await settled(pid, (now) => now.sessions === 0, port);
  for (let look = 0; look < LOOKS; look++) {
    await sleep(50);
    const now = await census(pid, port);
    if (sum(now.descriptors) < sum(least.descriptors)) least = now;
  }
  return least;
}

/** Waits until a sample of the server's resources is `right`. */
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

/** Bytes of a process's own memory: resident anonymous pages. */
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

function together(before: Progress, count: number, json: string, memory: number): Progress {
  const { kinds, killed } = JSON.parse(json) as Progress;
  const all: Record<string, number> = { ...before.kinds };
  for (const [name, much] of Object.entries(kinds)) all[name] = (all[name] ?? 0) + much;
  return { tries: before.tries + count, kinds: all, killed: before.killed + killed, memory };
}
