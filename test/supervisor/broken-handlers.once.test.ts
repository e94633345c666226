// Each broken handler, in C and in Rust, fails in the simulated kernel, within 2,000 guests; the honest one passes.

import { strict as assert } from 'node:assert';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { ScenarioResult } from '../../src/conformance/result.js';
import { type CheckSimulatedOptions, checkSimulated } from '../../src/supervisor/check-simulated.js';
import { guideTable } from '../conformance/support/guide-table.js';
import { skip, suite } from '../support/harness.js';
import { rustHandler } from './support/rust-handler.js';

const test = suite('broken handlers');
const folder = mkdtempSync(join(tmpdir(), 'uffd-broken-'));
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));

const SEEDS = 2000;
/** Time limit of a test. The faults that are hardest to find take some hundred guests. */
const LIMIT_MS = 300_000;
const HONEST_SEEDS = process.env.UFFD_LONG === undefined ? 60 : SEEDS;
/** By the number of the fault: what is wrong, and what the search says. */
const FAULTS: Readonly<Record<number, readonly [what: string, says: RegExp]>> = {
  1: ['it fills pages before it looks at removals', /removed holds data|makes? progress/],
  2: ['it counts −EAGAIN as bytes', /sleeps for ever/],
  3: ['it defers a fault without a time limit', /sleeps for ever/],
  4: ['it tries a fill a fixed number of times', /sleeps for ever/],
  5: ['it does not wake the thread of a page that is present', /sleeps for ever/],
  6: ['it chooses the data before it waits for a removal', /removed holds data/],
  7: ['it fills removed pages from the file', /removed holds data/],
  8: ['it drops the messages of a batch behind the sixteenth', /sleeps for ever/],
  9: ['it takes the address for the offset in the file', /has ended|does not hold/],
  10: ['it fills huge pages by 4 KiB', /has ended|does not hold/],
  11: ['it takes a short copy for a whole one', /removed holds data|sleeps for ever|does not hold/],
  12: ['it ends when a fill fails with ESRCH', /has ended/],
  13: ['it kills its monitor, and goes on', /it has killed the process that connected/],
  15: ['it takes ENOENT at a border of mappings for the end of the memory', /sleeps for ever/],
};

async function check(fault: number, options: CheckSimulatedOptions): Promise<ScenarioResult> {
  const [source, headers] = ['conformance/broken/handler.c', '../bench/peers/c'].map((path) =>
    fileURLToPath(new URL(`../../../test/${path}`, import.meta.url)),
  ) as [string, string];
  const target = join(folder, `handler-${fault}`);
  const flags = ['-O1', `-I${headers}`, `-DFAULT=${fault}`, '-o', target, source];
  const built = spawnSync('cc', flags, { encoding: 'utf8' });
  if (built.error) skip(`there is no C compiler: ${built.error.message}`);
  if (built.status !== 0) throw new Error(built.stderr);
  const { results } = await checkSimulated([target, '{socket}', '{memory}'], options);
  return results[0] as ScenarioResult;
}

/** Faults of the handler in Rust, by its third word. */
const RUST: Readonly<Record<string, readonly [what: string, says: RegExp]>> = {
  unwrap: ['it panics at EAGAIN', /has ended.*: exit status 101/],
  // A dropped message may be a fault or a removal.
  first: ['it takes the first message of a batch', /sleeps for ever|removed holds data/],
  patient: ['it defers a fault without a time limit', /sleeps for ever/],
};

for (const [fault, [what, says]] of Object.entries(RUST)) {
  test(
    `in Rust: ${what}`,
    async () => {
      const command = [rustHandler(), '{socket}', '{memory}', fault];
      const { results } = await checkSimulated(command, { seeds: SEEDS, shrinks: 0 });
      const [{ verdict, reason, repeats }] = results as [ScenarioResult];
      assert.equal(verdict, 'fail', reason);
      assert.match(reason ?? '', says);
      assert.deepEqual(repeats, { failed: 3, of: 3 });
    },
    LIMIT_MS,
  );
}

for (const [fault, [what, says]] of Object.entries(FAULTS)) {
  test(
    `fault ${fault} is found: ${what}`,
    async () => {
      const { verdict, reason, repeats, seed } = await check(Number(fault), { seeds: SEEDS, shrinks: 0 });
      assert.equal(verdict, 'fail', reason);
      assert.match(reason ?? '', says);
      assert.deepEqual(repeats, { failed: 3, of: 3 });
      assert.ok((seed ?? 0) > 0);
    },
    LIMIT_MS,
  );
}

test('the guide says which faults the simulated check finds', () => {
  for (const [fault, { simulated }] of guideTable()) {
    // `racy` has a test of its own.
    const found = fault in FAULTS || fault in RUST || fault === 'racy';
    assert.equal(simulated, found ? 'found' : 'with `--reuse` only', `fault ${fault}`);
  }
});

test('what one process keeps of earlier guests is found with --reuse, and the report says so', async () => {
  const { verdict, reason, details, repeats } = await check(14, { seeds: SEEDS, shrinks: 0, reuse: true });
  assert.equal(verdict, 'fail', reason);
  assert.match(reason ?? '', /does not hold|makes? progress|sleeps for ever/);
  assert.ok(details?.some((line) => /a new process of the handler passes with this guest/.test(line)));
  assert.deepEqual(repeats, { failed: 0, of: 1 });
  const apart = await check(14, { seeds: 40 });
  assert.equal(apart.verdict, 'pass', apart.reason);
});

test('the honest handler passes', async () => {
  const { verdict, reason } = await check(0, { seeds: HONEST_SEEDS });
  assert.equal(verdict, 'pass', reason);
});

test.run();
