// The simulation finds bugs in handlers and cores that are broken on purpose. `explore` finds each bug within 2,000
// seeds. Two runs of the seed repeat it with the same trace, byte for byte. Without the bug, `explore` finds nothing.

import { strict as assert } from 'node:assert';
import { Action, ExchangeView, type Exports, UFFDIO_WAKE } from '../../src/bindings/core.js';
import type { FaultHandler, Feature } from '../../src/index.js';
import { Userfaultfd } from '../../src/sim/index.js';
import {
  answerFromSource,
  explore,
  type Invariant,
  type SimulateOptions,
  SimulationError,
  simulate,
  type World,
} from '../../src/testing/index.js';
import { WasmModule } from '../../src/uffd/core.js';
import { suite } from '../support/harness.js';
import { memoryTrace } from './support/worlds.js';

const test = suite('testing/broken');

const SEEDS = 2000;
/** Seeds for which the same world without the bug breaks no invariant. */
const CONTROLS = 30;
const P = 4096;
const EAGAIN = -11;
const CHANGES: Feature[] = ['event-remove', 'event-unmap', 'event-remap'];

interface Broken {
  what: string;
  /** The invariants that may detect the bug. */
  by: Invariant[];
  options?: Partial<SimulateOptions>;
  /** The handler; default: `right`. */
  handler?: (world: World) => FaultHandler;
  /** The handler without the bug; default: `answerFromSource`. */
  right?: (world: World) => FaultHandler;
  core?: (exports: Exports) => void;
}

/** A correct handler, except for the callbacks that `change` returns. */
function but(world: World, change: (right: FaultHandler) => Partial<FaultHandler>): FaultHandler {
  const right = answerFromSource(world);
  return {
    pagefault: (fault, uffd) => right.pagefault(fault, uffd),
    removed: (start, end) => right.removed?.(start, end),
    unmapped: (start, end) => right.unmapped?.(start, end),
    remapped: (from, to, length) => right.remapped?.(from, to, length),
    forked: (child) => right.forked?.(child),
    ...change(right),
  };
}

/** Copies a page of the source. */
function copy(world: World, uffd: Userfaultfd, page: bigint): number {
  return uffd.copy(page, world.source(world.indexOf(page) as number));
}

// ---- handlers ----------------------------------------------------------------------------------------------

