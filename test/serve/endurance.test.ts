// A short form of `npm run soak`: guests come and go, and nothing grows.

import { strict as assert } from 'node:assert';
import { suite } from '../harness.js';
import { endure } from './endurance.js';

const test = suite('serve/endurance');
const FAULTS = process.env.UFFD_CORE === 'debug' ? 50_000 : 200_000;

test(`${FAULTS} faults of one guest after the other: memory and descriptors stay as they are`, async () => {
  let guests = 0;
  await endure(FAULTS, () => guests++);
  assert.ok(guests > 0);
}, 300_000);

test.run();
