// Scenarios minor, minor with wp, minor collapse: pages that are in the page cache, but not mapped here yet. The
// handler may change them first, through another mapping of the same memory.

import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import * as memory from '../../../shim/memory.js';
import { Mapping, type Mode } from '../../../src/index.js';
import { skip, suite } from '../../support/harness.js';
import { P, smaps, withUffd } from '../../support/real-kernel.js';
import { featuresOf, isProtected, refused, type Stage, scenario } from './support.js';

const test = suite('minor');
const MADV_COLLAPSE = 25;
const EAGAIN = 11;
const EBUSY = 16;
const SHARED = ['shmem', 'hugetlb'] as const;

/** Writes the pages' content into the page cache; the watched mapping still maps none of the pages. */
function populate({ pages, content }: Stage, alias: Mapping): void {
  for (let index = 0; index < pages; index++) alias.bytes.set(content(index), index * alias.pageSize);
}

/** How the handler changes a byte. */
const flipped = (byte: number): number => byte ^ 0xff;

/** Serves minor faults by flipping the page's bytes through the alias first; returns their kinds and pages. */
function serve(
  { uffd, pageSize, indexOf }: Stage,
  alias: Mapping,
  writeProtect: boolean,
): [string, number][] {
  const faults: [string, number][] = [];
  uffd.start({
    pagefault(fault) {
      const index = indexOf(fault.page);
      faults.push([fault.kind, index]);
      if (fault.kind === 'write-protect') {
        assert.is(uffd.writeProtect(fault.page, pageSize, false), pageSize);
        return;
      }
      const bytes = alias.slice(index * pageSize, (index + 1) * pageSize);
      for (let i = 0; i < pageSize; i++) bytes[i] = flipped(bytes[i] as number);
      assert.is(uffd.continue(fault.page, pageSize, { writeProtect }), pageSize);
    },
  });
  return faults;
}

scenario(test, 'minor', { kinds: SHARED, modes: 'minor' }, async (stage) => {
  const { uffd, thread, area, pages, page, pageSize } = stage;
  const alias = area.alias();
  populate(stage, alias);
  const faults = serve(stage, alias, false);
  for (let index = 0; index < pages; index++)
    assert.is(await thread.filling(page(index), pageSize), flipped(index + 1));
  await thread.write(5, page(1));
  assert.is(alias.bytes[pageSize], 5, 'both mappings are the same memory');
  assert.equal(
    faults,
    Array.from({ length: pages }, (_, index) => ['minor', index]),
  );
  // The pages are mapped already: they count, and stay unchanged.
  assert.is(uffd.continue(area.address, pages * pageSize), pages * pageSize);
  assert.is(uffd.pageState(page(pages - 1)), 'present');
  alias.close();
});

scenario(test, 'minor: writing faults as a write', { kinds: SHARED, modes: 'minor' }, async (stage) => {
  const { thread, area, page, pageSize } = stage;
  const alias = area.alias();
  populate(stage, alias);
  const faults = serve(stage, alias, false);
  await thread.write(9, page(2) + 1n);
  assert.equal(await thread.read(page(2), page(2) + 1n), [flipped(3), 9]);
  assert.is(alias.bytes[2 * pageSize + 1], 9);
  assert.equal(faults, [['minor', 2]]);
  alias.close();
});

scenario(test, 'minor-wp', { kinds: SHARED, modes: ['minor', 'write-protect'] }, async (stage) => {
  const { uffd, thread, area, pages, page, pageSize } = stage;
  const alias = area.alias();
  populate(stage, alias);
  const faults = serve(stage, alias, true);
  for (let index = 0; index < pages; index++) {
    assert.is(await thread.filling(page(index), pageSize), flipped(index + 1));
    assert.ok(isProtected(page(index)) && uffd.isWriteProtected(page(index)));
    await thread.write(index, page(index));
    assert.not.ok(isProtected(page(index)) || uffd.isWriteProtected(page(index)));
  }
  assert.equal(
    faults,
    Array.from({ length: pages }, (_, index) => [
      ['minor', index],
      ['write-protect', index],
    ]).flat(),
  );
  alias.close();
});

