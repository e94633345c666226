// What `simulate` runs and injects. The seed of a run, or its choices, alone decide the run.

import { strict as assert } from 'node:assert';
import type { FaultHandler } from '../../src/index.js';
import { Random, Script } from '../../src/sim/chooser.js';
import {
  advise,
  exec,
  exit,
  forked,
  INJECTIONS,
  type Inject,
  type Injection,
  type Program,
  read,
  SimulatedKernel,
  write,
} from '../../src/sim/index.js';
import {
  answerFromSource,
  explore,
  type SimulateOptions,
  SimulationError,
  simulate,
  type World,
} from '../../src/testing/index.js';
import { suite } from '../support/harness.js';
import { memoryTrace, randomWorld } from './support/worlds.js';

const test = suite('testing/simulate');

const P = 4096;
const DONTNEED = 4;
const WAITS = ['poll', 'block', 'spin', 'adaptive'] as const;

/** Options for a single thread, which runs the program. */
function one(body: (world: World) => Program): Pick<SimulateOptions, 'threads'> {
  return { threads: (world) => [body(world)] };
}

/** The failure of a run that must fail. */
async function failureOf(options: SimulateOptions): Promise<SimulationError> {
  try {
    await simulate(options);
  } catch (error) {
    if (error instanceof SimulationError) return error;
    throw error;
  }
  assert.fail('nothing is broken');
}

// ---- worlds ------------------------------------------------------------------------------------------------

for (const wait of WAITS) {
  for (const watched of ['own', 'another'] as const) {
    test(`threads of ${watched === 'own' ? 'its own' : 'another'} process read and write, ${wait}`, async () => {
      const seen: unknown[] = [];
      const { faults } = await simulate({
        wait,
        watched,
        handler: (world) => answerFromSource(world),
        ...one(function* (world) {
          seen.push(yield read(world.page(1) + 5n));
          seen.push(yield write(world.page(2), 77));
          seen.push(yield read(world.page(2)));
          seen.push(yield advise(world.page(1), P, DONTNEED));
          seen.push(yield read(world.page(1) + 5n));
        }),
      });
      assert.deepEqual(seen.slice(1), [0, 77, 0, 0]);
      assert.notEqual(seen[0], 0);
      assert.equal(faults, 3);
    });
  }
}

test('a handler that answers later is waited for, in virtual time', async () => {
  const times: number[] = [];
  await simulate({
    handler: (world) => ({
      async pagefault({ page }, uffd) {
        times.push(world.kernel.now);
        await world.sleep(1000);
        times.push(world.kernel.now);
        uffd.copy(page, await world.fetch(page));
      },
    }),
    ...one(function* (world) {
      yield read(world.page(0));
    }),
  });
  const [before = 0, after = 0] = times;
  assert.ok(times.length === 2 && after - before >= 1000 && after - before < 1001, `${times}`);
});

test('a forked child is served by its own handler, and ends', async () => {
  const seen: unknown[] = [];
  await simulate({
    features: ['event-fork'],
    handler: (world) => answerFromSource(world),
    ...one(function* (world) {
      yield write(world.page(0), 9);
      yield forked({
        *program() {
          seen.push(yield read(world.page(0)));
          seen.push(yield read(world.page(1)));
        },
      });
      seen.push(yield write(world.page(1), 8));
    }),
  });
  assert.equal(seen.length, 3);
  assert.ok(seen.includes(9));
});

for (const [what, end] of Object.entries({ exits: exit, 'calls exec': exec })) {
  test(`a watched process that ${what} ends the watch`, async () => {
    for (const wait of WAITS) {
      const ends: (string | undefined)[] = [];
      await simulate({
        wait,
        watched: 'another',
        handler: (world) => ({
          ...but(world),
          closed: (error) => void ends.push(error?.code),
        }),
        threads: (world) => [
          (function* () {
            yield read(world.page(0));
            yield end();
          })(),
          (function* () {
            for (let page = 1; page < world.pages; page++) yield read(world.page(page));
          })(),
        ],
      });
      assert.deepEqual(ends, ['ESRCH'], wait);
    }
  });
}

/** The correct handler, as a new object. */
function but(world: World): FaultHandler {
  const right = answerFromSource(world);
  return { pagefault: (fault, uffd) => right.pagefault(fault, uffd) };
}

