// Handlers that rely on the library's guarantees, in simulated worlds with every disturbance that Linux can cause. The
// guarantees: a fill reaches the requested page, whatever lies around it; a page that was not installed never counts as
// present; page states follow the memory; and no fault is lost. Each of these worlds once failed within 2,000 seeds.
//
// UFFD_SEEDS=100000 runs more worlds of each kind, and UFFD_SEED is the first seed.

import { strict as assert } from 'node:assert';
import type { FaultHandler } from '../../src/index.js';
import { type Inject, Userfaultfd } from '../../src/sim/index.js';
import { answerFromSource, type SimulateOptions, simulate, type World } from '../../src/testing/index.js';
import { seed, suite } from '../support/harness.js';

const test = suite('testing/injected-worlds');

const SEEDS = Number(process.env.UFFD_SEEDS ?? 100);
const P = 4096;

/** Fills a page with zeros. The kernel has no zero page for huge pages, so those are copied. */
function zero(world: World, uffd: Userfaultfd, page: bigint): boolean {
  const size = world.pageSize;
  return (size > P ? uffd.copy(page, new Uint8Array(size)) : uffd.zero(page, size)) === size;
}

/** Tracks where the source's pages have moved, and relies on `pageState` for removed pages. */
function trusting(world: World, known?: ReadonlyMap<bigint, number>): FaultHandler {
  const size = BigInt(world.pageSize);
  const places = new Map(
    known ?? Array.from({ length: world.pages }, (_, index) => [world.page(index), index]),
  );
  return {
    pagefault({ page }, uffd) {
      const index = places.get(page);
      if (index === undefined || uffd.pageState(page) === 'removed') return zero(world, uffd, page);
      return uffd.copy(page, world.source(index)) === world.pageSize;
    },
    unmapped(start, end) {
      for (let page = start; page < end; page += size) places.delete(page);
    },
    remapped(from, to, length) {
      for (let offset = 0n; offset < BigInt(length); offset += size) {
        const index = places.get(from + offset);
        places.delete(from + offset);
        places.delete(to + offset);
        if (index !== undefined) places.set(to + offset, index);
      }
    },
    forked: (child) => void child.start(trusting(world, places)),
  };
}

/** Calls `what` at the third fault, and answers that fault only if `what` returns false. */
function atThird(inner: FaultHandler, what: (uffd: Userfaultfd, page: bigint) => boolean): FaultHandler {
  let faults = 0;
  return {
    ...inner,
    pagefault(fault, uffd) {
      if (++faults === 3 && what(uffd, fault.page)) return;
      return inner.pagefault(fault, uffd);
    },
  };
}

/** Hands its descriptor to a new object, as docs/serving.md says. */
function handingOver(world: World): FaultHandler {
  const inner = trusting(world);
  return atThird(inner, (uffd) => {
    const { ranges, features } = uffd;
    world.uffd = Userfaultfd.wrap(uffd.release(), { kernel: world.port, features, ranges });
    world.uffd.start(inner);
    return true;
  });
}

/** Unregisters all pages that are not present, except the faulting page, and registers them again. */
function watchingAgain(world: World): FaultHandler {
  return atThird(trusting(world), (uffd, page) => {
    for (let index = 0; index < world.pages; index++) {
      const other = world.page(index);
      if (other === page || uffd.pageState(other) === 'present') continue;
      uffd.unregister(other, world.pageSize);
      uffd.register(other, world.pageSize, world.modes);
    }
    return false;
  });
}

/** A handler that sets a source after each fault. By chance, the source also answers faults of removed pages. */
function sourced(world: World, window = 1): FaultHandler {
  const right = answerFromSource(world);
  const all = new Uint8Array(world.length);
  for (let index = 0; index < world.pages; index++) all.set(world.source(index), index * world.pageSize);
  return {
    pagefault(fault, uffd) {
      const is = right.pagefault(fault, uffd);
      const removed = world.chooser.chance(0.5) ? 'zeros' : 'ask';
      if (!uffd.closed) uffd.answerFrom(world.address, all.length, all, { window, removed });
      return is;
    },
    removed: (start, end) => right.removed?.(start, end),
  };
}

class Oops extends Error {}

/**
 * Wraps a handler so that its callbacks throw now and then: `pagefault` before it answers, the others after their work.
 */
function throwing(world: World, inner: FaultHandler): FaultHandler {
  const perhaps = (): void => {
    if (world.chooser.chance(0.2)) throw new Oops();
  };
  return {
    pagefault(fault, uffd) {
      perhaps();
      return inner.pagefault(fault, uffd);
    },
    answered: perhaps,
    removed(start, end) {
      inner.removed?.(start, end);
      perhaps();
    },
  };
}

