// Tracked memory that changes: replaced or moved memory is an error, never another mapping's bytes; inaccessible pages
// are an error, never a signal; and pages that the kernel changes by itself (swap, collapse) stay correctly tracked.

import { type FileHandle, open } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import * as assert from 'uvu/assert';
import { libc } from '../../shim/libc.js';
import * as memory from '../../shim/memory.js';
import { type Checkpoint, DirtyTracker } from '../../src/dirty/index.js';
import { Mapping, type UffdError, Userfaultfd } from '../../src/index.js';
import { inDirectory } from '../cli/support/command.js';
import { skip, suite } from '../support/harness.js';
import {
  at,
  compileLibrary,
  endAll,
  holdings,
  kernelWith,
  map,
  needKernel,
  P,
  toucher,
  until,
} from '../support/real-kernel.js';
import { MODES, pagesOf } from './support/tracked-memory.js';

const test = suite('dirty/changed');

const PAGES = 8;
const RW = memory.PROT_READ | memory.PROT_WRITE;
const PRIVATE = memory.MAP_PRIVATE | memory.MAP_ANONYMOUS;
const MADV_GUARD_INSTALL = 102;
const MADV_GUARD_REMOVE = 103;

/** A C function that the library itself does not call. */
function c(declaration: string): (...args: (number | bigint)[]) => number {
  return libc().koffi.load(null).func(declaration) as never;
}

const mprotect = (address: bigint, length: number, protection: number): number =>
  c('int mprotect(uintptr_t, size_t, int)')(address, length, protection);

function bytesAt(address: bigint, length = P): Uint8Array {
  return new Uint8Array(memory.view(address, length));
}

/** The pages that `collect` reports. */
function collected(tracker: DirtyTracker, base: bigint): number[] {
  return pagesOf(tracker.collect(), base, P);
}

async function errorOf<T>(action: () => T | Promise<T>): Promise<UffdError> {
  try {
    await action();
  } catch (error) {
    return error as UffdError;
  }
  throw new Error('nothing failed');
}

/** Runs a body with tracked memory that is filled with 1s. */
async function tracked(
  mode: 'async' | 'sync',
  body: (base: bigint, tracker: DirtyTracker, directory: string) => Promise<void>,
): Promise<void> {
  needKernel();
  await inDirectory(async (directory) => {
    const before = holdings();
    const base = map(PAGES, 1);
    const tracker = await DirtyTracker.open({ address: base, length: PAGES * P }, { mode });
    try {
      await body(base, tracker, directory);
    } finally {
      tracker.close();
      await endAll();
    }
    await until(() => holdsAtMost(before), 'the thread of the tracker to end');
  });
}

/** Whether this process has no more descriptors and threads than it had. */
function holdsAtMost(before: ReturnType<typeof holdings>): boolean {
  const { descriptors, threads } = holdings();
  return descriptors <= before.descriptors && threads <= before.threads;
}

/** Maps fresh memory over pages 3 and 4. */
function replace(base: bigint): void {
  const flags = PRIVATE | memory.MAP_FIXED;
  assert.is(memory.mmap(at(base, 3), 2 * P, RW, flags), at(base, 3));
}

/** Changes pages 3 and 4; returns what must be closed afterwards. */
type Change = (base: bigint) => undefined | { close(): void } | Promise<{ close(): void }>;

const trackedBy =
  (mode: 'async' | 'sync'): Change =>
  async (base) => {
    replace(base);
    return await DirtyTracker.open({ address: at(base, 3), length: 2 * P }, { mode });
  };

const CHANGES: Readonly<Record<string, Change>> = {
  unmapped: (base) => {
    memory.munmap(at(base, 3), 2 * P);
    return undefined;
  },
  'mapped anew': (base) => {
    replace(base);
    return undefined;
  },
  'mapped anew and tracked by another (async)': trackedBy('async'),
  'mapped anew and tracked by another (sync)': trackedBy('sync'),
  'mapped anew and registered for missing pages': (base) => {
    replace(base);
    const uffd = Userfaultfd.open();
    uffd.register(at(base, 3), 2 * P);
    return uffd;
  },
  'moved away': (base) => {
    const to = map(2);
    const flags = memory.MREMAP_MAYMOVE | memory.MREMAP_FIXED;
    assert.is(memory.mremap(at(base, 3), 2 * P, 2 * P, flags, to), to);
    return undefined;
  },
  'moved over by other memory': (base) => {
    const from = map(2, 9);
    const flags = memory.MREMAP_MAYMOVE | memory.MREMAP_FIXED;
    assert.is(memory.mremap(from, 2 * P, 2 * P, flags, at(base, 3)), at(base, 3));
    return undefined;
  },
  'moved because it grew': (base) => {
    // The page after the mapping is taken, so the mapping cannot grow in place.
    const moved = memory.mremap(at(base, 3), 2 * P, 4 * P, memory.MREMAP_MAYMOVE);
    assert.ok(moved > 0n && moved !== at(base, 3));
    return undefined;
  },
};

