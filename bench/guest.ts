// The guest (bench/serve/guest.c): a process of its own, independent of its handler. In each run it hands its memory
// over, then makes all touches.
//
// Rule: a run with a wrong page throws instead of counting.

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

/** Pages that the balloon thread of a guest gives back to the kernel at once. */
const BALLOON = 16;
const SOURCE = fileURLToPath(new URL('../../bench/serve/guest.c', import.meta.url));
const HUGE_PAGES = '/proc/sys/vm/nr_hugepages';

export interface GuestOptions extends Pick<Cell, 'threads' | 'pageSize' | 'balloon'> {
  /** `spread`: pages at equal distances. */
  readonly order: Cell['order'] | 'spread';
  readonly pages: number;
  /** The number of touches; default: one for each page. */
  readonly touches?: number;
  /** The processor that its threads run on; negative: any. */
  readonly cpu: number;
  /** Mappings of its memory, each handed over as a region; default 1. */
  readonly regions?: number;
  /** Whether the guest gives all of its memory back to the kernel at the end, and writes it again. */
  readonly reuse?: boolean;
  /** Whether the memory file has holes, whose pages are zeros. */
  readonly sparse?: boolean;
  /** Whether it maps the memory that the server's guests share. */
  readonly share?: boolean;
  /** Milliseconds that the guest stays after its last touch. */
  readonly holdMs?: number;
}

/** The results of a run. */
export interface Told {
  /** Distinct pages that were touched. */
  pages: number;
  ns: number;
  p50Ns: number;
  p99Ns: number;
  p999Ns: number;
  maxNs: number;
  /** Time from the hand-off until the first thread has its first page. */
  firstNs: number;
  /** Time in which the guest writes the memory again that it gave back. */
  reuseNs: number;
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

  /** Like `run`, but other guests can run at the same time. */
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
  const { regions = 1, reuse, sparse, share, holdMs = 0 } = options;
  const numbers = {
    pages,
    touches,
    threads,
    order,
    'page-size': pageSize,
    balloon: balloon ? BALLOON : 0,
    cpu,
    regions,
    reuse: reuse ? 1 : 0,
    sparse: sparse ? 1 : 0,
    share: share ? 1 : 0,
    hold: holdMs,
  };
  return Object.entries({ socket, ...numbers }).flatMap(([name, value]) => [`--${name}`, `${value}`]);
}

function told(status: number | null, stdout: string, stderr: string): Told {
  if (status === 0) return JSON.parse(stdout);
  throw new WrongAnswer(`a guest that was served ended with ${status}: ${stderr}${stdout}`);
}

/** Writes the memory file of a guest: each 4 KiB block ends with its number, as guest.c expects. */
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
 * Reserves huge pages until the process ends. Returns why that failed, or undefined. The kernel needs one extra page:
 * if it cannot copy at once, it first fills a page of its own.
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

/** The number of pages of a guest: `pages` small ones, or fewer if they are huge. */
export function pagesOf(pages: number, pageSize: number): number {
  return pageSize === HUGE_PAGE ? Math.min(Math.max(pages / 256, 16), 64) : pages;
}

/** A process that keeps a processor busy. */
export function keepBusy(): ChildProcess {
  return spawn(process.execPath, ['-e', 'for(;;);'], { stdio: 'ignore' });
}
