// A short form of `npm run soak`: guests come and go, and nothing grows.

import { strict as assert } from 'node:assert';
import { suite } from '../support/harness.js';
import { endure } from './support/endurance.js';

const test = suite('serve/endurance');
const FAULTS = 60_000;

test(`${FAULTS} faults of one guest after the other: memory and descriptors stay as they are`, async () => {
  let guests = 0;
  await endure(FAULTS, () => guests++);
  // The first guest sets the baseline for the others.
  assert.ok(guests > 2, `${guests} guests`);
}, 300_000);

test.run();