for (const mode of MODES) {
  for (const [what, change] of Object.entries(CHANGES)) {
    test(`${mode}: memory of which a part was ${what} is an error, and is neither saved nor written`, async () => {
      await tracked(mode, async (base, tracker, directory) => {
        const file = join(directory, 'before');
        await tracker.checkpoint(file, { sync: false });
        bytesAt(base, P).fill(2);
        const other = await change(base);
        const refused = async (action: () => unknown): Promise<void> => {
          const error = await errorOf(action);
          assert.is(error.code, 'ENOENT', error.message);
          assert.match(error.message, /moved, unmapped or mapped anew.*close the tracker, and open one/);
        };
        await refused(() => tracker.collect());
        await refused(() => tracker.collect());
        await refused(() => tracker.checkpoint(file, { sync: false }));
        assert.is((await DirtyTracker.checkpoints(file)).length, 1);
        await refused(() => tracker.restore(file));
        assert.is(bytesAt(base)[0], 2, 'nothing was written, not even where the memory is the same');
        other?.close();
      });
    });
  }

  for (const theirs of MODES) {
    test(`${mode}: a tracker (${theirs}) of the memory that came instead misses nothing`, async () => {
      await tracked(mode, async (base, tracker) => {
        const other = (await trackedBy(theirs)(base)) as DirtyTracker;
        try {
          bytesAt(at(base, 4))[0] = 5;
          assert.is((await errorOf(() => tracker.collect())).code, 'ENOENT');
          assert.equal(collected(other, base), [4], 'what was written before the first one looked');
          tracker.close();
          bytesAt(at(base, 3))[0] = 6;
          assert.equal(collected(other, base), [3], 'nor does closing the first one end the second one');
        } finally {
          other.close();
        }
      });
    });
  }

  test(`${mode}: memory that is replaced while a checkpoint is made is in none`, async () => {
    await tracked(mode, async (base, tracker, directory) => {
      const file = join(directory, 'file');
      const probe = await open(directory, 'r');
      const prototype = Object.getPrototypeOf(probe) as FileHandle;
      await probe.close();
      const { write } = prototype;
      let replaced = false;
      // The tracker writes the begin record after it has scanned the page tables, and reads the pages after that.
      prototype.write = function (this: FileHandle, ...args: unknown[]) {
        if (!replaced && (args[0] as Uint8Array).length === 40) {
          replaced = true;
          replace(base);
        }
        return (write as (...all: unknown[]) => never).apply(this, args);
      } as typeof write;
      try {
        assert.is((await errorOf(() => tracker.checkpoint(file, { sync: false }))).code, 'ENOENT');
      } finally {
        prototype.write = write;
      }
      assert.ok(replaced);
      assert.equal(await DirtyTracker.checkpoints(file), []);
    });
  });

  test(`${mode}: pages that were moved away (MREMAP_DONTUNMAP) are reported: they are zero now`, async () => {
    await tracked(mode, async (base, tracker) => {
      const moved = memory.mremap(at(base, 3), P, P, memory.MREMAP_MAYMOVE | memory.MREMAP_DONTUNMAP);
      assert.ok(moved > 0n);
      assert.equal(collected(tracker, base), [3]);
      bytesAt(moved)[0] = 9;
      assert.equal(collected(tracker, base), [], 'where they are now nothing is tracked');
      assert.is(bytesAt(at(base, 3))[0], 0);
    });
  });

  test(`${mode}: memory that grows at its end is tracked as far as it was`, async () => {
    needKernel();
    const base = map(PAGES + 2, 1);
    const tracker = await DirtyTracker.open({ address: base, length: PAGES * P }, { mode });
    try {
      // Only now, so that no other thread gets memory there in the meantime.
      memory.munmap(at(base, PAGES), 2 * P);
      assert.is(memory.mremap(base, PAGES * P, (PAGES + 1) * P, 0), base);
      bytesAt(at(base, PAGES))[0] = 1;
      bytesAt(at(base, 2))[0] = 1;
      assert.equal(collected(tracker, base), [2]);
    } finally {
      tracker.close();
    }
  });

  test(`${mode}: guard pages are reported once, cannot be saved, and are pages again afterwards`, async () => {
    needKernel();
    await inDirectory(async (directory) => {
      const file = join(directory, 'file');
      const base = map(PAGES, 1);
      if (memory.madvise(at(base, 2), P, MADV_GUARD_INSTALL) < 0) skip('guard pages came with Linux 6.13');
      const tracker = await DirtyTracker.open({ address: base, length: PAGES * P }, { mode });
      try {
        assert.equal(collected(tracker, base), [], 'nothing counts as written yet');
        memory.madvise(at(base, 5), P, MADV_GUARD_INSTALL);
        assert.equal(collected(tracker, base), [5]);
        assert.equal(collected(tracker, base), []);
        const refused = await errorOf(() => tracker.checkpoint(file));
        assert.is(refused.code, 'EFAULT');
        assert.is(refused.address, at(base, 2));
        assert.match(refused.message, /cannot be read: it is a guard page/);
        assert.equal(await DirtyTracker.checkpoints(file), []);
        memory.madvise(at(base, 2), 4 * P, MADV_GUARD_REMOVE);
        assert.equal(collected(tracker, base), [2, 5], 'they are zero now');
        bytesAt(at(base, 2))[0] = 7;
        assert.equal(collected(tracker, base), [2]);
        assert.is((await tracker.checkpoint(file)).pages, PAGES);
        memory.madvise(at(base, 2), P, MADV_GUARD_INSTALL);
        bytesAt(base)[0] = 3;
        const halfway = await errorOf(() => tracker.restore(file));
        assert.is(halfway.code, 'EFAULT');
        memory.madvise(at(base, 2), P, MADV_GUARD_REMOVE);
        await tracker.restore(file);
        assert.equal([bytesAt(base)[0], bytesAt(at(base, 2))[0]], [1, 7]);
      } finally {
        tracker.close();
      }
    });
  });

  test(`${mode}: read-only and PROT_NONE pages are errors; once they are accessible everything goes on`, async () => {
    await tracked(mode, async (base, tracker, directory) => {
      const file = join(directory, 'file');
      mprotect(at(base, 3), P, memory.PROT_READ);
      assert.is((await tracker.checkpoint(file)).pages, PAGES, 'what is read-only can be saved');
      mprotect(at(base, 3), P, RW);
      bytesAt(base, PAGES * P).fill(2);
      mprotect(at(base, 3), P, memory.PROT_READ);
      const refused = await errorOf(() => tracker.restore(file));
      assert.equal([refused.code, refused.address], ['EFAULT', at(base, 3)]);
      assert.match(refused.message, /cannot be written: it is read-only.*make it writable and restore again/);
      mprotect(at(base, 3), P, RW);
      assert.ok(collected(tracker, base).includes(0), 'what was restored before it counts as written');

      mprotect(at(base, 3), P, 0);
      assert.equal(collected(tracker, base), [], 'nothing is read by looking');
      const unread = await errorOf(() => tracker.checkpoint(file));
      assert.equal([unread.code, unread.address], ['EFAULT', at(base, 3)]);
      assert.is((await DirtyTracker.checkpoints(file)).length, 1);
      mprotect(at(base, 3), P, RW);
      const { pages } = await tracker.checkpoint(file);
      assert.is(pages, PAGES, 'the checkpoint that failed has lost none');
      await tracker.restore(file, { checkpoint: 0 });
      assert.is(bytesAt(at(base, 3))[5], 1);
      await tracker.restore(file);
      assert.is(bytesAt(at(base, 3))[5], 2);
    });
  });

  test(`${mode}: memory with PROT_NONE and never touched pages can be tracked`, async () => {
    needKernel();
    const base = map(PAGES);
    mprotect(at(base, 2), P, 0);
    const tracker = await DirtyTracker.open({ address: base, length: PAGES * P }, { mode });
    try {
      assert.equal(collected(tracker, base), []);
      mprotect(at(base, 2), P, RW);
      bytesAt(at(base, 2))[0] = 1;
      assert.equal(collected(tracker, base), [2]);
    } finally {
      tracker.close();
    }
  });

  test(`${mode}: a memfd that was cut is an error of the checkpoint, not a SIGBUS`, async () => {
    needKernel();
    await inDirectory(async (directory) => {
      const file = join(directory, 'file');
      const shared = Mapping.memfd(PAGES * P);
      shared.bytes.fill(1);
      const tracker = await DirtyTracker.open(shared, { mode });
      try {
        await tracker.checkpoint(file);
        assert.is(c('int ftruncate(int, int64_t)')(shared.fd, 5 * P), 0);
        tracker.mark(shared.address, shared.length);
        const cut = await errorOf(() => tracker.checkpoint(file));
        assert.equal([cut.code, cut.address], ['EFAULT', at(shared.address, 5)]);
        assert.is((await errorOf(() => tracker.restore(file))).code, 'EFAULT');
        assert.is(c('int ftruncate(int, int64_t)')(shared.fd, PAGES * P), 0);
        await tracker.restore(file);
        assert.is(shared.bytes[7 * P], 1);
      } finally {
        tracker.close();
        shared.close();
      }
    });
  });

  test(`${mode}: pages that are locked (mlock) count as written once, and as others afterwards`, async () => {
    await tracked(mode, async (base, tracker, directory) => {
      const thread = await toucher();
      const locked = await thread.native('libc.so.6', 'int mlock(uintptr_t, size_t)', at(base, 2), 2 * P);
      if (locked !== 0) skip('no memory may be locked here');
      const first = collected(tracker, base);
      assert.ok(
        first.every((page) => page === 2 || page === 3),
        `${first}`,
      );
      assert.equal(collected(tracker, base), []);
      await thread.write(4, at(base, 3), at(base, 5));
      assert.equal(collected(tracker, base), [3, 5]);
      const file = join(directory, 'file');
      await tracker.checkpoint(file);
      await thread.write(6, at(base, 3));
      assert.is((await tracker.checkpoint(file)).pages, 1);
      await tracker.restore(file, { checkpoint: 0 });
      assert.equal(await thread.read(at(base, 3)), [4]);
      await thread.native('libc.so.6', 'int munlock(uintptr_t, size_t)', at(base, 2), 2 * P);
      await thread.write(7, at(base, 2));
      assert.ok(collected(tracker, base).includes(2));
    });
  });

  test(`${mode}: a fork changes nothing: what this process writes is reported, what the child reads is not`, async () => {
    await tracked(mode, async (base, tracker) => {
      const thread = await toucher();
      const library = compileLibrary('support/fork.c');
      await thread.write(2, at(base, 1));
      assert.equal(collected(tracker, base), [1]);
      await thread.forkTouch(library, base, 0, PAGES);
      assert.equal(collected(tracker, base), []);
      await thread.write(3, at(base, 1), at(base, 6));
      assert.equal(collected(tracker, base), [1, 6]);
    });
  });

  test(`${mode}: huge pages that the kernel makes of tracked ones (MADV_COLLAPSE) lose no write`, async () => {
    needKernel();
    const MADV_COLLAPSE = 25;
    const huge = Mapping.anonymous(4 << 20, { transparentHuge: true });
    huge.bytes.fill(1);
    const tracker = await DirtyTracker.open(huge, { mode });
    try {
      huge.bytes[5 * P] = 2;
      memory.madvise(huge.address, 2 << 20, MADV_COLLAPSE);
      huge.bytes[7 * P] = 2;
      const pages = pagesOf(tracker.collect(), huge.address, P);
      assert.ok(pages.includes(5) && pages.includes(7), `${pages}`);
      tracker.collect();
      memory.madvise(huge.address, 2 << 20, MADV_COLLAPSE);
      tracker.collect();
      huge.bytes[9 * P] = 3;
      assert.ok(pagesOf(tracker.collect(), huge.address, P).includes(9));
    } finally {
      tracker.close();
      huge.close();
    }
  });

  test(`${mode}: memory has one tracker; a second one is refused and harms nothing`, async () => {
    await tracked(mode, async (base, tracker) => {
      for (const second of MODES) {
        const part = { address: at(base, 2), length: 2 * P };
        const refused = await errorOf(() => DirtyTracker.open(part, { mode: second }));
        assert.is(refused.code, 'EBUSY');
        assert.match(refused.message, /another userfaultfd/);
      }
      bytesAt(at(base, 3))[0] = 2;
      assert.equal(collected(tracker, base), [3]);
    });
  });

  test(`${mode}: a tracker that is garbage-collected releases what it held`, async () => {
    needKernel();
    setFlagsFromString('--expose-gc');
    const gc = runInNewContext('gc') as () => void;
    const base = map(PAGES, 1);
    const before = holdings();
    await (async () => {
      const lost = await DirtyTracker.open({ address: base, length: PAGES * P }, { mode });
      assert.equal(lost.collect(), []);
    })();
    assert.ok(holdings().descriptors > before.descriptors);
    await until(() => {
      gc();
      return holdsAtMost(before);
    }, 'what the tracker held to be given back');
    const next = await DirtyTracker.open({ address: base, length: PAGES * P }, { mode });
    bytesAt(base)[0] = 2;
    assert.equal(collected(next, base), [0]);
    next.close();
    await sleep(0);
  });
}

