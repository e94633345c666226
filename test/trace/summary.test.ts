// Summaries of handwritten traces, compared with figures that were counted by hand.

import { strict as assert } from 'node:assert';
import { Kind } from '../../src/trace/codec.js';
import { Histogram } from '../../src/trace/histogram.js';
import { describe } from '../../src/trace/index.js';
import { generator, seed, suite } from '../support/harness.js';
import {
  BASE,
  COPY,
  copied,
  EAGAIN,
  MINOR,
  PROTECTED,
  page,
  REGISTER,
  Script,
  size,
  WAKE,
  WRITE,
  WRITEPROTECT,
  ZEROPAGE,
} from './support/handwritten-trace.js';
import { P } from './support/traces.js';

const test = suite('trace/summary');

test('faults by kind and access, threads, pages, ranges', () => {
  const summary = new Script()
    .ioctl(10, REGISTER, 0n, [page(16), size(4), 3n, 0n])
    .ioctl(11, REGISTER, -22n, [page(32), size(4), 1n, 0n])
    .faults(20, [0, 0n, 7], [1, WRITE, 8], [1, WRITE, 9])
    .faults(30, [0, WRITE | PROTECTED, 7], [5, MINOR, 7])
    .summary();
  assert.equal(summary.faults, 5);
  assert.deepEqual(summary.faultsByKind, {
    missing: { read: 1, write: 2 },
    'write-protect': { read: 0, write: 1 },
    minor: { read: 1, write: 0 },
  });
  assert.equal(summary.threads, 3);
  assert.equal(summary.pages, 3);
  assert.deepEqual(summary.ranges, [
    { start: '0x7f0000000000', bytes: 8 * P, modes: ['missing'] },
    { start: '0x7f0000010000', bytes: 4 * P, modes: ['missing', 'write-protect'] },
  ]);
  assert.equal(summary.rangesRegistered, 2);
  assert.deepEqual(
    [summary.how, summary.features, summary.about],
    ['wrap', ['thread-id'], { what: 'a test' }],
  );
  assert.equal(summary.durationMs, 0.03);
  // The description and the end are records too.
  assert.equal(summary.records, 6);
  assert.equal(summary.unresolved, 3);
  assert.equal(summary.damage, undefined);
});

test('latency: from the read to the call that lets the sleepers go, and to no other', () => {
  const summary = new Script()
    .faults(
      100,
      [0, 0n, 0],
      [1, 0n, 0],
      [2, 0n, 0],
      [3, 0n, 0],
      [4, WRITE | PROTECTED, 0],
      [5, 0n, 0],
      [6, 0n, 0],
    )
    // Wake no thread: EAGAIN without progress, and a fill with DONTWAKE.
    .ioctl(110, COPY, EAGAIN, ...copied(page(0), size(1), EAGAIN))
    .ioctl(115, ZEROPAGE, 0n, [page(0), size(1), 1n, 0n], [page(0), size(1), 1n, size(1)])
    // Fills one page of two.
    .ioctl(120, COPY, EAGAIN, ...copied(page(0), size(2), size(1)))
    .ioctl(130, COPY, 0n, ...copied(page(1), size(1), size(1)))
    .ioctl(140, ZEROPAGE, 0n, [page(2), size(1), 0n, 0n], [page(2), size(1), 0n, size(1)])
    .ioctl(150, WAKE, 0n, [page(3), size(1)])
    // Protecting wakes no thread; lifting the protection does, except with DONTWAKE.
    .ioctl(155, WRITEPROTECT, 0n, [page(4), size(1), 1n])
    .ioctl(156, WRITEPROTECT, 0n, [page(4), size(1), 2n])
    .ioctl(160, WRITEPROTECT, 0n, [page(4), size(1), 0n])
    // Fill more pages than threads wait for.
    .ioctl(170, COPY, EAGAIN, ...copied(page(5), size(1000), size(1)))
    .ioctl(190, COPY, 0n, ...copied(page(6), size(1000), size(1000)))
    .summary();
  assert.deepEqual(summary.latencyUs, { count: 7, p50: 50, p90: 90, p99: 90, most: 90 });
  assert.equal(summary.unresolved, 0);
  assert.equal(summary.eagains, 3);
  assert.equal(summary.calls.COPY, 5);
});

test('mapping changes, re-offers, and unknown messages', () => {
  const message = (event: number, ...words: bigint[]): Uint8Array => {
    const view = new DataView(new ArrayBuffer(32));
    view.setUint8(0, event);
    for (const [index, word] of words.entries()) view.setBigUint64(8 + index * 8, word, true);
    return new Uint8Array(view.buffer);
  };
  const summary = new Script()
    .read(1, message(0x15, page(0), page(1)))
    .read(2, message(0x16, page(0), page(1)))
    .read(3, message(0x14, page(0), page(9), size(1)))
    .read(4, message(0x13, 7n))
    .read(5, message(0x77))
    .answer(6, 0n)
    .answer(7, 0n)
    .answer(8, 1n)
    .answer(9, 3n)
    .summary();
  assert.deepEqual(summary.changes, { remove: 1, unmap: 1, remap: 1, fork: 1 });
  assert.equal(summary.reoffers, 2);
  assert.equal(summary.faults, 0);
  assert.deepEqual(summary.latencyUs, { count: 0, p50: 0, p90: 0, p99: 0, most: 0 });
});

