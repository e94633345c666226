// Former differences between the simulated and the real kernel, each as the shortest program that showed it.

import { strict as assert } from 'node:assert';
import { suite } from '../support/harness.js';
import { needKernel } from '../support/real-kernel.js';
import { difference } from './support/compare.js';
import type { Step } from './support/program.js';

const test = suite('sim/regressions');

/** Feature bits. */
const FORK = 1n << 1n;
const REMAP = 1n << 2n;
const REMOVE = 1n << 3n;
const UNMAP = 1n << 6n;
const WP_UNPOPULATED = 1n << 13n;

const part = (area: number, page: number, pages: number) => ({ area, page, pages });
const MISSING = 1;
const WP = 2;

const CASES: { says: string; features: bigint; steps: Step[] }[] = [
  {
    says: 'a move over the border of a mapping is refused before its target is unmapped',
    features: REMAP | REMOVE | UNMAP,
    steps: [
      { do: 'register', uffd: 0, mode: MISSING | WP, ...part(0, 0, 4) },
      { do: 'mremap', actor: 0, to: 0, newPages: 1, flags: 5, ...part(0, 3, 2) },
    ],
  },
  {
    says: 'a move that makes shorter may begin with more than one mapping',
    features: UNMAP,
    steps: [
      { do: 'register', uffd: 0, mode: MISSING | WP, ...part(0, 0, 3) },
      { do: 'mremap', actor: 2, to: 3, newPages: 1, flags: 0, ...part(0, 0, 5) },
    ],
  },
  {
    says: 'memory that was mapped otherwise stays a mapping of its own',
    features: 0n,
    steps: [
      { do: 'overlay', actor: 0, ...part(0, 4, 2) },
      { do: 'register', uffd: 0, mode: MISSING, ...part(0, 0, 6) },
      { do: 'mremap', actor: 1, to: 1, newPages: 4, flags: 5, ...part(0, 2, 3) },
    ],
  },
  {
    says: 'madvise goes on, message and all, with what was split off while it waited',
    features: FORK | REMAP | REMOVE | UNMAP,
    steps: [
      { do: 'register', uffd: 0, mode: WP, ...part(0, 0, 4) },
      { do: 'madvise', actor: 2, advice: 4, ...part(0, 1, 3) },
      { do: 'mprotect', actor: 1, protection: 0, ...part(0, 3, 2) },
      { do: 'take', uffd: 0, most: 8 },
      { do: 'take', uffd: 0, most: 8 },
    ],
  },
  {
    says: 'moving without REMAP takes away what watches the mapping that the new place becomes a part of',
    features: FORK | UNMAP,
    steps: [
      { do: 'register', uffd: 0, mode: MISSING, ...part(0, 0, 6) },
      { do: 'mremap', actor: 1, to: 0, newPages: 5, flags: 0, ...part(0, 5, 1) },
      { do: 'take', uffd: 0, most: 1 },
    ],
  },
  {
    says: 'MOVE sees a source without a page table before it looks at the target',
    features: FORK | REMOVE,
    steps: [
      { do: 'register', uffd: 0, mode: WP, ...part(0, 0, 5) },
      { do: 'read', actor: 0, by: 'kernel', ...part(0, 3, 1) },
      { do: 'move', uffd: 0, mode: 0, from: 1, fromPage: 3, ...part(0, 3, 2) },
    ],
  },
  {
    says: 'a move that keeps the old place moves several mappings too',
    features: UNMAP,
    steps: [
      { do: 'overlay', actor: 2, ...part(3, 1, 4) },
      { do: 'mremap', actor: 0, to: 1, newPages: 6, flags: 5, ...part(3, 1, 5) },
    ],
  },
  {
    says: 'mappings of a forked child that are no longer watched stay apart',
    features: REMAP | REMOVE,
    steps: [
      { do: 'register', uffd: 0, mode: MISSING | WP, ...part(0, 0, 4) },
      { do: 'fork', actor: 0 },
      { do: 'mremap', actor: 3, to: -1, newPages: 6, flags: 0, ...part(0, 1, 5) },
    ],
  },
  {
    says: 'a fill prepares its mapping for pages also where it is refused',
    features: REMAP,
    steps: [
      { do: 'register', uffd: 0, mode: MISSING, ...part(0, 0, 2) },
      { do: 'copy', uffd: 0, mode: 1, ...part(0, 3, 2) },
      { do: 'poison', uffd: 0, mode: 0, ...part(0, 1, 3) },
      { do: 'register', uffd: 0, mode: MISSING, ...part(0, 1, 5) },
      { do: 'copy', uffd: 0, mode: 0, ...part(0, 1, 5) },
    ],
  },
  {
    says: 'a write prepares its mapping for pages before it waits for one',
    features: UNMAP,
    steps: [
      { do: 'register', uffd: 0, mode: MISSING, ...part(0, 0, 4) },
      { do: 'move', uffd: 1, mode: 1, from: 1, fromPage: 1, ...part(0, 5, 1) },
      { do: 'write', actor: 0, by: 'kernel', value: 145, ...part(0, 0, 5) },
      { do: 'register', uffd: 0, mode: MISSING, ...part(0, 3, 3) },
      { do: 'zeropage', uffd: 0, mode: 1, ...part(0, 0, 5) },
    ],
  },
  {
    says: 'a marker of a mode that is off is dropped when its page is touched',
    features: REMAP | REMOVE | WP_UNPOPULATED,
    steps: [
      { do: 'register', uffd: 0, mode: WP, ...part(0, 0, 6) },
      { do: 'writeprotect', uffd: 0, mode: 1, ...part(0, 1, 5) },
      { do: 'register', uffd: 0, mode: MISSING, ...part(0, 0, 5) },
      { do: 'write', actor: 1, by: 'user', value: 136, ...part(0, 3, 3) },
    ],
  },
  {
    says: 'a move that shortens a mapping posts an event for each part, one after the other',
    features: UNMAP,
    steps: [
      { do: 'register', uffd: 0, mode: MISSING, ...part(0, 0, 6) },
      { do: 'mremap', actor: 0, to: 1, newPages: 1, flags: 1, ...part(0, 3, 3) },
      { do: 'take', uffd: 0, most: 1 },
      { do: 'take', uffd: 0, most: 2 },
    ],
  },
  {
    says: 'unregistering leaves write-protection whose mode was turned off before',
    features: WP_UNPOPULATED,
    steps: [
      { do: 'register', uffd: 0, mode: WP, ...part(0, 0, 6) },
      { do: 'writeprotect', uffd: 0, mode: 1, ...part(0, 3, 1) },
      { do: 'copy', uffd: 0, mode: 3, ...part(0, 4, 2) },
      { do: 'register', uffd: 0, mode: MISSING, ...part(0, 3, 3) },
      { do: 'unregister', uffd: 0, ...part(0, 3, 2) },
    ],
  },
  {
    says: 'what madvise has taken away is gone while it sleeps before the rest',
    features: REMOVE,
    steps: [
      { do: 'register', uffd: 0, mode: WP, ...part(1, 4, 1) },
      { do: 'write', actor: 1, by: 'user', value: 195, ...part(1, 2, 1) },
      { do: 'madvise', actor: 2, advice: 4, ...part(1, 1, 4) },
      { do: 'write', actor: 1, by: 'user', value: 142, ...part(1, 2, 1) },
    ],
  },
];

for (const { says, features, steps } of CASES) {
  test(says, () => {
    needKernel();
    assert.deepEqual(difference({ features, areas: 2, steps }), undefined);
  });
}

test.run();
