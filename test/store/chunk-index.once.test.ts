// The index: what is written is read again, and an index that is damaged at any byte is refused, or differs only in what
// a hash finds.

import { strict as assert } from 'node:assert';
import {
  type ChunkIndex,
  chunkBytes,
  chunkId,
  chunkKey,
  encodeIndex,
  type IndexError,
  idOf,
  idOfKey,
  parseIndex,
  zeroIds,
} from '../../src/store/index.js';
import { generator, seed, suite } from '../support/harness.js';

const test = suite('store/chunk-index');

function someIndex(size: number, chunkSize: number, random: (below: number) => number): ChunkIndex {
  const count = Math.ceil(size / chunkSize);
  const ids = Uint8Array.from({ length: count * 32 }, () => random(256));
  return { size, chunkSize, digest: random(2) ? 'sha256' : 'sha512-256', count, ids };
}

test('what is written is read again, for random sizes', () => {
  const random = generator(seed());
  for (let round = 0; round < 200; round++) {
    const chunkSize = 4096 * (1 + random(300));
    const index = someIndex(1 + random(40 * chunkSize), chunkSize, random);
    assert.deepEqual(parseIndex(encodeIndex(index), 'it'), index);
    const bytes = Array.from({ length: index.count }, (_, chunk) => chunkBytes(index, chunk));
    assert.equal(
      bytes.reduce((sum, length) => sum + length, 0),
      index.size,
    );
  }
});

test('an index that is damaged at any byte, or cut anywhere, is refused, or names other chunks', () => {
  const random = generator(seed());
  const index = someIndex(5 * 65_536 + 77, 65_536, random);
  const whole = encodeIndex(index);
  for (let at = 0; at < whole.length; at++) {
    for (const change of [1, 0x80, 1 + random(255)]) {
      const bytes = Buffer.from(whole);
      bytes[at] = (bytes[at] as number) ^ change;
      let read: ChunkIndex;
      try {
        read = parseIndex(bytes, 'it');
      } catch (error) {
        assert.equal((error as IndexError).code, 'ERR_UFFD_INDEX');
        assert.match((error as Error).message, /^it: /);
        continue;
      }
      // Flags, ids, and the length of the last chunk: a chunk's hash covers them.
      const inId = at >= 64 && at < whole.length - 40 && (at - 64) % 40 >= 8;
      const inFlags = at >= 16 && at < 24;
      const inEnd = at >= whole.length - 80 && at < whole.length - 72;
      assert.ok(inId || inFlags || inEnd, `byte ${at}`);
      assert.ok(read.size <= 6 * 65_536 && read.size > 5 * 65_536 && read.count === 6);
      if (inId) assert.notDeepEqual(read.ids, index.ids);
    }
    assert.throws(() => parseIndex(whole.subarray(0, at), 'it'), { code: 'ERR_UFFD_INDEX' });
  }
});

test('what is no index of fixed chunks is refused with what to do', () => {
  const whole = encodeIndex(someIndex(10 * 4096, 4096, generator(1)));
  const changed = (at: number, value: bigint): Buffer => {
    const bytes = Buffer.from(whole);
    bytes.writeBigUInt64LE(value, at);
    return bytes;
  };
  assert.throws(() => parseIndex(Buffer.from('#!/bin/sh'), 'x'), /x: this is no index/);
  assert.throws(
    () => parseIndex(changed(24, 2048n), 'x'),
    /no fixed size \(2048:4096:4096\); make it with --chunk/,
  );
  const large = changed(24, 1n << 40n);
  for (const at of [32, 40]) large.writeBigUInt64LE(1n << 40n, at);
  assert.throws(() => parseIndex(large, 'x'), /its chunks have 1099511627776 bytes; only multiples of 4096/);
  assert.throws(
    () => parseIndex(changed(64, 4095n), 'x'),
    /chunk 0 ends at byte 4095 of the data instead of 4096/,
  );
  const { ids, ...rest } = someIndex(4096, 4096, generator(1));
  assert.throws(() => encodeIndex({ ...rest, ids, chunkSize: 5000 }), { code: 'ERR_OUT_OF_RANGE' });
});

test('names of chunks, and the ids of zeros', () => {
  const id = idOf(Buffer.from('abc'), 'sha512-256');
  // FIPS 180-4's example.
  assert.equal(id, '53048e2681941ef99b2e29b76b4c7dabe4c2d0c634fc6d46e0e2f13107e7af23');
  assert.equal(chunkKey(id), `5304/${id}.cacnk`);
  assert.equal(idOfKey(chunkKey(id)), id);
  for (const other of [
    `0000/${id}.cacnk`,
    `${id}.cacnk`,
    `5304/${id}.cacnk.tmp`,
    `5304/${id.toUpperCase()}.cacnk`,
  ])
    assert.equal(idOfKey(other), undefined);
  const { whole, last } = zeroIds({ size: 5000, chunkSize: 4096, digest: 'sha256' });
  assert.equal(whole, idOf(Buffer.alloc(4096), 'sha256'));
  assert.equal(last, idOf(Buffer.alloc(904), 'sha256'));
  const index = someIndex(9000, 4096, generator(1));
  assert.equal(chunkId(index, 2), Buffer.from(index.ids.subarray(64)).toString('hex'));
});

test.run();
