// The states a page of private anonymous memory can be in (kernel-semantics 4: PTE), how to bring one about, and
// how to tell which it is: by pagemap, and by a touch where that says too little and cannot sleep.

import { strict as assert } from 'node:assert';
import { PROTECT, type Uffd, WITH_WP } from './calls.js';
import { P } from './support.js';
import type { Actor } from './world.js';

/** `shared`: present, and not exclusive, because a forked process has it too. */
export type State =
  | 'none'
  | 'zero'
  | 'zero+wp'
  | 'page'
  | 'page+wp'
  | 'shared'
  | 'wp-marker'
  | 'poison'
  | 'guard';

const MADV_GUARD_INSTALL = 102;

/** What bringing a state about takes: all act on the page at `address`, which was not there before. */
export interface Means {
  uffd: Uffd;
  thread: Actor;
  /** A page to copy from. */
  bytes: bigint;
}

export function bring(state: State, address: bigint, { uffd, thread, bytes }: Means): void {
  const done = ['ok', P];
  switch (state) {
    case 'none':
      return;
    case 'zero':
      return assert.deepEqual(uffd.zeropage(address, P), done);
    case 'zero+wp':
      assert.deepEqual(uffd.zeropage(address, P), done);
      return assert.equal(uffd.writeprotect(address, P, PROTECT), 'ok');
    case 'page':
      return assert.deepEqual(uffd.copy(address, bytes, P), done);
    case 'page+wp':
      return assert.deepEqual(uffd.copy(address, bytes, P, WITH_WP), done);
    case 'shared':
      assert.deepEqual(uffd.copy(address, bytes, P), done);
      thread.fork();
      return assert.equal(typeof thread.outcome(), 'number');
    case 'wp-marker':
      return assert.equal(uffd.writeprotect(address, P, PROTECT), 'ok');
    case 'poison':
      return assert.deepEqual(uffd.poison(address, P), done);
    case 'guard':
      return assert.equal(thread.madvise(address, P, MADV_GUARD_INSTALL), 0);
  }
}

/** The state of a page, and its first byte where it has one that is not 0. */
export function stateOf(address: bigint, thread: Actor): string {
  const { present, swap, uffdWp, exclusive } = thread.page(address);
  const wp = uffdWp ? '+wp' : '';
  if (swap && uffdWp) return 'wp-marker';
  if (swap) {
    const touched = thread.read(address);
    return touched === 'SIGBUS' ? 'poison' : touched === 'SIGSEGV' ? 'guard' : `swap: ${touched}`;
  }
  if (!present) return `none${wp}`;
  const byte = thread.read(address) as number;
  const content = byte ? ` ${String.fromCharCode(byte)}` : '';
  if (exclusive) return `page${wp}${content}`;
  return byte ? `shared${wp}${content}` : `zero${wp}`;
}