// ---- what counts as an answer ------------------------------------------------------------------------------

test('a wake behind a short fill is no answer: the fault may be offered again', async () => {
  let short = 0;
  for (let seed = 1; seed <= 30; seed++) {
    await simulate({
      seed,
      inject: { held: 1 },
      handler: (world) => ({
        pagefault({ page }, uffd) {
          if (uffd.copy(page, world.source(world.indexOf(page) as number)) === P) return;
          short++;
          uffd.wake(page, P);
        },
      }),
      threads: (world) => [
        (function* () {
          yield advise(world.page(0), P, DONTNEED);
        })(),
        (function* () {
          yield read(world.page(1));
          yield read(world.page(2));
        })(),
      ],
    });
  }
  assert.ok(short > 0);
});

// ---- injections --------------------------------------------------------------------------------------------

/** Two threads that read three pages, in an order that the seed decides. For `held`, a third removes a page. */
function touches(world: World, what: Injection): Program[] {
  const programs: Program[] = [
    (function* () {
      yield read(world.page(0));
      yield read(world.page(5));
    })(),
    (function* () {
      yield read(world.page(1));
    })(),
  ];
  if (what !== 'held') return programs;
  return [
    ...programs,
    (function* () {
      yield advise(world.page(4), P, DONTNEED);
    })(),
  ];
}

const matching =
  (pattern: RegExp) =>
  (lines: readonly string[]): boolean =>
    lines.some((line) => pattern.test(line));

/** Whether a thread faults twice for one access. */
function faultsTwice(lines: readonly string[]): boolean {
  const asleep = lines.filter((line) => line.endsWith('asleep in a page fault')).map((line) => line.slice(9));
  return new Set(asleep).size < asleep.length;
}

/** At each read: the number of faults so far, less the number of messages that were read so far. */
function unread(lines: readonly string[]): number[] {
  const left: number[] = [];
  let there = 0;
  for (const line of lines) {
    if (line.endsWith('asleep in a page fault')) there++;
    const [, messages] = /handler +reads (\d+) message/.exec(line) ?? [];
    if (!messages) continue;
    there -= Number(messages);
    left.push(there);
  }
  return left;
}

/** Virtual milliseconds from the handler's call for a removal until the removing thread continues. */
function heldMs(lines: readonly string[]): number {
  const [called = 0, gone = 0] = [/handler +removed/, /DONTNEED\): goes on/].map((pattern) =>
    Number.parseFloat(lines.find((line) => pattern.test(line)) ?? '0'),
  );
  return gone - called;
}

const isCutOff = (lines: readonly string[]): boolean =>
  lines.filter((line) => /thread \d+ +read page \d → \d/.test(line)).length < 3;

/** What each injection leaves in a schedule, and what no schedule has without it. */
const EVIDENCE: Record<Injection, (lines: readonly string[]) => boolean> = {
  eagain: matching(/→ EAGAIN$/),
  partial: matching(/→ EAGAIN, \d done$/),
  eintr: matching(/→ EINTR$/),
  'eintr-read': matching(/injected +eintr-read$/),
  'eintr-poll': matching(/injected +eintr-poll$/),
  'eintr-fill': matching(/handler +(COPY|ZEROPAGE) .*→ EINTR$/),
  'eintr-wake': matching(/handler +WAKE .*→ EINTR$/),
  enomem: matching(/handler +COPY .*→ ENOMEM$/),
  enospc: matching(/handler +COPY .*→ ENOSPC$/),
  efault: matching(/handler +COPY .*→ EFAULT$/),
  eio: matching(/handler +COPY .*→ EIO$/),
  held: (lines) => heldMs(lines) > 1,
  repeat: (lines) => unread(lines).some((left) => left < 0),
  wake: faultsTwice,
  signal: faultsTwice,
  exit: isCutOff,
  exec: isCutOff,
  short: (lines) => unread(lines).some((left) => left > 0),
  split: matching(/handler +COPY .*→ ENOENT$/),
  dry: matching(/handler +COPY .*→ EEXIST$/),
};

/**
 * The options that make each injection visible: pages that are filled together, a loop that sleeps in poll(2), a wake.
 */
