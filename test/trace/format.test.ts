// docs/trace-format.md suffices to write another reader: independent-reader.ts reads the same records as the codec.

import { strict as assert } from 'node:assert';
import { SimulatedKernel } from '../../src/sim/index.js';
import { TraceReader } from '../../src/trace/index.js';
import { seed, suite } from '../support/harness.js';
import { readOtherwise } from './support/independent-reader.js';
import { record } from './support/traces.js';

const test = suite('trace/format');

/** Checks that both readers read the same; returns the number of records. */
function assertSame(bytes: Uint8Array): number {
  const [description, ...others] = readOtherwise(bytes);
  assert.equal(description?.kind, 0);
  const reader = TraceReader.of(bytes);
  assert.deepEqual(JSON.parse(Buffer.from(description?.payload ?? []).toString()), reader.meta);
  const last = others.pop();
  assert.equal(last?.kind, 21);
  for (const [index, other] of others.entries()) {
    assert.ok(reader.next());
    const { kind, time, words } = reader.call;
    assert.deepEqual([kind, BigInt(time), words], [other.kind, other.time, other.fields], `record ${index}`);
    assert.ok(Buffer.from(reader.payload).equals(other.payload), `the payload of record ${index}`);
  }
  assert.equal(reader.next(), false);
  assert.equal(reader.damage, undefined);
  return others.length;
}

test('both readers read the same, for every wait strategy', () => {
  const first = seed();
  for (const wait of ['poll', 'block', 'spin', 'adaptive'] as const) {
    for (let round = 0; round < 4; round++) {
      const kernel = new SimulatedKernel({ seed: first + round });
      assert.ok(assertSame(record(kernel, { wait, seed: first, stopping: round % 2 === 1 })) > 100);
    }
  }
});

test('both readers read the same over many blocks', () => {
  const bytes = record(new SimulatedKernel({ seed: 1 }), { touches: 4000, pages: 1024, wait: 'block' });
  assert.ok(bytes.length > 150_000);
  assertSame(bytes);
});

test.run();