test('sync, where only faults of user mode are served: saved and restored all the same', async () => {
  needKernel();
  const USER_MODE_ONLY = 1;
  const kernel = kernelWith((port) => {
    const userfaultfd = port.userfaultfd.bind(port);
    return {
      userfaultfd: (flags) => (flags & USER_MODE_ONLY ? userfaultfd(flags) : -1),
      openDevice: () => -13,
    };
  });
  await inDirectory(async (directory) => {
    const file = join(directory, 'file');
    const base = map(PAGES, 1);
    const tracker = await DirtyTracker.open({ address: base, length: PAGES * P }, { mode: 'sync', kernel });
    try {
      await tracker.checkpoint(file, { sync: false });
      bytesAt(at(base, 2))[0] = 2;
      bytesAt(at(base, 6)).fill(0);
      assert.is((await tracker.checkpoint(file, { sync: false })).pages, 2);
      // Every page is write-protected now, and the kernel may not wait for the thread that lifts the protection.
      await tracker.restore(file, { checkpoint: 0 });
      assert.ok(bytesAt(base, PAGES * P).every((byte) => byte === 1));
      await tracker.restore(file);
      assert.equal([bytesAt(at(base, 2))[0], bytesAt(at(base, 6))[9]], [2, 0]);
      assert.equal(collected(tracker, base), [2, 6], 'what was restored is reported as any other write');
    } finally {
      tracker.close();
    }
  });
});

