// Huge pages for tests: added to the system's pool, and given back whatever happens.
//
// Rules:
//  - The pool is counted up and down, never set to a number of ours: others may have pages in it.
//  - One test at a time, of all processes: two that count up at once would take each other's pages.

import { readFileSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { skip } from '../harness.js';

const POOL = '/proc/sys/vm/nr_hugepages';

/** A name that one process of the system can have, until it ends: a socket that is no file. */
const LOCK = '\0userfaultfd-test-huge-pages';

/** Bytes of a huge page of the pool that `withHugePages` adds to. */
export function hugePageSize(): number {
  const size = /^Hugepagesize:\s*(\d+) kB$/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1];
  return size ? Number(size) * 1024 : skip('this kernel has no huge pages');
}

/**
 * Runs a body with `count` huge pages more in the system's pool; it is given their size in bytes. Skips where they
 * cannot be had, saying why.
 */
export async function withHugePages(
  count: number,
  body: (pageSize: number) => void | Promise<void>,
): Promise<void> {
  const pageSize = hugePageSize();
  const lock = await locked();
  const before = pool();
  let added = 0;
  const giveBack = (): void => {
    if (added > 0) writeFileSync(POOL, String(pool() - added));
  };
  // An error that nobody catches ends the process before it gets to `finally`.
  process.once('exit', giveBack);
  try {
    reserve(before + count);
    added = pool() - before;
    if (added < count) skip(`only ${added} of ${count} huge pages can be had: memory is short, or in pieces`);
    await body(pageSize);
  } finally {
    process.off('exit', giveBack);
    giveBack();
    lock.close();
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
