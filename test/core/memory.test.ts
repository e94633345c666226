// How much memory page states take: bitmaps with one bit per page and plane, allocated when first needed and freed with
// the range. Memory never grows while faults are served.
//
// The figures for 64 GiB of 4 KiB pages: 2048 chunks of 32 MiB, each with planes of 1 KiB. The directory takes 128 KiB:
// 4096 places of 32 bytes are the fewest that leave half of them empty.
//   nothing touched                                          only the directory
//   all present, or every second page present                2 MiB + directory
//   present, and removed (or claimed) pages in every chunk   4 MiB + directory
//   present, removed and claimed pages in every chunk        6 MiB + directory
//   the same, and write-protected pages in every chunk       8 MiB + directory: the worst there is
// Removals are kept when memory is unregistered: 1 KiB for each chunk with a removed page.

import { strict as assert } from 'node:assert';
import { Action, Operation as Op, Option } from '../../src/bindings/core.js';
import type { Core } from '../../src/uffd/core.js';
import { suite } from '../support/harness.js';
import {
  apply,
  deliver,
  dispatch,
  fault,
  feed,
  MISSING,
  makeCore,
  PAGE,
  page,
  put,
  remove,
  stateOf,
  still,
  take,
  transfer,
  WRITE_PROTECT,
} from './support.js';

const test = suite('memory');
const PAGES = 2 ** 36 / PAGE;
const CHUNK = 8192;
const DIRECTORY = 4096 * 32;
const MIB = 2 ** 20;

function watch64GiB(modes: number, first = 0): Core {
  const core = makeCore();
  put(core, first, PAGES, { modes });
  assert.equal(core.exports.rangeCount(), 1);
  // The first read allocates the buffers for messages and faults.
  assert.equal(dispatch(core), Action.DONE);
  return core;
}

test('64 GiB watched, nothing touched: the directory only', () => {
  const core = watch64GiB(MISSING);
  assert.equal(core.exports.pagesBytes(), DIRECTORY);
  // A query of a page's state allocates nothing.
  assert.equal(stateOf(core, PAGES - 1), 0);
  assert.equal(core.exports.pagesBytes(), DIRECTORY);
  // Room for the three planes that may be needed was reserved, so that serving faults never grows the memory.
  assert.ok(core.memory.buffer.byteLength < 6 * MIB + MIB / 2, `${core.memory.buffer.byteLength}`);
});

test('64 GiB watched from the middle of a chunk on: the directory may be twice as large', () => {
  const core = watch64GiB(MISSING, 17);
  assert.equal(core.exports.pagesBytes(), 2 * DIRECTORY);
});

test('64 GiB, all present: 2 MiB', () => {
  const core = watch64GiB(MISSING);
  transfer(core, Op.COPY, 0, PAGES);
  assert.equal(core.exports.pagesBytes(), 2 * MIB + DIRECTORY);
  assert.equal(stateOf(core, PAGES - 1), 1);
});

test('64 GiB, every second page present: 2 MiB', () => {
  const core = watch64GiB(MISSING);
  still(core, 'eight million fills', () => {
    for (let i = 0; i < PAGES; i += 2) {
      core.arguments(page(i), PAGE).beginFill(Op.ZEROPAGE, 0);
      core.exports.handleResult(0);
    }
  });
  assert.equal(core.exports.pagesBytes(), 2 * MIB + DIRECTORY);
  assert.deepEqual([stateOf(core, PAGES - 2), stateOf(core, PAGES - 1)], [1, 0]);
});

test('64 GiB, present and removed pages everywhere: 4 MiB', () => {
  const core = watch64GiB(MISSING);
  transfer(core, Op.COPY, 0, PAGES);
  for (let i = 0; i < PAGES; i += CHUNK)
    still(core, 'REMOVE', () => apply(core, remove(page(i), page(i + 1))));
  assert.equal(core.exports.pagesBytes(), 4 * MIB + DIRECTORY);
});