function sceneOf(what: Injection): Partial<SimulateOptions> & Pick<SimulateOptions, 'handler'> {
  const wait = what === 'eintr-poll' ? { wait: 'block' as const } : {};
  const memory = what === 'dry' ? { memory: 'huge' as const } : {};
  const around = what === 'partial' || what === 'split' ? 4 : 1;
  // An answer that takes time lets the handler read the repeated message before it.
  const options = { later: what === 'repeat', around };
  return {
    ...wait,
    ...memory,
    handler(world) {
      const right = answerFromSource(world, options);
      if (what !== 'eintr-wake') return right;
      return {
        pagefault(fault, uffd) {
          const is = right.pagefault(fault, uffd);
          uffd.wake(fault.page, P);
          return is;
        },
      };
    },
  };
}

// test/testing/injected-worlds.once.test.ts covers `split` and `dry`.
for (const what of INJECTIONS.filter((one) => one !== 'split' && one !== 'dry')) {
  test(`${what} is injected by script, once, and by probability; without it nothing of it is seen`, async () => {
    const tally = async (rule: Inject[Injection]): Promise<{ most: number; seen: number }> => {
      const counted = { most: 0, seen: 0 };
      for (let seed = 1; seed <= 30; seed++) {
        const { injected, schedule } = await simulate({
          seed,
          schedule: true,
          watched: what === 'exit' || what === 'exec' ? 'another' : 'own',
          inject: { [what]: rule } as Inject,
          ...sceneOf(what),
          threads: (world) => touches(world, what),
        });
        counted.most = Math.max(counted.most, injected.get(what) ?? 0);
        if (EVIDENCE[what](schedule)) counted.seen++;
      }
      return counted;
    };
    const [never, once, often] = [await tally([]), await tally([0]), await tally(0.3)];
    assert.deepEqual(never, { most: 0, seen: 0 });
    assert.equal(once.most, 1);
    assert.ok(once.seen > 0 && often.seen > 0, JSON.stringify({ once, often }));
  });
}

test('a second message comes behind its read, and takes no place of another in it', async () => {
  const calls: string[] = [];
  const { injected } = await simulate({
    choices: [],
    inject: { repeat: [0] },
    handler: (world) => ({
      pagefault({ page }, uffd) {
        calls.push(`fault ${world.indexOf(page)}`);
        return uffd.copy(page, world.source(0)) === P;
      },
      removed: (start) => void calls.push(`removed ${world.indexOf(start)}`),
    }),
    threads: (world) => [
      (function* () {
        yield read(world.page(0));
      })(),
      (function* () {
        yield advise(world.page(1), P, DONTNEED);
      })(),
    ],
  });
  assert.equal(injected.get('repeat'), 1);
  assert.deepEqual(calls.slice(0, 2), ['removed 1', 'fault 0']);
});

test('what cannot be injected is refused', async () => {
  const inject = { gremlin: 1 } as unknown as Inject;
  await assert.rejects(simulate({ inject, handler: (world) => answerFromSource(world) }), /no 'gremlin'/);
});

// ---- runs can be repeated ----------------------------------------------------------------------------------

test('two runs of one seed leave the same trace, byte for byte', async () => {
  for (let seed = 1; seed <= 40; seed++) {
    const traces: string[] = [];
    for (let run = 0; run < 2; run++) {
      const { record, bytes } = memoryTrace();
      await simulate({ ...randomWorld(seed), record });
      traces.push(Buffer.from(bytes()).toString('base64'));
    }
    assert.ok((traces[0]?.length ?? 0) > 100);
    assert.equal(traces[0], traces[1], `seed ${seed}`);
  }
});

test('the choices of a run repeat it', async () => {
  const { choices, steps } = await simulate(randomWorld(5));
  const again = await simulate({ ...randomWorld(5), choices });
  assert.deepEqual([again.choices, again.steps], [choices, steps]);
});

test('choices that fit nothing are made plain ones', () => {
  const script = new Script([-1, 5, -1], new Random(1));
  assert.deepEqual([script.below(3), script.below(3), script.chance(1)], [0, 0, false]);
});

