// The structs of all calls except fills: each lies at the address that the shim passes, with all fields that the kernel
// reads.

import { strict as assert } from 'node:assert';
import { suite } from '../support/harness.js';
import { makeCore, P, page } from './support.js';

const test = suite('request');

const GARBAGE = 0xeeee_eeee_eeee_eeeen;

/** Fills the struct with garbage and lets the core prepare a call; returns the request code and the struct's words. */
function struct(ask: (core: ReturnType<typeof makeCore>) => number, words: number): [number, bigint[]] {
  const core = makeCore();
  const view = new BigUint64Array(core.memory.buffer, core.request, words);
  view.fill(GARBAGE);
  const code = ask(core) >>> 0;
  return [code, [...view]];
}

test('a handshake asks for its features', () => {
  assert.deepEqual(
    struct((core) => core.arguments(0n, 0, 5n).requestApi(), 4),
    [0xc018aa3f, [0xaan, 5n, 0n, GARBAGE]],
  );
});

test('ranges to register, unregister and wake', () => {
  assert.deepEqual(
    struct((core) => core.arguments(page(3), 2 * 4096).requestRegister(3), 4),
    [0xc020aa00, [page(3), 2n * P, 3n, 0n]],
  );
  for (const [name, code] of [
    ['requestUnregister', 0x8010aa01],
    ['requestWake', 0x8010aa02],
  ] as const) {
    assert.deepEqual(
      struct((core) => core.arguments(page(3), 2 * 4096)[name](), 2),
      [code, [page(3), 2n * P]],
    );
  }
});

test('whether the memory is there is asked by a copy that cannot be done', () => {
  const [code, [to, from, length, mode, result]] = struct((core) => core.exports.requestPresence(), 5);
  assert.equal(code, 0xc028aa03);
  assert.deepEqual([mode, result], [0n, 0n]);
  const huge = 1n << 30n;
  for (const address of [to, from] as [bigint, bigint]) {
    assert.equal(address % huge, 0n, 'whole pages, of any size');
    assert.ok(address >= 1n << 32n, 'above what programs and vm.mmap_min_addr take');
  }
  assert.equal((length as bigint) % huge, 0n);
  assert.ok((length as bigint) >= 1n << 38n, 'larger than any mapping there');
  assert.ok((to as bigint) + (length as bigint) < 1n << 39n, 'inside the smallest address space');
});

test('what to poll, and whether the process has exited', () => {
  const core = makeCore();
  const view = new DataView(core.memory.buffer, core.polled, 24);
  /** The fields of one pollfd: fd, events, revents. */
  const at = (index: number): number[] => [
    view.getInt32(index * 8, true),
    view.getInt16(index * 8 + 4, true),
    view.getInt16(index * 8 + 6, true),
  ];
  core.exports.pollWatch(7, -1, 9);
  assert.deepEqual([0, 1, 2].map(at), [
    [7, 1, 0],
    [-1, 1, 0],
    [9, 1, 0],
  ]);
  assert.equal(core.exports.pollExited(), 0);
  for (const index of [0, 1]) view.setInt16(index * 8 + 6, 1, true);
  assert.equal(core.exports.pollExited(), 0, 'a message and a stop are no exit');
  for (const revents of [1, 0x10, 0x11]) {
    view.setInt16(22, revents, true);
    assert.equal(core.exports.pollExited(), 1);
  }
  core.exports.pollWatch(7, 8, 9);
  assert.equal(core.exports.pollExited(), 0, 'asked anew');
});

test('the flags of a new descriptor', () => {
  const core = makeCore();
  assert.equal(core.exports.openFlags(false), 0x80800);
  assert.equal(core.exports.openFlags(true), 0x80801);
  assert.equal(core.exports.openRequest(), 0xaa00);
});

test.run();