test('64 GiB, claimed pages everywhere, then all present, then all removed: 6 MiB', () => {
  const core = watch64GiB(MISSING);
  still(core, 'filling all planes', () => fillAll(core, 0));
  assert.equal(core.exports.pagesBytes(), 6 * MIB + DIRECTORY);
});

test('64 GiB, the worst case: 8 MiB, with write-protect mode', () => {
  const core = watch64GiB(MISSING | WRITE_PROTECT);
  assert.equal(core.exports.pagesBytes(), DIRECTORY);
  // Room for all four planes is reserved.
  assert.ok(core.memory.buffer.byteLength < 8 * MIB + MIB / 2, `${core.memory.buffer.byteLength}`);
  still(core, 'filling all planes', () => fillAll(core, Option.WRITE_PROTECT));
  assert.equal(core.exports.pagesBytes(), 8 * MIB + DIRECTORY);
});

/** Makes the core allocate every plane that it may need. */
function fillAll(core: Core, options: number): void {
  for (let i = 0; i < PAGES; i += CHUNK) core.arguments(page(i), PAGE).pageClaim();
  transfer(core, Op.COPY, 0, PAGES, options);
  apply(core, remove(page(0), page(PAGES)));
}

test('bitmaps are given back with the range, and used again', () => {
  const core = watch64GiB(MISSING | WRITE_PROTECT);
  transfer(core, Op.COPY, 0, PAGES, Option.WRITE_PROTECT);
  const before = core.memory.buffer.byteLength;
  take(core, 0, PAGES);
  assert.equal(core.exports.pagesBytes(), DIRECTORY);
  put(core, 10 * PAGES, PAGES, { modes: MISSING | WRITE_PROTECT });
  assert.equal(stateOf(core, 10 * PAGES), 0);
  transfer(core, Op.COPY, 10 * PAGES, PAGES, Option.WRITE_PROTECT);
  assert.equal(core.memory.buffer.byteLength, before);
});

test('half of a chunk unregistered keeps the other half', () => {
  const core = makeCore();
  put(core, 0, CHUNK);
  transfer(core, Op.COPY, 0, CHUNK);
  const bytes = core.exports.pagesBytes();
  take(core, 0, CHUNK / 2);
  assert.equal(core.exports.pagesBytes(), bytes);
  assert.deepEqual([stateOf(core, 0), stateOf(core, CHUNK / 2)], [0, 1]);
  take(core, CHUNK / 2, CHUNK / 2);
  assert.equal(core.exports.pagesBytes(), bytes - 1024);
});

test('registering and unregistering 1000 times at moving addresses does not grow memory', () => {
  const core = makeCore();
  const round = (first: number) => {
    put(core, first, 3 * CHUNK, { modes: MISSING | WRITE_PROTECT });
    transfer(core, Op.COPY, first + 5, 2 * CHUNK, Option.WRITE_PROTECT);
    apply(core, remove(page(first), page(first + CHUNK)));
    // Unregister in two steps, so that ranges are split.
    take(core, first + CHUNK, 7);
    take(core, first, 3 * CHUNK);
    // Forget the removals, as if other memory were mapped there.
    core.arguments(page(first), 3 * CHUNK * PAGE).rangeFresh();
  };
  // Three chunks' worth of pages usually touch four chunks.
  round(12_345);
  const memory = core.memory.buffer.byteLength;
  const bytes = core.exports.pagesBytes();
  for (let i = 1; i <= 1000; i++) round(i * 12_345);
  assert.equal(core.memory.buffer.byteLength, memory);
  assert.equal(core.exports.pagesBytes(), bytes);
  assert.equal(core.exports.rangeCount(), 0);
});