const HANDLERS: Broken[] = [
  {
    what: 'acts on data that it fetched before a removal',
    by: ['removed'],
    handler: (world) => ({
      async pagefault({ page }, uffd) {
        if (uffd.pageState(page) === 'removed') return void uffd.zero(page, P);
        const data = await world.fetch(page);
        if (!uffd.closed) uffd.copy(page, data);
      },
    }),
  },
  {
    what: 'never answers one fault in seven',
    by: ['asleep'],
    handler(world) {
      let faults = 0;
      return but(world, (right) => ({
        pagefault: (fault, uffd) => (++faults % 7 === 0 ? undefined : right.pagefault(fault, uffd)),
      }));
    },
  },
  {
    what: 'defers the fault of the last page forever',
    by: ['asleep', 'livelock'],
    handler: (world) =>
      but(world, (right) => ({
        pagefault: (fault, uffd) =>
          fault.page === world.page(world.pages - 1) ? false : right.pagefault(fault, uffd),
      })),
  },
  {
    what: "forgets a forked child's descriptor",
    by: ['asleep', 'leak'],
    options: { features: ['event-fork'] },
    handler: (world) => but(world, () => ({ forked() {} })),
  },
  {
    what: 'copies the page beside the one that was asked for',
    by: ['content'],
    handler: (world) =>
      but(world, () => ({
        pagefault: ({ page }, uffd) =>
          uffd.copy(page, world.source(((world.indexOf(page) ?? 0) + 1) % world.pages)) === P,
      })),
  },
  {
    what: 'fills with zeros what the source has',
    by: ['content'],
    handler: (world) => but(world, () => ({ pagefault: ({ page }, uffd) => uffd.zero(page, P) === P })),
  },
  {
    what: 'answers removed pages from the source',
    by: ['removed'],
    handler: (world) => but(world, () => ({ removed() {} })),
  },
  {
    what: 'fills the page behind a fault as well, removed or not',
    by: ['removed'],
    handler: (world) =>
      but(world, (right) => ({
        pagefault(fault, uffd) {
          const behind = fault.page + BigInt(P);
          if (world.indexOf(behind) !== undefined) copy(world, uffd, behind);
          return right.pagefault(fault, uffd);
        },
      })),
  },
  {
    what: 'takes a short fill for a whole one',
    by: ['asleep', 'livelock'],
    handler(world) {
      const loaded = new Set<bigint>();
      return but(world, (right) => ({
        pagefault(fault, uffd) {
          if (loaded.has(fault.page)) return;
          loaded.add(fault.page);
          right.pagefault(fault, uffd);
        },
        removed(start, end) {
          for (const page of loaded) if (page >= start && page < end) loaded.delete(page);
          right.removed?.(start, end);
        },
      }));
    },
  },
  {
    what: 'wakes without an answer',
    by: ['livelock', 'asleep'],
    handler: () => ({ pagefault: ({ page }, uffd) => uffd.wake(page, P) }),
  },
  {
    what: 'fills without waking',
    by: ['asleep'],
    options: { features: [] },
    handler: (world) =>
      but(world, () => ({
        pagefault: ({ page }, uffd) =>
          uffd.copy(page, world.source(world.indexOf(page) as number), P, { dontWake: true }) === P,
      })),
  },
  {
    what: 'does not follow pages that move',
    by: ['content'],
    options: { features: CHANGES },
    handler: (world) => but(world, () => ({ remapped() {} })),
  },
  {
    what: 'dies of a kernel that has no memory for a moment',
    by: ['threw'],
    options: { features: [], inject: { enomem: 0.05 } },
    handler: (world) => but(world, () => ({ pagefault: ({ page }, uffd) => copy(world, uffd, page) === P })),
  },
  {
    what: 'takes a write-protect fault for a missing page',
    by: ['livelock', 'asleep'],
    options: { features: ['pagefault-flag-wp'], mode: ['missing', 'write-protect'] },
    handler: (world) =>
      but(world, (right) => ({
        pagefault: (fault, uffd) => right.pagefault({ ...fault, kind: 'missing' }, uffd),
      })),
  },
  {
    what: 'closes when it has seen enough',
    by: ['closed'],
    handler(world) {
      let faults = 0;
      return but(world, (right) => ({
        pagefault: (fault, uffd) => (++faults === 4 ? uffd.close() : right.pagefault(fault, uffd)),
      }));
    },
  },
  {
    what: 'gives a child the data of pages that its parent removed',
    by: ['removed'],
    options: { features: ['event-remove', 'event-fork'] },
    handler: (world) => but(world, () => ({ forked: (child) => void child.start(answerFromSource(world)) })),
  },
];

// ---- cores -------------------------------------------------------------------------------------------------

/** Fills the page after a faulting one without waking: a thread that waits there has a message of its own. */
function prefetching(world: World): FaultHandler {
  return but(world, (right) => ({
    pagefault(fault, uffd) {
      const behind = fault.page + BigInt(P);
      const index = world.indexOf(behind);
      if (index !== undefined && uffd.pageState(behind) === 'missing')
        uffd.copy(behind, world.source(index), P, { dontWake: true });
      return right.pagefault(fault, uffd);
    },
  }));
}

/** Hands its descriptor to a new object at the third fault. */
function handingOver(world: World): FaultHandler {
  let faults = 0;
  return but(world, (right) => ({
    pagefault(fault, uffd) {
      if (++faults !== 3) return right.pagefault(fault, uffd);
      const { ranges, features } = uffd;
      world.uffd = Userfaultfd.wrap(uffd.release(), { kernel: world.port, features, ranges });
      world.uffd.start(right);
    },
  }));
}

/** Answers by the state that the userfaultfd object has of a page. */
function trusting(world: World): FaultHandler {
  return {
    pagefault: ({ page }, uffd) =>
      (uffd.pageState(page) === 'removed' ? uffd.zero(page, P) : copy(world, uffd, page)) === P,
  };
}

/** The functions of the core that return its next action. */
const INPUTS = [
  ...(['begin', 'next', 'handleRead', 'handleResult', 'handleTime', 'handleAnswer', 'handleZeros'] as const),
  ...(['beginFill', 'beginAhead', 'beginEnd'] as const),
];

