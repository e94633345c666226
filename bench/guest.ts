// The guest (bench/serve/guest.c): a process of its own that knows nothing of who serves it. Each run of it is a
// hand-off and every touch that it was told to make.
//
// Rule: a run in which it found a wrong page does not count, it throws.

import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, readFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import { type Cell, HUGE_PAGE, SMALL_PAGE } from './cells.js';
import { WrongAnswer } from './faults.js';
import { setUntilExit } from './machine.js';
import { compileC } from './native.js';

/** Pages that another thread of the guest gives back at once, where there is a balloon. */
const BALLOON = 16;
const SOURCE = fileURLToPath(new URL('../../bench/serve/guest.c', import.meta.url));
const HUGE_PAGES = '/proc/sys/vm/nr_hugepages';

export interface GuestOptions extends Pick<Cell, 'threads' | 'order' | 'pageSize' | 'balloon'> {
  readonly pages: number;
  /** How many touches; else one for each page. */
  readonly touches?: number;
  /** Where its threads run; negative: anywhere. */
  readonly cpu: number;
}

/** What a guest tells of a run. */
export interface Told {
  /** Different pages that were touched. */
  pages: number;
  ns: number;
  p50Ns: number;
  p99Ns: number;
  p999Ns: number;
}

export class Guest {
  readonly #program: string;

  constructor(folder: string) {
    this.#program = join(folder, 'guest');
    const reason = compileC(SOURCE, this.#program, ['-O2', '-pthread']);
    if (reason !== undefined) throw new Error(reason);
  }

  run(socket: string, options: GuestOptions): Told {
    const { stdout, stderr, status } = spawnSync(this.#program, words(socket, options), { encoding: 'utf8' });
    return told(status, stdout, stderr);
  }

  /** The same, beside others. */
  async runBeside(socket: string, options: GuestOptions): Promise<Told> {
    const child = spawn(this.#program, words(socket, options), { stdio: ['ignore', 'pipe', 'pipe'] });
    const [[status], out, error] = await Promise.all([
      once(child, 'exit'),
      text(child.stdout),
      text(child.stderr),
    ]);
    return told(status, out, error);
  }
}

function words(socket: string, options: GuestOptions): string[] {
  const { pages, touches = pages, threads, order, pageSize, balloon, cpu } = options;
  const numbers = {
    pages,
    touches,
    threads,
    order,
    'page-size': pageSize,
    balloon: balloon ? BALLOON : 0,
    cpu,
  };
  return Object.entries({ socket, ...numbers }).flatMap(([name, value]) => [`--${name}`, `${value}`]);
}

function told(status: number | null, stdout: string, stderr: string): Told {
  if (status === 0) return JSON.parse(stdout);
  throw new WrongAnswer(`a guest that was served ended with ${status}: ${stderr}${stdout}`);
}

/** Writes memory for a guest: every 4 KiB end with their number, as guest.c expects it. */
export function writeMemory(file: string, bytes: number): void {
  const page = Buffer.alloc(SMALL_PAGE);
  const descriptor = openSync(file, 'w');
  for (let number = 1; number <= bytes / SMALL_PAGE; number++) {
    page.fill(number % 251);
    page.writeUInt32LE(number, SMALL_PAGE - 4);
    writeSync(descriptor, page);
  }
  closeSync(descriptor);
}

/**
 * Sets huge pages aside until the process ends. Why there are none, or nothing. The kernel needs one more than there
 * will be: where it cannot copy at once it fills a page of its own first.
 */
export function reserveHugePages(guestPages: number): string | undefined {
  const count = guestPages + 1;
  try {
    const before = setUntilExit(HUGE_PAGES, (reserved) => reserved + count);
    const there = Number(readFileSync(HUGE_PAGES, 'utf8')) - before;
    return there >= count ? undefined : `${there} of ${count} huge pages could be had`;
  } catch (error) {
    return (error as Error).message;
  }
}

/** How many pages a guest has, if it is to have that many small ones. */
export function pagesOf(pages: number, pageSize: number): number {
  return pageSize === HUGE_PAGE ? Math.min(Math.max(pages / 256, 16), 64) : pages;
}

/** A process that does nothing, as fast as it can. */
export function keepBusy(): ChildProcess {
  return spawn(process.execPath, ['-e', 'for(;;);'], { stdio: 'ignore' });
}
