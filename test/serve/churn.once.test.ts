// Short forms of `npm run soak` with churning guests: seconds find most of what an hour finds.

import { strict as assert } from 'node:assert';
import { seed, suite } from '../support/harness.js';
import { churn, churnInDryPool } from './support/churn.js';

const test = suite('serve/churn');

for (const window of ['16', 'adaptive']) {
  test(`window ${window}, prefetched pages, a balloon and mappings that split at once: no page is wrong`, async () => {
    const seen = await churn({ faults: 30_000, rounds: 4000, seed: seed(), options: ['--window', window] });
    assert.ok((seen.at(-1)?.faults ?? 0) >= 30_000);
  }, 300_000);
}

test('huge pages whose pool runs dry and refills: no page is wrong, no thread sleeps on', async () => {
  assert.ok((await churnInDryPool(100, seed())) > 0);
}, 300_000);

test.run();
