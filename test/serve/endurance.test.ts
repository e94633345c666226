// A short form of `npm run soak`: guests come and go, and nothing grows.

import { strict as assert } from 'node:assert';
import { suite } from '../harness.js';
import { endure } from './endurance.js';

const test = suite('serve/endurance');
const FAULTS = process.env.UFFD_CORE === 'debug' ? 50_000 : 200_000;

test(`${FAULTS} faults of one guest after the other: memory and descriptors stay as they are`, async () => {
  let guests = 0;
  await endure(FAULTS, () => guests++);
  // The first is what the others are compared with.
  assert.ok(guests > 2, `${guests} guests`);
}, 300_000);

test.run();
