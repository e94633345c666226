// Scenario register-ioctls: which operations `register` returns and which calls it refuses, for every combination of
// modes on every kind of memory, including files on disk; and that it finds the page size by itself.

import { mkdtempSync, readFileSync, rmSync, statfsSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { Mapping, type Mode, type Operation, Userfaultfd } from '../../../src/index.js';
import { skip, suite } from '../../support/harness.js';
import { hugePageSize, withHugePages } from '../../support/huge-pages.js';
import { endAll, needKernel, never, openWith, P, toucher, withUffd } from '../../support/real-kernel.js';
import { featuresOf, isHuge, isProtected, KINDS, type Kind, memoryOf, refused } from './support.js';

const test = suite('register-ioctls');

const COMBINATIONS: readonly (readonly Mode[])[] = [
  ['missing'],
  ['write-protect'],
  ['minor'],
  ['missing', 'write-protect'],
  ['missing', 'minor'],
  ['write-protect', 'minor'],
  ['missing', 'write-protect', 'minor'],
];

/** The operations that this kernel should allow on a range. */
function expected(kind: Kind, modes: readonly Mode[]): Operation[] {
  const { features } = Userfaultfd.probe();
  const operations: Operation[] = ['copy', 'wake'];
  if (features.has('poison')) operations.push('poison');
  if (!isHuge(kind)) operations.push('zero');
  // The kernel reports MOVE for shared memory too, although it refuses to move it.
  if (!isHuge(kind) && features.has('move')) operations.push('move');
  if (modes.includes('write-protect')) operations.push('write-protect');
  if (modes.includes('minor')) operations.push('continue');
  return operations.sort();
}

function check(kind: Kind): void {
  const { features } = Userfaultfd.probe();
  for (const modes of COMBINATIONS) {
    if (kind !== 'anon' && featuresOf(kind, modes).some((feature) => !features.has(feature))) continue;
    const uffd = openWith();
    const area = memoryOf(kind, 2);
    const what = `${kind}, ${modes.join(' and ')}`;
    const length = 2 * area.pageSize;
    if (kind === 'anon' && modes.includes('minor')) {
      refused(
        () => uffd.register(area.address, length, modes),
        'EINVAL',
        'UFFDIO_REGISTER',
        /'minor' needs shared/,
      );
      assert.equal(uffd.ranges, [], what);
    } else {
      const operations = uffd.register(area.address, length, modes);
      assert.equal([...operations].sort(), expected(kind, modes), what);
      const [range, ...others] = uffd.ranges;
      assert.equal(others, []);
      assert.equal([range?.start, range?.length], [area.address, length], what);
      assert.is(range?.pageSize, area.pageSize, what);
      assert.equal([...(range?.modes ?? [])], [...modes], what);
      assert.equal([...(range?.operations ?? [])].sort(), expected(kind, modes), what);
    }
    uffd.close();
    area.close();
  }
}

for (const kind of KINDS) {
  test(`every combination of modes: ${kind}`, async () => {
    needKernel();
    if (isHuge(kind)) await withHugePages(2, () => check(kind));
    else check(kind);
  });
}

test('some of the modes again change nothing; others replace them', async () => {
  await withUffd(['pagefault-flag-wp'], async (uffd) => {
    const area = Mapping.anonymous(P);
    const modes = () => uffd.ranges.map((range) => [...range.modes]);
    uffd.register(area.address, P, ['missing', 'write-protect']);
    assert.not.ok(uffd.register(area.address, P, 'missing').has('write-protect'), 'of the modes asked for');
    assert.equal(modes(), [['missing', 'write-protect']]);
    uffd.copy(area.address, new Uint8Array(P), P, { writeProtect: true });
    assert.ok(isProtected(area.address), 'and the kernel holds to it');
    uffd.unregister(area.address, P);
    uffd.register(area.address, P, 'missing');
    uffd.register(area.address, P, 'write-protect');
    assert.equal(modes(), [['write-protect']]);
    area.close();
  });
});

test('huge pages: parts of one are refused, with the reason', async () => {
  needKernel();
  await withHugePages(1, async () => {
    await withUffd(['missing-hugetlbfs'], async (uffd) => {
      const size = hugePageSize();
      const area = Mapping.anonymous(size, { pageSize: size });
      const start = area.address;
      const whole =
        /huge pages (of which the range covers a part|come only whole)|begin and end on a huge page/;
      refused(() => uffd.register(start, P), 'EINVAL', 'UFFDIO_REGISTER', whole);
      refused(() => uffd.register(start + BigInt(P), size - P), 'EINVAL', 'UFFDIO_REGISTER', whole);
      uffd.register(start, size);
      const page = new Uint8Array(size).fill(0);
      refused(
        () => uffd.copy(start, page, P),
        'EINVAL',
        'UFFDIO_COPY',
        /huge pages of [0-9]+ bytes, and these come only whole/,
      );
      refused(
        () => uffd.zero(start, size),
        'EINVAL',
        'UFFDIO_ZEROPAGE',
        /huge pages of [0-9]+ bytes, which have no zero page/,
      );
      assert.is(uffd.pageState(start), 'missing');
      assert.is(uffd.copy(start, page), size);
      area.close();
    });
  });
});

test('a given page size is checked against the range', async () => {
  await withUffd([], async (uffd) => {
    // Aligned to more than any page size of this test.
    const area = Mapping.anonymous(4 * P, { transparentHuge: true });
    const { address } = area;
    assert.throws(
      () => uffd.register(address, 3 * P, 'missing', { pageSize: 2 * P }),
      /^length must be a positive multiple of the page size, 8192/,
    );
    assert.throws(
      () => uffd.register(address, 3 * P, 'missing', { pageSize: 3 * P }),
      /^pageSize must be a power of two/,
    );
    uffd.register(address, 2 * P);
    const ranges = uffd.ranges.map((range) => ({ ...range, pageSize: 4 * P }));
    const fd = uffd.release();
    assert.throws(() => Userfaultfd.wrap(fd, { ranges }), /^length must be .* 16384/);
    Userfaultfd.wrap(fd).close();
    area.close();
  });
});

test('a shared mapping of a file that was opened for reading only: EPERM', async () => {
  await withUffd(['missing-shmem'], async (uffd) => {
    const shared = Mapping.memfd(P);
    const mapping = Mapping.file(`/proc/self/fd/${shared.fd}`, { shared: true, writable: false });
    refused(
      () => uffd.register(mapping.address, P),
      'EPERM',
      'UFFDIO_REGISTER',
      /shared mapping of a file that was opened for reading/,
    );
    mapping.close();
    shared.close();
  });
});

// ---- files on disk -----------------------------------------------------------------------------------------

const TMPFS = 0x01021994;

/** Runs a body with a file on a disk, two pages of ones. Skips if the folder for temporary files is in memory. */
async function onDisk(body: (path: string) => Promise<void> | void): Promise<void> {
  if (statfsSync(tmpdir()).type === TMPFS) skip(`${tmpdir()} is in memory; set TMPDIR to a folder on a disk`);
  const folder = mkdtempSync(join(tmpdir(), 'uffd-disk-'));
  const path = join(folder, 'file');
  try {
    writeFileSync(path, new Uint8Array(2 * P).fill(1));
    await body(path);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

for (const shared of [false, true]) {
  const kind = shared ? 'shared' : 'private';
  test(`a ${kind} mapping of a file on disk is refused in every mode, with the reason`, async () => {
    needKernel();
    await onDisk((path) => {
      const mapping = Mapping.file(path, { shared });
      const uffd = openWith();
      for (const modes of COMBINATIONS) {
        const call = () => uffd.register(mapping.address, 2 * P, modes);
        refused(call, 'EINVAL', 'UFFDIO_REGISTER', /it is a file on disk|'minor' needs shared memory/);
      }
      assert.equal(uffd.ranges, []);
      uffd.close();
      mapping.close();
    });
  });

  test(`a ${kind} mapping of a file on disk can be write-protected with wp-async, which raises no fault`, async () => {
    await onDisk(async (path) => {
      const mapping = Mapping.file(path, { shared });
      const { address } = mapping;
      const uffd = openWith(['wp-async']);
      const missing = () => uffd.register(address, 2 * P, ['missing', 'write-protect']);
      refused(missing, 'EINVAL', 'UFFDIO_REGISTER', /it is a file on disk/);
      assert.ok(uffd.register(address, 2 * P, 'write-protect').has('write-protect'));
      assert.is(uffd.ranges[0]?.pageSize, P);
      uffd.start({ pagefault: never });
      const thread = await toucher();
      assert.is(uffd.writeProtect(address, 2 * P, true), 2 * P);
      assert.equal(await thread.read(address, address + BigInt(P)), [1, 1]);
      assert.ok(isProtected(address) && isProtected(address + BigInt(P)), 'reading writes nothing');
      await thread.write(9, address);
      assert.not.ok(isProtected(address), 'the kernel has noted the write');
      assert.ok(isProtected(address + BigInt(P)));
      assert.is(readFileSync(path)[0], shared ? 9 : 1);
      uffd.close();
      await endAll();
      mapping.close();
    });
  });
}

test.run();