scenario(test, 'minor beside missing', { kinds: SHARED, modes: ['missing', 'minor'] }, async (stage) => {
  const { uffd, thread, area, page, pageSize, content, indexOf } = stage;
  const alias = area.alias();
  alias.bytes.set(content(1), pageSize);
  const kinds: [string, number][] = [];
  uffd.start({
    pagefault(fault) {
      kinds.push([fault.kind, indexOf(fault.page)]);
      const missing = fault.kind === 'missing';
      return (missing ? stage.fill(fault.page) : uffd.continue(fault.page, pageSize)) === pageSize;
    },
  });
  assert.equal(await thread.read(page(0), page(1), page(2)), [1, 2, 3]);
  assert.equal(kinds, [
    ['missing', 0],
    ['minor', 1],
    ['missing', 2],
  ]);
  assert.is(alias.bytes[2 * pageSize], 3, 'a copy goes into the page cache');
  alias.close();
});

scenario(test, 'what cannot be continued is refused', { kinds: SHARED, modes: 'minor' }, async (stage) => {
  const { uffd, base, pageSize, area } = stage;
  refused(
    () => uffd.continue(base, pageSize),
    'EFAULT',
    'UFFDIO_CONTINUE',
    /write it through another mapping/,
  );
  const alias = area.alias();
  populate(stage, alias);
  refused(() => uffd.continue(base, pageSize, { writeProtect: true }), 'EINVAL', 'UFFDIO_CONTINUE');
  assert.is(uffd.continue(base, pageSize), pageSize);
  alias.close();
});

scenario(
  test,
  'a missing page of anonymous memory cannot be continued',
  { kinds: ['anon'] },
  async (stage) => {
    const { uffd, base, pageSize } = stage;
    refused(() => uffd.continue(base, pageSize), 'EINVAL', 'UFFDIO_CONTINUE', /only shared memory/);
  },
);

for (const modes of [['minor'], ['minor', 'write-protect']] as Mode[][]) {
  test(`minor-collapse, ${modes.join(' and ')}: pages that become one huge page behind the scenes`, async () => {
    const THP = P ** 2 / 8;
    await withUffd(featuresOf('shmem', modes), async (uffd, thread) => {
      const area = Mapping.memfd(THP);
      // A second mapping of the memfd, aligned as a huge page must be.
      const alias = Mapping.anonymous(THP, { transparentHuge: true });
      const { PROT_READ, PROT_WRITE, MAP_SHARED, MAP_FIXED } = memory;
      memory.mmap(alias.address, THP, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, area.fd);
      for (let page = 0; page < THP / P; page++) alias.bytes.fill(page, page * P, (page + 1) * P);
      uffd.register(area.address, area.length, modes);
      const protect = modes.includes('write-protect');
      const faults: string[] = [];
      uffd.start({
        pagefault(fault) {
          faults.push(fault.kind);
          if (fault.kind === 'minor') uffd.continue(fault.page, P, { writeProtect: protect });
          else uffd.writeProtect(fault.page, P, false);
        },
      });
      const first = area.address;
      const read = async () => {
        for (const page of [0, 7, 255, 511])
          assert.is(await thread.filling(first + BigInt(page * P), P), page & 255);
      };
      await read();
      let collapsed = await thread.madvise(alias.address, THP, MADV_COLLAPSE);
      // A page is in use elsewhere in this moment.
      for (let tries = 0; tries < 100 && (collapsed === -EAGAIN || collapsed === -EBUSY); tries++) {
        await sleep(20);
        collapsed = await thread.madvise(alias.address, THP, MADV_COLLAPSE);
      }
      if (collapsed !== 0) skip(`this system makes no huge pages of shared memory (errno ${-collapsed})`);
      assert.is(smaps(alias.address, 'ShmemPmdMapped'), THP);
      // The thread may fault again on pages that were mapped; their bytes and their protection stay.
      await read();
      if (protect) assert.ok(isProtected(first) && isProtected(first + BigInt(7 * P)));
      await thread.write(77, first + 5n);
      assert.is(alias.bytes[5], 77);
      assert.is(faults.includes('write-protect'), protect);
      uffd.unregister(area.address, area.length);
      alias.close();
      area.close();
    });
  });
}

test.run();