test('a scan that fails takes nothing with it: all that it may have protected is reported next', async () => {
  needKernel();
  let fails = false;
  const SCAN = 0xc0606610;
  const kernel = kernelWith((port, { buffer }) => {
    const ioctl = port.ioctl.bind(port);
    return {
      ioctl(fd, request, place) {
        const result = ioctl(fd, request, place);
        const protects = request >>> 0 === SCAN && (new BigUint64Array(buffer, place, 2)[1] as bigint) & 1n;
        // The call fails after the kernel has protected the pages.
        return fails && protects && result > 0 ? -12 : result;
      },
    };
  });
  const base = map(PAGES, 1);
  const tracker = await DirtyTracker.open({ address: base, length: PAGES * P }, { mode: 'async', kernel });
  try {
    bytesAt(at(base, 6))[0] = 2;
    fails = true;
    assert.is((await errorOf(() => tracker.collect())).code, 'ENOMEM');
    fails = false;
    const pages = collected(tracker, base);
    assert.ok(pages.includes(6), `${pages}`);
    assert.equal(collected(tracker, base), []);
  } finally {
    tracker.close();
  }
});

test('a mapping that is closed while a checkpoint is made: none of it is committed', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const file = join(directory, 'file');
    const mapping = Mapping.anonymous(PAGES * P);
    const tracker = await DirtyTracker.open(mapping);
    const running: Promise<Checkpoint> = tracker.checkpoint(file);
    mapping.close();
    assert.match((await errorOf(() => running)).message, /is closed/);
    assert.equal(await DirtyTracker.checkpoints(file), []);
    tracker.close();
  });
});

test.run();
