// Random worlds: a seed decides their options as well as the run. The handler is correct, so no invariant may break.

import type { Feature } from '../../../src/index.js';
import { INJECTIONS, type Inject, Random } from '../../../src/sim/index.js';
import { answerFromSource, type SimulateOptions } from '../../../src/testing/index.js';
import { TraceWriter } from '../../../src/trace/index.js';

const WAITS = ['poll', 'block', 'spin', 'adaptive'] as const;

const FEATURES: Feature[][] = [
  [],
  ['event-remove'],
  ['event-remove', 'thread-id'],
  ['event-remove', 'event-unmap'],
  ['event-remove', 'event-unmap', 'event-remap'],
  ['event-remove', 'event-unmap', 'event-remap', 'event-fork'],
  ['event-remove', 'pagefault-flag-wp'],
  ['event-remove', 'exact-address'],
];

/** The injections of these worlds. `split` and `dry` need another kind of memory or handler. */
export const INJECTED = INJECTIONS.filter((what) => what !== 'split' && what !== 'dry');

/** All of these injections, each with a small probability. */
export const ALL: Inject = Object.fromEntries(
  INJECTED.map((what) => [what, what === 'exit' || what === 'exec' ? 0.002 : 0.04]),
);

/** A world that the seed decides. */
export function randomWorld(seed: number, inject: Inject = ALL): SimulateOptions {
  const random = new Random(seed ^ 0x5eed);
  const pick = <T>(list: readonly T[]): T => list[random.below(list.length)] as T;
  const wait = pick(WAITS);
  // The same thread serves forked children, so its loop must not be one that blocks.
  const features = pick(FEATURES).filter((feature) => wait === 'poll' || feature !== 'event-fork');
  const later = wait === 'poll' && random.chance(0.5);
  const around = 1 + random.below(4);
  return {
    seed,
    wait,
    features,
    inject,
    pages: 2 + random.below(6),
    threads: 2 + random.below(3),
    watched: pick(['own', 'another'] as const),
    mode: features.includes('pagefault-flag-wp') ? ['missing', 'write-protect'] : 'missing',
    preemption: pick([0.1, 0.3, 0.6]),
    // A spinning loop checks the watched process only every 32,768 rounds, so it may miss the exit until then.
    patienceMs: wait === 'spin' ? 20_000 : 5_000,
    handler: (world) => answerFromSource(world, { later, around }),
  };
}

/** A trace in memory. */
export function memoryTrace(): { record: TraceWriter; bytes(): Uint8Array } {
  const blocks: Uint8Array[] = [];
  const record = new TraceWriter({ write: (bytes) => void blocks.push(bytes.slice()), close() {} });
  return { record, bytes: () => Buffer.concat(blocks) };
}