/** Every action passes through `change` before it is performed. */
function changing(
  exports: Exports,
  change: (action: number, input: string, first: number | boolean | undefined) => number,
): void {
  for (const name of INPUTS) {
    const input = exports[name] as (...values: (number | boolean)[]) => number;
    Object.assign(exports, {
      [name]: (...values: (number | boolean)[]) => change(input(...values), name, values[0]),
    });
  }
}

/** The struct of the next ioctl. */
function requestOf({ memory, request }: Exports): DataView {
  return new DataView(memory.buffer, request.value, 64);
}

/** The value that a failed COPY has left in its result field. */
function resultOf(exports: Exports): bigint {
  return requestOf(exports).getBigInt64(32, true);
}

/** The core delivers no change of one kind. */
function losing(lost: Action): (exports: Exports) => void {
  return (exports) => {
    const { next } = exports;
    changing(exports, (action) => {
      let what = action;
      while (what === lost) what = next();
      return what;
    });
  };
}

/** The core takes some errors of the kernel for success. */
function mistaking(what: (result: number, exports: Exports) => boolean): (exports: Exports) => void {
  return (exports) => {
    const { handleResult } = exports;
    exports.handleResult = (result) => handleResult(what(result, exports) ? 0 : result);
  };
}

/** After the first input for which `when` is true, WAKEs outside of fills wake no thread. */
function notWaking(when: (input: string) => boolean): (exports: Exports) => void {
  return (exports) => {
    const view = new ExchangeView(exports.memory, exports.exchange.value);
    let filling = false;
    let on = false;
    changing(exports, (action, input) => {
      if (input === 'beginFill' || input === 'beginAhead') filling = true;
      const wakes = !filling && action === Action.IOCTL && view.code >>> 0 === UFFDIO_WAKE;
      if (action === Action.FILLED) filling = false;
      on ||= when(input);
      if (wakes && on) requestOf(exports).setBigUint64(0, 1n << 40n, true);
      return action;
    });
  };
}

/** The core gets mapping changes one read later than the faults that came with them. */
function delaying(exports: Exports): void {
  const { handleRead } = exports;
  let kept: Uint8Array[] = [];
  exports.handleRead = (result) => {
    const buffer = new Uint8Array(exports.memory.buffer, exports.messages.value, 128 * 32);
    const read = Array.from({ length: Math.max(result, 0) / 32 }, (_, n) =>
      buffer.slice(n * 32, n * 32 + 32),
    );
    const now = [...read.filter(([event]) => event === 0x12), ...kept];
    kept = read.filter(([event]) => event !== 0x12);
    now.forEach((message, n) => void buffer.set(message, n * 32));
    return handleRead(now.length > 0 ? now.length * 32 : result > 0 ? EAGAIN : result);
  };
}