test('of memory that is not registered any more only removals are kept: 1 KiB for each chunk with one', () => {
  const core = makeCore();
  const modes = MISSING | WRITE_PROTECT;
  put(core, 0, 10 * CHUNK, { modes });
  transfer(core, Op.COPY, 0, 10 * CHUNK, Option.WRITE_PROTECT);
  const directory = 64 * 32;
  assert.equal(core.exports.pagesBytes(), 20 * 1024 + directory);
  apply(core, remove(page(CHUNK - 1), page(CHUNK + 1)), remove(page(5 * CHUNK), page(5 * CHUNK + 1)));
  take(core, 0, 10 * CHUNK);
  assert.equal(core.exports.pagesBytes(), 3 * 1024 + directory);
  // Repeated registrations allocate no plane twice, and reserve the planes that may be needed.
  for (let i = 0; i < 100; i++) {
    put(core, 0, 10 * CHUNK, { modes });
    const memory = core.memory.buffer.byteLength;
    transfer(core, Op.COPY, 0, 10 * CHUNK, Option.WRITE_PROTECT);
    assert.equal(core.exports.pagesBytes(), 23 * 1024 + directory);
    take(core, 0, 10 * CHUNK);
    assert.equal(core.exports.pagesBytes(), 3 * 1024 + directory);
    assert.equal(core.memory.buffer.byteLength, memory);
  }
  const kept = (first: number) => core.arguments(page(first), CHUNK * PAGE).rangeKept();
  assert.deepEqual([kept(0), kept(2 * CHUNK), kept(5 * CHUNK)], [1, 0, 1]);
  core.arguments(page(0), 2 * CHUNK * PAGE).rangeFresh();
  assert.deepEqual([kept(0), kept(CHUNK), kept(5 * CHUNK)], [0, 0, 1]);
  assert.equal(core.exports.pagesBytes(), 1024 + directory);
  core.arguments(page(0), 10 * CHUNK * PAGE).rangeFresh();
  assert.equal(core.exports.pagesBytes(), directory);
});

test('the same registration again and again does not grow memory', () => {
  const core = makeCore();
  put(core, 0, 100 * CHUNK);
  const memory = core.memory.buffer.byteLength;
  const bytes = core.exports.pagesBytes();
  for (let i = 0; i < 1000; i++) put(core, i % 50, 90 * CHUNK);
  assert.equal(core.exports.pagesBytes(), bytes);
  assert.equal(core.memory.buffer.byteLength, memory);
});

test('a registration too large for the tables is refused, and changes nothing', () => {
  const core = makeCore();
  put(core, 0, 10);
  transfer(core, Op.COPY, 0, 10);
  // 32 TiB would need 1 GiB for each plane; the WebAssembly memory has at most 1 GiB.
  const refused = () => core.arguments(page(100 * CHUNK), 2 ** 45, 0n).rangePut(MISSING, 12);
  assert.equal(refused(), 0);
  assert.equal(core.exports.rangeCount(), 1);
  const memory = core.memory.buffer.byteLength;
  assert.ok(memory < MIB, `${memory} bytes were kept for a registration that was refused`);
  for (let i = 0; i < 10; i++) assert.equal(refused(), 0);
  assert.equal(core.memory.buffer.byteLength, memory);
  // Everything else still works.
  put(core, 1000, 10 * CHUNK);
  transfer(core, Op.COPY, 1000, 10 * CHUNK);
  assert.deepEqual([stateOf(core, 9), stateOf(core, 10), stateOf(core, 1000)], [1, 0, 1]);
  feed(core, fault(page(12)));
  assert.equal(deliver(core).is, 'fault');
});

test('a registration refused for its directory leaves the bitmaps to others', () => {
  const core = makeCore();
  // 10.5 TiB: 1008 MiB of bitmaps fit into the memory, but not together with a directory of 32 MiB.
  const chunks = (1008 * 1024) / 3;
  assert.equal(core.arguments(page(0), chunks * CHUNK * PAGE, 0n).rangePut(MISSING, 12), 0);
  assert.equal(core.exports.rangeCount(), 0);
  for (let i = 0; i < 2; i++)
    assert.equal(core.arguments(page(i * 2 ** 30), 2 ** 42, 0n).rangePut(MISSING, 12), 1);
});

test.run();
