// The possible states of a page of private anonymous memory (docs/kernel.md: PTE), how to produce them, and how to
// recognize them: by pagemap, and by a touch if pagemap is ambiguous and the touch cannot sleep.

import { strict as assert } from 'node:assert';
import { type Answer, PROTECT, type Uffd, WITH_WP } from './calls.js';
import { P } from './support.js';
import type { Actor } from './world.js';

/** `shared`: present, and not exclusive, because a forked process maps the same page. */
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

/** Means to produce a state. All of them act on the page at `address`, which was missing before. */
export interface Means {
  uffd: Uffd;
  thread: Actor;
  /** A page to copy from. */
  bytes: bigint;
}

const done = (answer: Answer): void => assert.deepEqual(answer, ['ok', P]);

const BRING: Readonly<Record<State, (address: bigint, means: Means) => void>> = {
  none: () => {},
  zero: (address, { uffd }) => done(uffd.zeropage(address, P)),
  'zero+wp': (address, { uffd }) => {
    done(uffd.zeropage(address, P));
    assert.equal(uffd.writeprotect(address, P, PROTECT), 'ok');
  },
  page: (address, { uffd, bytes }) => done(uffd.copy(address, bytes, P)),
  'page+wp': (address, { uffd, bytes }) => done(uffd.copy(address, bytes, P, WITH_WP)),
  shared: (address, { uffd, bytes, thread }) => {
    done(uffd.copy(address, bytes, P));
    thread.fork();
    assert.equal(typeof thread.outcome(), 'number');
  },
  'wp-marker': (address, { uffd }) => assert.equal(uffd.writeprotect(address, P, PROTECT), 'ok'),
  poison: (address, { uffd }) => done(uffd.poison(address, P)),
  guard: (address, { thread }) => assert.equal(thread.madvise(address, P, MADV_GUARD_INSTALL), 0),
};

export function bring(state: State, address: bigint, means: Means): void {
  BRING[state](address, means);
}

/** The state of a page, and its first byte if that is not 0. */
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
