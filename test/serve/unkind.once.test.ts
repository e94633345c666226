// The answers of `uffd serve`, and what it installs in the background, in simulated worlds that are as unkind as Linux can
// be: mappings that get borders without a word, pools of huge pages that run dry, calls that are interrupted, memory that
// is short for a moment. Each was a defect once: a page of zeros in place of the file's bytes, a thread asleep for ever, a
// guest that was ended because something in the background failed.
//
// UFFD_SEEDS=100000 looks at more worlds of each kind, and UFFD_SEED says where they begin.

import { strict as assert } from 'node:assert';
import type { Injection } from '../../src/sim/index.js';
import { simulate } from '../../src/testing/index.js';
import { seed, suite } from '../harness.js';
import { KINDS, worldOf } from './unkind-worlds.js';

const test = suite('serve/unkind');

const SEEDS = Number(process.env.UFFD_SEEDS ?? 100);

for (const kind of KINDS) {
  test(`${kind.says}: no page is wrong, nobody sleeps for ever, nobody is ended`, async () => {
    const injected = new Set<Injection>();
    const first = seed();
    for (let world = 0; world < SEEDS; world++) {
      const run = await simulate(worldOf(kind, first + world));
      for (const what of run.injected.keys()) injected.add(what);
    }
    // Ends are too rare to be seen in few worlds.
    const rare = ['exit', 'exec'];
    const never = Object.keys(kind.inject).filter(
      (what) => !rare.includes(what) && !injected.has(what as Injection),
    );
    assert.deepEqual(never, []);
  }, 3_600_000);
}

test.run();
