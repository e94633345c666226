// A run that tests nothing must not look like a run without failures: wrong options of `simulate` and `explore` are
// errors, which name the option.

import { strict as assert } from 'node:assert';
import { answerFromSource, explore, SimulationError, simulate } from '../../src/testing/index.js';
import { suite } from '../support/harness.js';

const test = suite('testing/arguments');

const handler = answerFromSource;
const right = { handler, seeds: 2 };
/** Options, and what the message says. */
const WRONG: readonly (readonly [unknown, RegExp])[] = [
  [undefined, /options must be an object; it is undefined/],
  [null, /options must be an object; it is null/],
  [answerFromSource, /options must be an object; it is function/],
  [{}, /handler must be a function; it is undefined/],
  [{ handler: {} }, /handler must be a function; it is object/],
  [{ handler, threads: 0 }, /threads must be an integer from 1/],
  [{ handler, threads: '3' }, /threads must be a number, or a function; it is string/],
  [{ handler, pages: 0 }, /pages must be an integer from 1/],
  [{ handler, steps: 0 }, /steps must be an integer from 1/],
  [{ handler, wait: 'sleep' }, /wait must be one of poll, block, spin, adaptive; it is sleep/],
  [{ handler, watched: 'other' }, /watched must be one of own, another/],
  [{ handler, features: 'event-remove' }, /features must be a list of names; it is string/],
  [{ handler, features: ['event-removed'] }, /features: there is no feature 'event-removed'/],
  [{ handler, mode: 'all' }, /mode: there is no mode 'all'/],
  [{ handler, inject: { eagian: 0.1 } }, /inject: there is no 'eagian'; there are eagain, /],
  [{ handler, inject: 0.5 }, /inject must be an object; it is number/],
  [{ handler, inject: { eagain: 20 } }, /inject.eagain must be a probability from 0 to 1; it is 20/],
  [{ handler, inject: { eagain: Number.NaN } }, /inject.eagain must be a probability/],
  [{ handler, inject: { eagain: [0, -1] } }, /inject.eagain\[1\] must be an integer from 0/],
  [{ handler, inject: { eagain: '0.1' } }, /inject.eagain must be a probability, a number; it is string/],
  [{ handler, preemption: 2 }, /preemption must be a probability from 0 to 1/],
  [{ handler, patienceMs: 0 }, /patienceMs must be a number of milliseconds above 0/],
  [{ handler, source: 7 }, /source must be a function/],
  [{ handler, injct: {} }, /options: there is no 'injct'; there are handler, threads, /],
  [
    { handler: () => undefined },
    /what handler\(world\) returns must be a handler with pagefault; it is undefined/,
  ],
  [{ handler: () => ({ pageFault() {} }) }, /what handler\(world\) returns must be a handler with pagefault/],
  [{ handler, threads: () => undefined }, /what threads\(world\) returns must be a list of generators/],
  [{ handler, threads: () => [] }, /what threads\(world\) returns must be a list of at least one generator/],
  [
    { handler, threads: () => [function* () {}] },
    /what threads\(world\) returns: \[0\] must be a generator that was called/,
  ],
];

test('wrong options of simulate and explore are errors that name them', async () => {
  for (const [options, message] of WRONG) {
    for (const run of [simulate, explore] as ((options: unknown) => Promise<unknown>)[]) {
      await assert.rejects(run(options), (error: Error & { code?: string }) => {
        assert.match(error.message, message);
        assert.match(error.code ?? '', /^ERR_(INVALID_ARG|OUT_OF_RANGE)/, error.message);
        assert.ok(!(error instanceof SimulationError));
        return true;
      });
    }
  }
});

test('no seeds are no exploration', async () => {
  const wrong: readonly (readonly [unknown, RegExp])[] = [
    [0, /seeds must be an integer from 1 to 4294967295; it is 0/],
    [-1, /seeds must be an integer from 1/],
    [Number.NaN, /seeds must be an integer from 1 .* it is NaN/],
    [1.5, /seeds must be an integer from 1/],
    [Number.POSITIVE_INFINITY, /seeds must be an integer from 1/],
    ['10', /seeds must be a number of seeds, or \{ from, count \}; it is string/],
    [null, /seeds must be a number of seeds, or \{ from, count \}; it is null/],
    [[1, 2], /seeds.from must be a number; it is undefined/],
    [{ from: 5 }, /seeds.count must be a number; it is undefined/],
    [{ count: 5 }, /seeds.from must be a number; it is undefined/],
    [{ from: 5, count: 0 }, /seeds.count must be an integer from 1/],
    [{ from: -5, count: 3 }, /seeds.from must be an integer from 0/],
    [{ from: 2 ** 32 - 1, count: 2 }, /seeds.count must be an integer from 1 to 1;/],
    [{ from: '1', count: '2' }, /seeds.from must be a number; it is string/],
  ];
  for (const [seeds, message] of wrong) {
    await assert.rejects(explore({ handler, seeds } as never), message);
  }
  await assert.rejects(explore({ ...right, shrinks: -1 }), /shrinks must be an integer from 0/);
  await assert.rejects(explore({ ...right, print: 'yes' as never }), /print must be a function/);
  await assert.rejects(explore({ ...right, seed: 3 } as never), /options: there is no 'seed'/);
  assert.equal((await explore({ ...right, seeds: { from: 0, count: 3 } })).runs, 3);
  assert.equal((await explore(right)).runs, 2);
});

test('what decides a run of simulate is checked', async () => {
  for (const seed of [-1, 1.5, Number.NaN, 2 ** 32])
    await assert.rejects(simulate({ handler, seed }), /seed must be an integer from 0 to 4294967295/);
  await assert.rejects(simulate({ handler, seed: '7' as never }), /seed must be a number; it is string/);
  await assert.rejects(simulate({ handler, choices: '0, 1' as never }), /choices must be a list of integers/);
  await assert.rejects(simulate({ handler, choices: [0, -1] }), /choices\[1\] must be an integer from 0/);
  await assert.rejects(
    simulate({ handler, record: 'a.trace' as never }),
    /record must be a TraceWriter; it is string/,
  );
  await assert.rejects(simulate({ handler, seeds: 3 } as never), /options: there is no 'seeds'/);
});

test('under simulate `answered` is called for faults that were answered from a source', async () => {
  let answered = 0;
  await simulate({
    threads: 5,
    pages: 8,
    handler: (world) => {
      const right = answerFromSource(world);
      const all = new Uint8Array(world.length);
      for (let page = 0; page < world.pages; page++) all.set(world.source(page), page * world.pageSize);
      return {
        pagefault(fault, uffd) {
          const done = right.pagefault(fault, uffd);
          uffd.answerFrom(world.address, all.length, all);
          return done;
        },
        removed: (start, end) => right.removed?.(start, end),
        answered: (faults) => {
          answered += faults;
        },
      };
    },
  });
  assert.ok(answered > 0);
});

test.run();
