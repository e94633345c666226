// Mappings of every kind of memory: huge pages of the pool, transparent huge pages, shared memory with aliases, files.

import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import * as memory from '../../shim/memory.js';
import { Mapping, UffdError } from '../../src/index.js';
import { skip, suite } from '../support/harness.js';
import { hugePageSize, withHugePages } from '../support/huge-pages.js';
import { endAll, holdings, needKernel, openWith, P, smaps, toucher } from '../support/real-kernel.js';

const test = suite('memory/mapping-kinds');
const folder = mkdtempSync(join(tmpdir(), 'uffd-mapping-'));

function file(name: string, bytes: Uint8Array | string): string {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
}

/** The permissions of the mapping that covers an address, such as 'rw-p'. */
function permissionsAt(address: bigint): string | undefined {
  const maps = readFileSync('/proc/self/maps', 'latin1');
  for (const [, start, end, permissions] of maps.matchAll(/^([0-9a-f]+)-([0-9a-f]+) (\S+)/gm))
    if (address >= BigInt(`0x${start}`) && address < BigInt(`0x${end}`)) return permissions;
  return undefined;
}

// ---- huge pages --------------------------------------------------------------------------------------------

test('huge pages of the pool: whole, aligned, and given back', async () => {
  needKernel();
  await withHugePages(2, () => {
    const size = hugePageSize();
    // The pool has only two pages: the second mapping gets those that the first one gave back.
    for (const make of [Mapping.anonymous, Mapping.memfd]) {
      const mapping = make(size + 1, { pageSize: size });
      assert.equal([mapping.length, mapping.pageSize], [size + 1, size]);
      assert.is(mapping.address % BigInt(size), 0n);
      assert.is(memory.pageSizeAt(0, mapping.address), size);
      const view = mapping.bytes;
      view[size] = 7;
      assert.equal([mapping.slice(size, size + 1)[0], view[0]], [7, 0]);
      mapping.close();
      assert.equal([view[0], view[size]], [0, 0], 'a view that is left reads zeros');
      assert.is(memory.pageSizeAt(0, mapping.address), P, 'of pages that are no huge ones');
    }
  });
});

test('huge pages that cannot be had: the error says what the pool is called', () => {
  needKernel();
  const before = holdings();
  const size = hugePageSize();
  for (const make of [Mapping.anonymous, Mapping.memfd]) {
    assert.throws(
      () => make(2 ** 45, { pageSize: size }),
      (error: unknown) =>
        error instanceof UffdError &&
        error.code === 'ENOMEM' &&
        /huge pages of \d+ bytes are not available: the pool .* too few; .*vm\.nr_hugepages/.test(
          error.message,
        ),
    );
    // No machine has pages of 2 ** 27 bytes.
    assert.throws(
      () => make(P, { pageSize: 2 ** 27 }),
      (error: unknown) =>
        error instanceof UffdError && /this machine has none of that size/.test(error.message),
    );
    for (const pageSize of [0, P / 2, 3 * P, 1.5, '4096'])
      assert.throws(() => make(P, { pageSize: pageSize as number }), /^pageSize must be/, String(pageSize));
  }
  assert.equal(holdings().descriptors, before.descriptors);
});

test('huge pages on two threads: attached with their size, and watched', async () => {
  needKernel();
  await withHugePages(1, async () => {
    const size = hugePageSize();
    const uffd = openWith(['missing-hugetlbfs']);
    const mapping = Mapping.anonymous(size, { pageSize: size });
    const there = Mapping.attach(structuredClone(mapping.share()));
    assert.equal([there.address, there.length, there.pageSize, there.fd], [mapping.address, size, size, -1]);
    assert.throws(() => there.alias(), /private or attached, and has no alias/);
    uffd.register(mapping.address, size);
    const source = new Uint8Array(size).fill(3);
    uffd.start({ pagefault: (fault) => uffd.copy(fault.page, source) === size });
    assert.throws(() => there.bytes, /served by a loop on this thread/);
    const thread = await toucher();
    assert.is(await thread.filling(mapping.address, size), 3);
    uffd.stop();
    assert.is(there.bytes[size - 1], 3);
    mapping.close();
    assert.equal(uffd.ranges, []);
    assert.ok(there.closed);
    uffd.close();
    await endAll();
  });
});