test('an observer gets faults, woken threads, pages filled ahead and removed pages, in order', () => {
  const observed: unknown[][] = [];
  const record =
    (what: string) =>
    (...args: unknown[]): void => {
      observed.push([what, ...args]);
    };
  const observer = Object.fromEntries(
    ['fault', 'letGo', 'filledAhead', 'removed', 'hugePages'].map((name) => [name, record(name)]),
  );
  const first = Number(BASE) / P;
  const script = new Script()
    .faults(10, [1, 0n, 7], [3, WRITE, 8], [3, WRITE, 9])
    // Fills pages 0 to 5 without waking; threads wait for two of them. The second call fails and fills nothing.
    .ioctl(12, COPY, 0n, [page(0), 0n, size(6), 1n, 0n], [page(0), 0n, size(6), 1n, size(6)])
    .ioctl(13, COPY, EAGAIN, ...copied(page(6), size(1), EAGAIN))
    .ioctl(20, WAKE, 0n, [page(0), size(6)])
    .removed(30, 0x15, page(2), page(4))
    .removed(31, 0x16, page(0), page(8))
    .faults(40, [0, MINOR, 0]);
  const summary = script.summary(observer);
  assert.deepEqual(observed, [
    ['fault', 10, first + 1, 'missing', 'read', 7],
    ['fault', 10, first + 3, 'missing', 'write', 8],
    ['fault', 10, first + 3, 'missing', 'write', 9],
    ['filledAhead', 12, first, 1],
    ['filledAhead', 12, first + 2, 1],
    ['filledAhead', 12, first + 4, 2],
    ['letGo', 20, first + 1, 10],
    ['letGo', 20, first + 3, 10],
    ['removed', 30, first + 2, 2, 'remove'],
    ['removed', 31, first, 8, 'unmap'],
    ['fault', 40, first, 'minor', 'read', 0],
  ]);
  assert.deepEqual(summary, script.summary());
});

test('a fault in a huge page waits for all of it', () => {
  const observed: unknown[][] = [];
  const first = Number(BASE) / P;
  new Script(4 * P)
    .faults(10, [4, 0n, 0])
    .ioctl(12, COPY, 0n, ...copied(page(0), size(12), size(12)))
    .summary({
      hugePages: (...args) => observed.push(args),
      filledAhead: (...args) => observed.push(args),
    });
  assert.deepEqual(observed, [
    [first, 32, 4],
    [12, first, 4],
    [12, first + 8, 4],
  ]);
});

test('percentiles are those of the sorted values, at most 1/32 below', () => {
  const dice = generator(seed());
  for (let round = 0; round < 50; round++) {
    const histogram = new Histogram();
    const values = Array.from({ length: 1 + dice(500) }, () => dice(2 ** (1 + dice(40))));
    for (const value of values) histogram.add(value);
    values.sort((a, b) => a - b);
    for (const percent of [1, 50, 90, 99, 100]) {
      const exact = values[Math.ceil((values.length * percent) / 100) - 1] as number;
      const observed = histogram.percentile(percent);
      assert.ok(observed <= exact && observed >= exact * (31 / 32), `${observed} for ${exact}`);
    }
    assert.equal(histogram.most, values.at(-1));
    assert.equal(histogram.count, values.length);
  }
});

test('calls as people read them', () => {
  const line = (kind: number, ...words: bigint[]): string => describe({ kind, time: 0, words });
  const minus = (value: bigint): bigint => BigInt.asUintN(64, value);
  assert.equal(line(Kind.USERFAULTFD, 0x80800n, minus(-1n)), 'userfaultfd(526336) = EPERM');
  assert.equal(line(Kind.READ, 3n, 4096n, 64n), 'read(3, 4096) = 64');
  assert.equal(line(Kind.READ_EMPTY, 3n, 4096n), 'read(3, 4096) = EAGAIN');
  assert.equal(line(Kind.POLL, 3n, 200n, 1n, 5n, 0n, 6n, 0n, minus(-1n), 0n), 'poll([5, 6, -1], 200) = 1');
  assert.equal(
    line(Kind.PAGE_SIZE_AT, 0n, BASE, 2n ** 34n),
    'page size at 0x7f0000000000 of process 0 = 17179869184',
  );
  assert.equal(line(Kind.AFTER, 0x3ff8000000000000n, 4n), 'after(1.5 ms) = 4');
  assert.equal(
    line(Kind.IOCTL + 3, 3n, BigInt(COPY), minus(-17n), BASE, 16n, 4096n, 1n),
    'COPY(dst 0x7f0000000000, src 0x10, length 4096, mode 1) = EEXIST',
  );
  assert.equal(
    line(Kind.NOTE, BASE, 4096n, 0n, 0n),
    'copy(dst 0x7f0000000000, length 4096, options 0, src 0x0)',
  );
  assert.equal(line(Kind.NOTE + 15, 0n), 'the handler: not now');
});

test.run();
