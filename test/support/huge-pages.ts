// Huge pages for tests: they are added to the system's pool, and removed from it in any case.
//
// Rules:
//  - The pool's size is raised and lowered, never set to a fixed number: other programs may use pages of it.
//  - Only one test of all processes at a time: two that raise the size at once would take each other's pages. A test of
//    a program that takes any free huge page needs its turn, too.

import { readFileSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { skip, untimed } from './harness.js';

const POOL = '/proc/sys/vm/nr_hugepages';
const COMPACT = '/proc/sys/vm/compact_memory';
/** Other tests may use much memory for a while. */
const TRIES = 10;
const PAUSE_MS = 300;

/** The name of an abstract socket, which only one process of the system can bind at a time. */
const LOCK = '\0userfaultfd-test-huge-pages';

/** The size in bytes of the huge pages that `withHugePages` adds. */
export function hugePageSize(): number {
  const size = field('Hugepagesize');
  return size ? Number(size) * 1024 : skip('this kernel has no huge pages');
}

/** A number of /proc/meminfo. */
function field(name: string): string | undefined {
  return new RegExp(`^${name}:\\s*(\\d+)`, 'm').exec(readFileSync('/proc/meminfo', 'utf8'))?.[1];
}

/** Runs a body while no other test uses huge pages. */
export async function aloneWithHugePages<T>(body: () => T | Promise<T>): Promise<T> {
  const lock = await untimed(locked);
  try {
    return await body();
  } finally {
    lock.close();
  }
}

/**
 * Runs a body with `count` more huge pages in the system's pool, and passes their size in bytes. Skips the test if the
 * system does not provide them, with the reason.
 */
export async function withHugePages(
  count: number,
  body: (pageSize: number) => void | Promise<void>,
): Promise<void> {
  const pageSize = hugePageSize();
  await aloneWithHugePages(async () => {
    const before = pool();
    // Pages that an ended test still had when it gave them back: of a larger pool they are the first.
    const wanted = count + Number(field('HugePages_Surp'));
    let added = 0;
    const giveBack = (): void => {
      if (added > 0) writeFileSync(POOL, String(Math.max(pool() - added, 0)));
    };
    // An uncaught error ends the process before `finally` runs.
    process.once('exit', giveBack);
    try {
      for (let tries = 0; tries < TRIES && added < wanted; tries++) {
        if (tries > 0) await compacted();
        reserve(before + wanted);
        added = pool() - before;
      }
      if (added < wanted)
        skip(`only ${added} of ${wanted} huge pages can be had: memory is short, or in pieces`);
      await body(pageSize);
    } finally {
      process.off('exit', giveBack);
      giveBack();
    }
  });
}

/** Waits a little, and has the kernel join free pages. */
async function compacted(): Promise<void> {
  await sleep(PAUSE_MS);
  try {
    writeFileSync(COMPACT, '1');
  } catch {
    // This kernel cannot.
  }
}

function pool(): number {
  return Number(readFileSync(POOL, 'utf8'));
}

function reserve(pages: number): void {
  try {
    writeFileSync(POOL, String(pages));
  } catch (error) {
    skip(`huge pages cannot be reserved: ${(error as Error).message}`);
  }
}

/** Waits until no other process holds the lock, and takes it. */
async function locked(): Promise<Server> {
  for (;;) {
    const server = createServer();
    const taken = await new Promise<boolean>((resolve) => {
      server.once('error', () => resolve(false));
      server.listen(LOCK, () => resolve(true));
    });
    if (taken) return server;
    await sleep(5);
  }
}