const CORES: Broken[] = [
  {
    what: 'the wake behind an EEXIST is lost',
    by: ['asleep'],
    right: prefetching,
    core: mistaking((result) => result === -17),
  },
  { what: 'faults are delivered before changes', by: ['told', 'removed'], core: delaying },
  {
    what: 'a fault that was answered is delivered again',
    by: ['told'],
    core(exports) {
      const { handleAnswer } = exports;
      let answers = 0;
      exports.handleAnswer = (resolved, goesOn) =>
        handleAnswer(++answers % 5 === 0 ? false : resolved, goesOn);
    },
  },
  {
    what: 'a deferred fault is never due',
    by: ['asleep'],
    core(exports) {
      const { delay } = exports;
      let defers = false;
      changing(exports, (action, input) => {
        defers = input === 'handleAnswer' && action === Action.TIME;
        return action;
      });
      const { handleTime } = exports;
      exports.handleTime = (ms) => handleTime(defers ? Number.POSITIVE_INFINITY : ms);
      exports.delay = (ms) => {
        const left = delay(ms);
        return left === Number.POSITIVE_INFINITY ? -1 : left;
      };
    },
  },
  {
    what: 'a deferred fault has no timer',
    by: ['asleep'],
    core(exports) {
      exports.delay = () => -1;
    },
  },
  {
    what: 'after a part of a fill the source stays where it was',
    by: ['content'],
    options: { inject: { partial: 0.2 } },
    right: (world) => answerFromSource(world, { around: 4 }),
    core(exports) {
      const { handleResult } = exports;
      exports.handleResult = (result) => {
        const done = result === EAGAIN ? resultOf(exports) : 0n;
        const action = handleResult(result);
        const view = requestOf(exports);
        if (done > 0n && action === Action.IOCTL)
          view.setBigUint64(8, view.getBigUint64(8, true) - done, true);
        return action;
      };
    },
  },
  {
    what: 'a part of a fill counts as all of it',
    by: ['asleep'],
    options: { inject: { partial: 0.2 } },
    right: (world) => answerFromSource(world, { around: 4 }),
    core: mistaking((result, exports) => result === EAGAIN && resultOf(exports) > 0n),
  },
  {
    what: '−11 in the result field counts as progress',
    by: ['asleep'],
    core: mistaking((result, exports) => result === EAGAIN && resultOf(exports) < 0n),
  },
  {
    what: 'nothing is read behind an EAGAIN',
    by: ['livelock', 'asleep'],
    core(exports) {
      const { handleResult } = exports;
      exports.handleResult = (result) => {
        const action = handleResult(result);
        return result === EAGAIN && action === Action.READ ? Action.IOCTL : action;
      };
    },
  },
  {
    what: 'an interrupted call counts as done',
    by: ['asleep'],
    options: { inject: { eintr: 0.05 } },
    core: mistaking((result) => result === -4),
  },
  { what: 'a removal is not delivered', by: ['told', 'removed'], core: losing(Action.REMOVED) },
  {
    what: "a child's descriptor is leaked",
    by: ['told', 'asleep', 'leak'],
    options: { features: ['event-fork'] },
    core: losing(Action.FORKED),
  },
  {
    what: 'threads that wait at a place that pages have left are not woken',
    by: ['asleep'],
    options: { features: CHANGES },
    core: notWaking(() => true),
  },
  {
    what: 'the last message of a read is lost',
    by: ['asleep', 'told'],
    core(exports) {
      const { handleRead } = exports;
      exports.handleRead = (result) => handleRead(result > 32 ? result - 32 : result);
    },
  },
  {
    what: 'waiters whose faults were read are not woken when the descriptor is handed on',
    by: ['asleep'],
    options: { mayClose: true },
    right: handingOver,
    core: notWaking((input) => input === 'beginEnd'),
  },
  {
    what: 'a removed page is not known to be one',
    by: ['removed'],
    right: trusting,
    core(exports) {
      exports.pageAt = () => 0;
    },
  },
];

// ---- each is found -----------------------------------------------------------------------------------------

/** Runs `body` while every core has the bug. */
async function withCore<T>(broken: Broken['core'], body: () => Promise<T>): Promise<T> {
  const { instantiate } = WasmModule.prototype;
  WasmModule.prototype.instantiate = function (this: WasmModule<Record<string, unknown>>) {
    const exports = instantiate.call(this);
    if ('handleRead' in exports) broken?.(exports as unknown as Exports);
    return exports;
  };
  try {
    return await body();
  } finally {
    WasmModule.prototype.instantiate = instantiate;
  }
}

async function failureOf(run: () => Promise<unknown>): Promise<SimulationError | undefined> {
  try {
    await run();
  } catch (error) {
    if (error instanceof SimulationError) return error;
    throw error;
  }
  return undefined;
}

for (const { what, by, options, handler, right = answerFromSource, core } of [...HANDLERS, ...CORES]) {
  const given = { ...options, handler: handler ?? right };
  test(`found: ${core ? 'a core in which' : 'a handler that'} ${what}`, async () => {
    await withCore(core, async () => {
      const found = await failureOf(() => explore({ ...given, seeds: SEEDS, shrinks: 40 }));
      assert.ok(found, `not found within ${SEEDS} seeds`);
      assert.ok(by.includes(found.invariant), found.message);
      assert.ok(found.schedule.length > 0 && found.seed !== undefined);
      const { seed } = found;
      const runs = [];
      for (let run = 0; run < 2; run++) {
        const { record, bytes } = memoryTrace();
        const again = await failureOf(() => simulate({ ...given, seed, record }));
        runs.push({ invariant: again?.invariant, detail: again?.detail, trace: Buffer.from(bytes()) });
      }
      assert.equal(runs[0]?.invariant, found.invariant);
      assert.ok((runs[0]?.trace.length ?? 0) > 0);
      assert.deepEqual(runs[0], runs[1]);
      const smallest = await failureOf(() => simulate({ ...given, choices: found.choices }));
      assert.equal(smallest?.detail, found.detail);
    });
    await explore({ ...options, handler: right, seeds: CONTROLS });
  }, 300_000);
}

test.run();
