// Random worlds: what a seed decides beside the run itself. The handler is right, so nothing may be broken in them.

import type { Feature } from '../../src/index.js';
import { INJECTIONS, type Inject, Random } from '../../src/sim/index.js';
import { answerFromSource, type SimulateOptions } from '../../src/testing/index.js';
import { TraceWriter } from '../../src/trace/index.js';

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

/** What these worlds have: the others want memory of another kind, or a handler of another kind. */
export const INJECTED = INJECTIONS.filter((what) => what !== 'split' && what !== 'dry');

/** Everything that can go wrong, now and then. */
export const ALL: Inject = Object.fromEntries(
  INJECTED.map((what) => [what, what === 'exit' || what === 'exec' ? 0.002 : 0.04]),
);

/** A world that the seed decides. */
export function randomWorld(seed: number, inject: Inject = ALL): SimulateOptions {
  const random = new Random(seed ^ 0x5eed);
  const pick = <T>(list: readonly T[]): T => list[random.below(list.length)] as T;
  const wait = pick(WAITS);
  // A child is served by the same thread, which must not be one that blocks.
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
    // A loop that spins looks after the watched process every 32,768 rounds, and may be told nothing of it.
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