test('transparent huge pages only where they are asked for, and aligned to them', async () => {
  needKernel();
  const huge = P ** 2 / 8;
  const setting = readFileSync('/sys/kernel/mm/transparent_hugepage/enabled', 'utf8');
  if (setting.includes('[never]')) skip('transparent huge pages are turned off here');
  for (const transparentHuge of [true, false]) {
    let mapping: Mapping;
    for (let tries = 0; ; tries++) {
      mapping = Mapping.anonymous(2 * huge + P, { transparentHuge });
      assert.equal([mapping.length, mapping.pageSize], [2 * huge + P, P]);
      if (transparentHuge) assert.is(mapping.address % BigInt(huge), 0n);
      mapping.bytes.fill(1);
      // The kernel takes small pages where it finds no huge one at once: other tests may have memory in pieces.
      if (!transparentHuge || tries === 100 || smaps(mapping.address, 'AnonHugePages') === 2 * huge) break;
      mapping.close();
      await sleep(20);
    }
    assert.is(smaps(mapping.address, 'AnonHugePages'), transparentHuge ? 2 * huge : 0);
    assert.is(mapping.bytes[2 * huge + P - 1], 1);
    mapping.close();
  }
});

test('what was cut off to align it is given back', () => {
  needKernel();
  const huge = P ** 2 / 8;
  const size = () => readFileSync('/proc/self/statm', 'utf8').split(' ')[0];
  const before = Number(size());
  const mappings = Array.from({ length: 64 }, () => Mapping.anonymous(huge, { transparentHuge: true }));
  // The process may have grown a little in other ways. If the parts cut off stayed mapped, the growth would double.
  assert.ok(Number(size()) - before < 64 * (huge / P) * 1.25);
  for (const mapping of mappings) mapping.close();
});

// ---- shared memory -----------------------------------------------------------------------------------------

test('memfd: an alias is the same memory; each has a descriptor of its own', () => {
  needKernel();
  const before = holdings().descriptors;
  const mapping = Mapping.memfd(2 * P + 9);
  const alias = mapping.alias();
  assert.equal([alias.length, alias.pageSize], [2 * P + 9, P]);
  assert.ok(alias.address !== mapping.address && alias.fd !== mapping.fd);
  assert.is(holdings().descriptors, before + 2);
  alias.bytes[2 * P + 8] = 5;
  assert.is(mapping.bytes[2 * P + 8], 5);
  const view = mapping.bytes;
  mapping.close();
  assert.equal([mapping.fd, view[2 * P + 8]], [-1, 0]);
  assert.throws(() => mapping.alias(), /is closed/);
  const again = alias.alias();
  assert.is(again.bytes[2 * P + 8], 5, 'an alias outlives what it was made from');
  again.bytes[0] = 1;
  assert.is(alias.bytes[0], 1);
  alias.close();
  again.close();
  assert.is(holdings().descriptors, before);
});

test('private memory has no alias and no descriptor', () => {
  needKernel();
  const before = holdings().descriptors;
  for (const mapping of [Mapping.anonymous(P), Mapping.file(file('private', 'abc'))]) {
    assert.is(mapping.fd, -1);
    assert.throws(
      () => mapping.alias(),
      (error: Error & { code?: string }) =>
        error.code === 'ERR_INVALID_STATE' && /is private/.test(error.message),
    );
    mapping.close();
  }
  assert.is(holdings().descriptors, before);
});

test('a shared file: writes reach it, and other mappings of it', () => {
  needKernel();
  const before = holdings().descriptors;
  const path = file('shared', new Uint8Array(P + 10).fill(1));
  const mapping = Mapping.file(path, { shared: true });
  const reader = Mapping.file(path, { shared: true, writable: false });
  const alias = mapping.alias();
  mapping.bytes[P + 9] = 8;
  alias.bytes[0] = 9;
  assert.equal([reader.bytes[0], reader.bytes[P + 9]], [9, 8]);
  const content = readFileSync(path);
  assert.equal([content.length, content[0], content[P + 9]], [P + 10, 9, 8]);
  for (const [one, permissions] of [
    [mapping, 'rw-s'],
    [reader, 'r--s'],
    [reader.alias(), 'r--s'],
  ] as const) {
    assert.is(permissionsAt(one.address), permissions);
    one.close();
  }
  alias.close();
  assert.is(readFileSync(path)[0], 9, 'closing leaves the file as it is');
  assert.is(holdings().descriptors, before);
});

test('a file in huge pages is mapped in huge pages', async () => {
  needKernel();
  await withHugePages(1, () => {
    const size = hugePageSize();
    const memfd = Mapping.memfd(size, { pageSize: size });
    const mapping = Mapping.file(`/proc/self/fd/${memfd.fd}`, { shared: true });
    assert.equal([mapping.length, mapping.pageSize], [size, size]);
    memfd.bytes[size - 1] = 4;
    assert.is(mapping.bytes[size - 1], 4);
    mapping.close();
    memfd.close();
  });
});

test.run();
