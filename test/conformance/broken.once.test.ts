// Each broken handler, in C and in Rust, fails the scenario that is made for its fault, for the reason that its author needs;
// the honest one, which differs from each by a few lines, passes all of them.

import { strict as assert } from 'node:assert';
import { type CheckHandlerOptions, checkHandler, formatReport } from '../../src/testing/index.js';
import { rustHandler } from '../supervisor/support/rust-handler.js';
import { suite } from '../support/harness.js';
import { withHugePages } from '../support/huge-pages.js';
import { needKernel } from '../support/real-kernel.js';
import { guideTable } from './support/guide-table.js';
import { handler } from './support/handlers.js';

const test = suite('conformance/broken');

/** Milliseconds after which a handler that hangs has failed. */
const HANG_MS = 1500;
/** Most runs of a scenario: a handler's fault shows only at some moments, which nearly always come in the first run. */
const RUNS = 6;

const HANGS = /after \d+ ms the guest still .*not answered|after \d+ ms the guest still .*not read/;
const STALE = /page \d+ has the bytes of page \d+; it should have zeros, because it was removed/;

/** By fault: what it is, the scenario that shows it, and what the reason says. */
const FAULTS: readonly [fault: number, name: string, scenario: string, reason: RegExp][] = [
  [1, 'faults before removals', 'remove-while-paused', STALE],
  [2, '−11 counted as bytes', 'remove-of-another-page', HANGS],
  [3, 'no timer for deferred faults', 'remove-of-another-page', HANGS],
  [4, 'a bounded number of tries', 'long-eagain', HANGS],
  [5, 'EEXIST without a wake', 'present-page', HANGS],
  [6, 'a stale copy', 'stale-fill', STALE],
  [7, 'no zeros after a removal', 'remove-after-read', STALE],
  [8, 'a lost fault in a batch', 'batch', HANGS],
  [9, 'a wrong offset', 'regions', /page 40 has the bytes of page 41/],
  [11, 'short copies ignored', 'short-fill', HANGS],
  [14, "another guest's pages", 'monitor-exits', /serves the next monitor: page 0 has zeros/],
  [15, 'ENOENT at a border', 'split-mappings', HANGS],
  [13, 'a killed monitor', 'reads', /the monitor .*SIGKILL.*the handler may have killed it/],
  [12, 'death by ESRCH', 'fill-after-the-end', /exited with status 1 because its guest has ended/],
];

async function check(
  fault: number,
  scenarios: readonly string[],
  options: Partial<CheckHandlerOptions> = {},
) {
  return checkHandler({ command: handler(fault), scenarios, ...options });
}

/** A scenario fails, for this reason: it runs again up to the first run that fails. */
async function fails(command: readonly string[], scenario: string, reason: RegExp): Promise<void> {
  needKernel();
  for (let run = 1; ; run++) {
    const { results } = await checkHandler({ command, scenarios: [scenario], deadlineMs: HANG_MS });
    const [result] = results;
    if (result?.verdict === 'pass' && run < RUNS) continue;
    assert.equal(result?.verdict, 'fail', `${scenario} passes`);
    assert.match(result?.reason ?? '', reason);
    return;
  }
}

for (const [fault, name, scenario, reason] of FAULTS)
  test(name, () => fails(handler(fault), scenario, reason));

/** The faults of the handler in Rust (test/supervisor/handler.rs). */
const RUST: readonly [fault: string, scenario: string, reason: RegExp][] = [
  ['racy', 'remove-while-paused', STALE],
  // The deadline may be over before the end of the handler counts.
  ['unwrap', 'long-eagain', new RegExp(`the handler exited with status 101|${HANGS.source}`)],
  ['first', 'batch', HANGS],
  ['patient', 'long-eagain', HANGS],
];

for (const [fault, scenario, reason] of RUST)
  test(`in Rust: ${fault}`, () => fails([rustHandler(), '{socket}', '{memory}', fault], scenario, reason));

test('the guide names the scenario that shows each fault', () => {
  const rows = guideTable();
  const huge = [10, '', 'huge-pages'] as const;
  for (const [fault, , scenario] of [...FAULTS, huge]) {
    const { real } = rows.get(`${fault}`) ?? {};
    assert.ok(real?.includes(`\`${scenario}\``), `fault ${fault}: ${real}`);
  }
  for (const [fault, scenario] of RUST) assert.ok(rows.get(fault)?.real.includes(`\`${scenario}\``), fault);
  assert.equal(rows.size, FAULTS.length + 1 + RUST.length);
});

test('huge pages by 4 KiB, and the honest handler in huge pages', () => {
  needKernel();
  return withHugePages(8, async () => {
    const broken = await check(10, ['huge-pages']);
    assert.deepEqual(
      broken.results.map(({ verdict }) => verdict),
      ['fail', 'fail'],
    );
    assert.match(broken.results[0]?.reason ?? '', /the handler exited with status 1, and the guest hangs/);
    const honest = await check(0, ['huge-pages', 'empty-pool']);
    assert.ok(
      honest.results.every(({ verdict }) => verdict === 'pass'),
      formatReport(honest),
    );
  });
});

test('the honest handler passes what shows the faults of the others', async () => {
  needKernel();
  const report = await check(
    0,
    FAULTS.map(([, , scenario]) => scenario),
  );
  assert.ok(
    report.results.every(({ verdict }) => verdict === 'pass'),
    formatReport(report),
  );
});

test.run();