/** A program that calls `poll` itself, and calls it again if a callback throws. */
function polling(): Partial<SimulateOptions> & Pick<SimulateOptions, 'handler' | 'prepare'> {
  let handler: FaultHandler | undefined;
  return {
    handler(world) {
      handler = throwing(world, sourced(world));
      return handler;
    },
    prepare({ uffd, kernel }) {
      try {
        uffd.poll(handler as FaultHandler);
      } catch (error) {
        if (!(error instanceof Oops)) throw error;
      }
      // The last living thread stands for the rest of the program: all others have ended.
      return kernel.threads.filter(({ idle }) => !idle).length > 1;
    },
  };
}

/** A handler that stops its loop now and then. A timer starts the loop again a little later. */
function stopping(world: World, inner: FaultHandler): FaultHandler {
  const perhaps = (): void => {
    if (!world.chooser.chance(0.2)) return;
    world.uffd.stop();
    world.kernel.after(0.01, () => void world.uffd.start(handler));
  };
  const handler: FaultHandler = {
    pagefault(fault, uffd) {
      perhaps();
      return inner.pagefault(fault, uffd);
    },
    answered: perhaps,
    removed(start, end) {
      perhaps();
      inner.removed?.(start, end);
    },
  };
  return handler;
}

/**
 * Write-protects all memory, and fills pages with zeros if the source has zeros. The kernel's markers are in the way.
 */
function protecting(world: World): FaultHandler {
  world.uffd.writeProtect(world.address, world.length, true);
  return {
    pagefault({ page, kind }, uffd) {
      if (kind === 'write-protect') return uffd.writeProtect(page, P, false) === P;
      const index = world.indexOf(page) ?? 0;
      const zeros = index % 2 === 0 || uffd.pageState(page) === 'removed';
      const done = zeros
        ? uffd.zero(page, P)
        : uffd.copy(page, world.source(index), P, { writeProtect: true });
      return done === P;
    },
  };
}

const SPLIT: Inject = { split: 0.05 };
const WAITS = ['poll', 'block', 'spin', 'adaptive'] as const;
const around = (world: World): FaultHandler => answerFromSource(world, { around: 4 });
const byState = (world: World): FaultHandler => trusting(world);

const WORLDS: Record<string, Partial<SimulateOptions> & Pick<SimulateOptions, 'handler'>> = {
  'a window over mappings that get borders': { inject: SPLIT, handler: around },
  'a window over two objects side by side': { pages: 8, objects: [3, 5], handler: around },
  'a window over a hole': { pages: 8, holes: [3], handler: around },
  'answers from memory over mappings that get borders': {
    inject: SPLIT,
    handler: (world) => sourced(world, 4),
  },
  'neighbours that wait, in mappings that get borders': {
    inject: SPLIT,
    threads: 5,
    handler: (world) => sourced(world),
  },
  'huge pages from a pool that runs dry': { memory: 'huge', inject: { dry: 0.02 }, handler: byState },
  'zeros over write-protected pages that are missing': {
    features: ['pagefault-flag-wp', 'wp-unpopulated', 'event-remove'],
    mode: ['missing', 'write-protect'],
    source: (index) => new Uint8Array(P).fill(index % 2),
    handler: protecting,
  },
  'a child of a process that has removed pages': {
    features: ['event-remove', 'event-fork'],
    handler: byState,
  },
  'a descriptor that is handed on': { mayClose: true, handler: handingOver },
  'pages that move onto others, without an event for the replaced pages': {
    features: ['event-remove', 'event-remap'],
    handler: byState,
  },
  'pages that move, land and are unmapped': {
    features: ['event-remove', 'event-remap', 'event-unmap', 'event-fork'],
    handler: byState,
  },
  'pages that are not watched for a moment': { handler: watchingAgain },
  'a wake that is interrupted': {
    inject: { 'eintr-wake': 0.3 },
    threads: 5,
    pages: 8,
    handler: (world) => sourced(world),
  },
  'callbacks that throw': { threads: 5, pages: 8, ...polling() },
  'loops that are stopped and started again': {
    threads: 5,
    pages: 8,
    handler: (world) => stopping(world, sourced(world)),
  },
};

for (const [says, world] of Object.entries(WORLDS)) {
  test(`${says}: nothing is broken`, async () => {
    const injected = new Map<string, number>();
    const first = seed();
    for (let run = 0; run < SEEDS; run++) {
      const blocks = world.features?.toString().includes('fork') || world.prepare || says.startsWith('loops');
      const wait =
        blocks || world.mayClose ? 'poll' : (WAITS[(first + run) % WAITS.length] as (typeof WAITS)[number]);
      const ran = await simulate({ ...world, wait, seed: first + run });
      for (const [what, count] of ran.injected) injected.set(what, count);
    }
    assert.deepEqual([...injected.keys()], Object.keys(world.inject ?? {}));
  }, 3_600_000);
}

test.run();
