// The pager in simulated worlds: threads read and write at random while the source and the target fail, and the
// kernel answers in every way that Linux may.
//
// UFFD_SEEDS=20000 runs more worlds of each kind, and UFFD_SEED is the first seed.

import type { Inject } from '../../src/sim/index.js';
import { seed, suite } from '../support/harness.js';
import { type PagerWorld, runWorld } from './support/world.js';

const test = suite('pager/worlds');

const SEEDS = Number(process.env.UFFD_SEEDS ?? 25);
const LIMIT_MS = Math.max(60_000, SEEDS * 300);

/** Every disturbance that does not end the process. */
const ALL: Inject = {
  eagain: 0.05,
  partial: 0.1,
  eintr: 0.03,
  enomem: 0.03,
  repeat: 0.05,
  wake: 0.02,
  signal: 0.02,
  short: 0.1,
  split: 0.01,
};

/** `worlds`: how many are run, as a part of the others. */
const KINDS: Record<string, Omit<PagerWorld, 'seed'> & { worlds?: number }> = {
  'a remote file, read at random': { readFailure: 0.1 },
  'a remote file, read in order': { sequential: true, blocks: 24, resident: 16, readFailure: 0.05 },
  'a local file': { immediate: true, readFailure: 0.1 },
  'a local file that is written to': { immediate: true, writable: true, writeFailure: 0.1, actions: 50 },
  'written to, with commands': { immediate: true, writable: true, commands: true, resident: 6, actions: 50 },
  'read, with commands': { commands: true, resident: 6 },
  'blocks of one page': { blockPages: 1, blocks: 20, resident: 5, writable: true, immediate: true },
  'a source that fails for good': {
    readFailure: 0.4,
    permanent: 0.3,
    deadlineMs: 3,
    commands: true,
    resident: 6,
  },
  'a disk that fails for good': {
    ...{ readFailure: 0.3, permanent: 0.3, deadlineMs: 3, commands: true, resident: 6 },
    ...{ immediate: true, writable: true, writeFailure: 0.1 },
  },
  'a limit that is shared': {
    ...{ budget: true, blocks: 40, resident: 24, commands: true, writable: true, immediate: true },
    ...{ actions: 50, writeFailure: 0.1 },
  },
  'a shared limit, and a remote file': {
    ...{ budget: true, blocks: 40, resident: 24, commands: true, actions: 50, readFailure: 0.1 },
  },
  'an overlay of a local file': {
    ...{ to: 'overlay', immediate: true, writable: true, readFailure: 0.1, writeFailure: 0.1 },
    ...{ commands: true, resident: 6, actions: 50 },
  },
  'an overlay of a remote file': {
    ...{ to: 'overlay', writable: true, readFailure: 0.2, writeFailure: 0.1, commands: true, resident: 6 },
    ...{ actions: 50 },
  },
  'an overlay of a remote file that fails for good': {
    ...{ to: 'overlay', writable: true, readFailure: 0.3, permanent: 0.3, deadlineMs: 3, commands: true },
    ...{ resident: 6, actions: 50 },
  },
  'a sink that is slow and fails': {
    ...{ to: 'sink', writable: true, readFailure: 0.1, writeFailure: 0.2, commands: true, resident: 6 },
    ...{ actions: 50 },
  },
  'a slow sink, and pinned memory': {
    ...{ to: 'sink', writable: true, commands: true, resident: 6, blocks: 8, actions: 80, pins: true },
  },
  'a sink, and blocks of one page': {
    ...{ to: 'sink', writable: true, writeFailure: 0.1, blockPages: 1, blocks: 20, resident: 5, actions: 50 },
  },
  'a source that does not answer': {
    ...{ stall: 0.2, deadlineMs: 2, readFailure: 0.1, commands: true, resident: 6 },
  },
  'a source that does not answer, in order': {
    ...{ stall: 0.1, deadlineMs: 2, sequential: true, blocks: 24, resident: 16, commands: true },
  },
  // Each of these worlds takes as long as fifty others.
  'more is asked for than the table of blocks holds': {
    storm: 2000,
    blocks: 2100,
    resident: 16,
    worlds: 0.04,
  },
  'slow and written to': { writable: true, readFailure: 0.1, writeFailure: 0.1, commands: true, resident: 6 },
};

for (const [name, { worlds = 1, ...options }] of Object.entries(KINDS)) {
  for (const [how, inject] of [
    ['', undefined],
    [', with all injections', ALL],
  ] as const) {
    test(
      `${name}${how}`,
      async () => {
        const first = seed();
        for (let number = 0; number < SEEDS * worlds; number++) {
          await runWorld({ ...options, seed: first + number, ...(inject && { inject }) });
        }
      },
      LIMIT_MS,
    );
  }
}

test.run();