test('a thread that can run does, although every choice is to let the handler go on', () => {
  const kernel = new SimulatedKernel({ chooser: new Script([]), preemption: 0.5 });
  const memory = kernel.mapMemory(1);
  const thread = kernel.thread(
    (function* () {
      yield write(memory, 1);
    })(),
  );
  for (let call = 0; call < 1000 && !thread.idle; call++) kernel.preempt();
  assert.ok(thread.idle, 'it is starved');
});

// ---- what a failure says -----------------------------------------------------------------------------------

test('a failure names the invariant, the waiting threads, the seed, and the steps before it', async () => {
  const error = await failureOf({
    seed: 3,
    handler: () => ({ pagefault() {} }),
    ...one(function* (world) {
      yield read(world.page(2));
    }),
  });
  assert.equal(error.invariant, 'asleep');
  assert.match(
    error.message,
    /^a thread sleeps for ever: .*thread 1 \(read page 2: asleep in a page fault\)/,
  );
  assert.match(error.message, /to repeat it: seed: 3/);
  assert.match(
    error.schedule.join('\n'),
    /thread 1 +read page 2: asleep in a page fault\n.*handler +reads 1 message\n/,
  );
  assert.match(error.schedule.join('\n'), /handler +pagefault: missing, read of page 2/);
});

test('what a handler throws is the cause, at once or later', async () => {
  const oops = new Error('oops');
  const threads = one(function* (world) {
    yield read(world.page(0));
  });
  for (const wait of WAITS) {
    const error = await failureOf({
      wait,
      ...threads,
      handler: () => ({
        pagefault() {
          throw oops;
        },
      }),
    });
    assert.equal(error.invariant, 'threw');
    assert.equal(error.cause, oops);
  }
  const later = await failureOf({
    ...threads,
    handler: (world) => ({
      async pagefault() {
        await world.sleep(1);
        throw oops;
      },
    }),
  });
  assert.equal(later.cause, oops);
});

test('a run that reaches its steps is a livelock', async () => {
  const error = await failureOf({
    steps: 500,
    handler: (world) => answerFromSource(world),
    ...one(function* (world) {
      for (;;) yield read(world.page(0));
    }),
  });
  assert.equal(error.invariant, 'livelock');
});

test('a descriptor that is left open is a leak', async () => {
  const error = await failureOf({
    handler: (world) => {
      world.kernel.files.add({ is: 'eventfd', holders: 1, count: 0 });
      return answerFromSource(world);
    },
    ...one(function* () {}),
  });
  assert.equal(error.invariant, 'leak');
});

// ---- explore -----------------------------------------------------------------------------------------------

test('explore counts what it ran, and prints a failure that it has made small', async () => {
  const right = await explore({
    seeds: { from: 10, count: 20 },
    handler: (world) => answerFromSource(world),
  });
  assert.equal(right.runs, 20);
  assert.ok(right.steps > 200 && right.faults > 20);

  const printed: string[] = [];
  let faults = 0;
  const broken = explore({
    seeds: 100,
    handler(world) {
      faults = 0;
      const { pagefault } = but(world);
      return { pagefault: (fault, uffd) => (++faults === 3 ? undefined : pagefault(fault, uffd)) };
    },
    print: (text) => void printed.push(text),
  });
  const error = await broken.then(
    () => assert.fail('it is broken'),
    (thrown: SimulationError) => thrown,
  );
  assert.deepEqual(printed, [error.message]);
  // The failure needs three faults, so the smallest schedule has at most three touches, of two lines each.
  const touches = error.schedule.filter((line) => /thread \d +(read|write|madvise)/.test(line));
  assert.ok(touches.length <= 6, error.message);
});

test('explore shows the beginning and the end of an endless schedule', async () => {
  const broken = explore({ handler: () => ({ pagefault: ({ page }, uffd) => uffd.wake(page, P) }) });
  const error = await broken.then(
    () => assert.fail('it is broken'),
    (thrown: SimulationError) => thrown,
  );
  assert.equal(error.invariant, 'livelock');
  assert.ok(error.schedule.length > 1000 && error.message.split('\n').length < 50, error.message);
  assert.match(error.message, /\n {2}… \d+ lines more …\n/);
  assert.ok(error.choices.length < 20, error.message);
});

test.run();
