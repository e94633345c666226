// Mappings: their bytes, their protection against misuse, and what close leaves behind.

import { constants } from 'node:buffer';
import { mkdtempSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { readMemory } from '../../shim/access.js';
import { Mapping, UffdError, Userfaultfd } from '../../src/index.js';
import { leaveOut, suite } from '../support/harness.js';
import {
  at,
  endAll,
  looper,
  needKernel,
  openWith,
  P,
  pageOf,
  toucher,
  until,
} from '../support/real-kernel.js';

const test = suite('memory/mapping');
const gc = (globalThis as unknown as { gc(): void }).gc;
const folder = mkdtempSync(join(tmpdir(), 'uffd-mapping-'));

function file(name: string, bytes: Uint8Array | string): string {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
}

/** Whether any mapping of this process covers an address. */
function isMapped(address: bigint): boolean {
  return readFileSync('/proc/self/maps', 'utf8')
    .split('\n')
    .some((line) => {
      const [start, end] = (line.split(' ')[0] as string).split('-').map((part) => BigInt(`0x${part || 0}`));
      return address >= (start as bigint) && address < (end ?? 0n);
    });
}

/** Whether an address holds a byte. */
function holds(address: bigint, byte: number): boolean {
  const found = new Uint8Array(1);
  return readMemory(address, found) === 1 && found[0] === byte;
}

test('anonymous memory is zero, writable, page-aligned, and of the length asked for', () => {
  needKernel();
  const mapping = Mapping.anonymous(3 * P + 5);
  assert.is(mapping.length, 3 * P + 5);
  assert.is(mapping.address % BigInt(P), 0n);
  const { bytes } = mapping;
  assert.is(bytes.length, 3 * P + 5);
  assert.ok(bytes.every((byte) => byte === 0));
  bytes[P] = 7;
  assert.is(mapping.bytes[P], 7);
  assert.equal([...mapping.slice(P - 1, P + 2)], [0, 7, 0]);
  mapping.close();
});

test("a file's bytes, whole and partial pages; writes stay private", () => {
  needKernel();
  const content = Uint8Array.from({ length: P + 100 }, (_, i) => i % 251);
  const path = file('content', content);
  const mapping = Mapping.file(path);
  assert.is(mapping.length, content.length);
  assert.is(Buffer.compare(mapping.bytes, content), 0);
  mapping.bytes[0] = 99;
  assert.is(Buffer.compare(readFileSync(path), content), 0);
  mapping.close();
});

test('what cannot be mapped says why', () => {
  needKernel();
  assert.throws(() => Mapping.file(file('empty', '')), /size of .*empty must be at least 1 byte/);
  assert.throws(() => Mapping.file(join(folder, 'missing')), /ENOENT/);
  assert.throws(() => Mapping.file(folder), /EISDIR|no regular file/);
  assert.throws(() => Mapping.file('/dev/zero'), /no regular file/);
  for (const length of [0, -1, 1.5, Number.NaN, '5', 5n]) {
    assert.throws(() => Mapping.anonymous(length as number), /^length must be/, String(length));
  }
  assert.throws(
    () => Mapping.anonymous(2 ** 52),
    (error: unknown) => error instanceof UffdError && error.code === 'ENOMEM' && error.syscall === 'mmap',
  );
});

test('a mapping larger than a buffer is refused whole, and readable in slices', () => {
  needKernel();
  // From Node 22 on, a buffer can be larger than any mapping.
  if (constants.MAX_LENGTH > 2 ** 46) leaveOut('a buffer can hold any mapping');
  const mapping = Mapping.anonymous(constants.MAX_LENGTH + P);
  assert.throws(() => mapping.bytes, /must be at most \d+, the largest buffer/);
  const tail = mapping.slice(mapping.length - 2, mapping.length);
  tail[1] = 5;
  assert.equal([...mapping.slice(mapping.length - 1, mapping.length)], [5]);
  mapping.close();
});

test('bytes are refused on the thread whose loop serves them, and had elsewhere', async () => {
  const uffd = openWith();
  const mapping = Mapping.anonymous(4 * P);
  uffd.register(mapping.address, P);
  assert.is(mapping.bytes.length, 4 * P, 'before the loop runs');
  uffd.start({ pagefault: (fault) => void uffd.copy(fault.page, pageOf(3)) });
  assert.throws(() => mapping.bytes, /served by a loop on this thread \(the main thread\)/);
  assert.throws(() => mapping.slice(3 * P, 4 * P), /served by a loop/);
  const thread = await toucher();
  assert.equal(await thread.read(mapping.address), [3]);
  uffd.stop();
  assert.is(mapping.bytes[0], 3);
  uffd.start({ pagefault() {} });
  uffd.unregister(mapping.address, P);
  assert.is(mapping.bytes[0], 3, 'and where nothing of it is watched');
  uffd.close();
  mapping.close();
  await endAll();
});

test('after close an old view reads zeros, and new ones are refused', () => {
  needKernel();
  const mapping = Mapping.anonymous(2 * P);
  const view = mapping.bytes;
  view.fill(8);
  mapping.close();
  mapping.close();
  assert.is(mapping.closed, true);
  assert.equal([view[0], view[P], view.length], [0, 0, 2 * P]);
  view[0] = 1;
  assert.throws(() => mapping.bytes, /is closed/);
});

test('the address space goes back when the last view is collected, and not before', async () => {
  needKernel();
  let view: Uint8Array | undefined;
  const mapping = Mapping.anonymous(2 * P);
  const { address } = mapping;
  view = mapping.bytes;
  mapping.close();
  for (let n = 0; n < 5; n++) {
    gc();
    await sleep(1);
  }
  assert.is(view[0], 0);
  assert.ok(isMapped(address));
  // Other memory may get the address at once, but it does not hold this byte.
  view[0] = 77;
  assert.ok(holds(address, 77));
  view = undefined;
  await until(() => {
    gc();
    return !holds(address, 77);
  }, 'the address space to go back');
});

test('without a view the address space goes back at once', () => {
  needKernel();
  const mapping = Mapping.anonymous(2 * P);
  const { address } = mapping;
  mapping.close();
  assert.not.ok(isMapped(address));
});

test('a view on another thread outlives the close here', async () => {
  needKernel();
  const mapping = Mapping.anonymous(P);
  mapping.bytes[0] = 6;
  const there = Mapping.attach(structuredClone(mapping.share()));
  const view = there.bytes;
  assert.is(view[0], 6);
  there.close();
  assert.is(mapping.bytes[0], 6, "an attached one's close leaves the owner's alone");
  const second = Mapping.attach(mapping.share());
  mapping.close();
  assert.is(second.closed, true);
  assert.throws(() => second.bytes, /is closed/);
  assert.is(view[0], 0);
  assert.ok(isMapped(mapping.address));
});

test('pages that are discarded are zeros again, and the others stay', () => {
  needKernel();
  const mapping = Mapping.anonymous(3 * P);
  mapping.bytes.fill(4);
  mapping.discard(P, 2 * P);
  assert.equal([mapping.bytes[0], mapping.bytes[P], mapping.bytes[2 * P]], [4, 0, 4]);
  mapping.discard(P, P);
  mapping.discard();
  assert.equal([mapping.bytes[0], mapping.bytes[2 * P]], [0, 0]);
  assert.throws(() => mapping.discard(1), /^start must be a multiple of 4096/);
  assert.throws(() => mapping.discard(0, P + 1), /^end must be a multiple/);
  assert.throws(() => mapping.discard(2 * P, P), /^end must be/);
  mapping.close();
  assert.throws(() => mapping.discard(), /is closed/);
});

test('pages that are relocated are there, and an old view reads zeros', () => {
  needKernel();
  const mapping = Mapping.anonymous(2 * P);
  const view = mapping.bytes;
  view.fill(6);
  const moved = mapping.relocate();
  assert.ok(moved.address !== mapping.address);
  assert.equal([moved.bytes[0], moved.bytes[2 * P - 1], view[0]], [6, 6, 0]);
  mapping.close();
  assert.is(moved.bytes[P], 6);
  moved.close();
  const shared = Mapping.memfd(P);
  assert.throws(() => shared.relocate(), /is a file's, or was attached, and cannot be relocated/);
  assert.throws(() => Mapping.attach(moved.share()).relocate(), /cannot be relocated/);
  assert.throws(() => mapping.relocate(), /is closed/);
  shared.close();
});

test('a change is refused if this thread is the one that would have to read its event', () => {
  const uffd = openWith(['event-remove', 'event-remap']);
  const mapping = Mapping.anonymous(P);
  mapping.discard();
  uffd.register(mapping.address, P);
  assert.throws(() => mapping.discard(), /watched for 'event-remove' on this thread \(the main thread\)/);
  assert.throws(() => mapping.relocate(), /watched for 'event-remap' on this thread/);
  uffd.close();
  mapping.discard();
  mapping.close();
});

test('closing a mapping that this thread watches does not wait for this thread', async () => {
  const uffd = openWith(['event-unmap', 'event-remove']);
  const mapping = Mapping.anonymous(2 * P);
  uffd.register(mapping.address, 2 * P);
  const calls: string[] = [];
  uffd.start({ pagefault() {}, unmapped: () => void calls.push('unmapped') });
  mapping.close();
  assert.equal(uffd.ranges, []);
  await sleep(5);
  assert.equal(calls, []);
  uffd.close();
});

test('closing a mapping that another thread watches posts an event to its loop', async () => {
  const uffd = openWith(['event-unmap']);
  const mapping = Mapping.anonymous(2 * P);
  uffd.register(mapping.address, 2 * P);
  const loop = await looper(uffd, { wait: 'block' });
  const { address } = mapping;
  mapping.close();
  await loop.end();
  assert.equal(
    loop.messages.filter((message) => message.type === 'event').map((message) => message.call),
    [`unmapped ${address} ${at(address, 2)}`],
  );
});

test('a file that shrinks makes copying from the lost pages an error, not a crash', () => {
  const path = file('shrinks', new Uint8Array(4 * P).fill(1));
  const source = Mapping.file(path);
  const uffd = openWith();
  const target = Mapping.anonymous(4 * P);
  uffd.register(target.address, 4 * P);
  truncateSync(path, P);
  assert.throws(
    () => uffd.copy(target.address, source.address, 4 * P),
    (error: unknown) => error instanceof UffdError && error.code === 'EFAULT' && error.transferred === P,
  );
  uffd.close();
  source.close();
  target.close();
});

test('a source with a partial last page is copied as whole pages, zero behind the end', async () => {
  const source = Mapping.file(file('partial', new Uint8Array(P + 1).fill(9)));
  const target = Mapping.anonymous(2 * P);
  using uffd = Userfaultfd.open();
  uffd.register(target.address, 2 * P);
  assert.is(uffd.copy(target.address, source.address, 2 * P), 2 * P);
  assert.equal([target.bytes[P], target.bytes[P + 1]], [9, 0]);
});

test.run();
