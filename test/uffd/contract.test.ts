// The seventeen behaviours that the tests of the model wrapper define (contract: section 1), on the real kernel and on
// the simulated one. A test fails if the handler gets an unlisted callback, or misses a listed one.

import * as assert from 'uvu/assert';
import { MADV_DONTNEED, MREMAP_FIXED, MREMAP_MAYMOVE } from '../../shim/memory.js';
import { type FaultHandler, type Feature, Userfaultfd } from '../../src/index.js';
import { type Place, REAL, type Steps, simulated } from '../support/environments.js';
import { generator, seed, suite } from '../support/harness.js';
import { at, type Call, never, P, pageOf, recorder } from '../support/real-kernel.js';

const test = suite('uffd/contract');

const letters = (index: number): Uint8Array => pageOf('a'.charCodeAt(0) + index);

/** A handler that fills the pages from `base` on with consecutive letters. */
function lettering(uffd: Userfaultfd, base: bigint): ReturnType<typeof recorder> {
  return recorder((fault) => {
    assert.is(uffd.copy(fault.page, letters(Number(fault.page - base) / P)), P);
  });
}

/** Moves 1 page at `base` to a target of 2 pages. The target is fixed, because growth in place sends no event. */
async function moveAndGrow(place: Place, thread: Steps, base: bigint): Promise<bigint> {
  // It stays mapped until the move: an unmapped place may belong to another thread of this process by then.
  const target = place.map(2);
  const moved = await thread.mremap(base, P, 2 * P, MREMAP_MAYMOVE | MREMAP_FIXED, target);
  assert.is(moved, target);
  return moved;
}

function contract(place: Place): void {
  const { map, sleepers, withUffd } = place;

  test(`1. a released descriptor cannot be started, nor can a missing handler${place.suffix}`, () => {
    const uffd = place.open();
    const { handler, calls } = recorder(never);
    assert.is(uffd.start(undefined as unknown as FaultHandler), false);
    assert.is(uffd.start(null as unknown as FaultHandler), false);
    assert.is(uffd.waiting, false);
    const fd = uffd.release();
    assert.ok(fd >= 0);
    assert.is(uffd.start(handler), false);
    assert.equal(calls, []);
    Userfaultfd.wrap(fd, place.wrapping).close();
  });

  test(`2. zero page, read${place.suffix}`, async () => {
    await withUffd([], async (uffd, thread) => {
      const base = map(1);
      uffd.register(base, P);
      const { calls, handler } = recorder((fault) => {
        assert.is(uffd.zero(fault.page, P), P);
        return true;
      });
      assert.is(uffd.start(handler), true);
      assert.equal(await thread.read(base), [0]);
      assert.equal(calls, [['pagefault', base, 'read']]);
    });
  });

  test(`3. a deferred fault is offered again by itself, and the reader waits${place.suffix}`, async () => {
    await withUffd([], async (uffd, thread) => {
      const base = map(1);
      uffd.register(base, P);
      let readers = 0;
      const { calls, handler } = recorder((fault) => {
        if (calls.length === 1) return false;
        readers = sleepers(uffd.fd);
        assert.is(uffd.zero(fault.page, P), P);
        return true;
      });
      uffd.start(handler);
      const read = thread.read(base);
      assert.equal(await read, [0]);
      assert.equal(calls, [
        ['pagefault', base, 'read'],
        ['pagefault', base, 'read'],
      ]);
      assert.is(readers, 1, 'the reader was still asleep, and no new message had come');
    });
  });

  test(`4. the thread id is that of the thread that touched; without the feature it is 0${place.suffix}`, async () => {
    for (const features of [['thread-id'], []] as Feature[][]) {
      await withUffd(features, async (uffd, thread) => {
        const base = map(1);
        uffd.register(base, P);
        const tids: number[] = [];
        uffd.start({
          pagefault(fault) {
            tids.push(fault.tid);
            uffd.zero(fault.page, P);
          },
        });
        await thread.read(base);
        assert.equal(tids, [features.length > 0 ? thread.kernelTid : 0]);
      });
    }
  });

  test(`5. zero page, write${place.suffix}`, async () => {
    await withUffd([], async (uffd, thread) => {
      const base = map(1);
      uffd.register(base, P);
      const { calls, handler } = recorder((fault) => {
        assert.is(uffd.zero(fault.page, P), P);
      });
      uffd.start(handler);
      assert.equal(await thread.writeInt(base, 8675309), [8675309, 0]);
      // The zero page is installed shared and read-only; the write then makes it private without another message.
      assert.equal(calls, [['pagefault', base, 'write']]);
    });
  });

  test(`6. copy a page from a buffer that is not aligned${place.suffix}`, async () => {
    await withUffd([], async (uffd, thread) => {
      const base = map(1);
      uffd.register(base, P);
      const source = new Uint8Array(P + 3).fill('a'.charCodeAt(0)).subarray(3);
      const { calls, handler } = recorder((fault) => {
        assert.is(uffd.copy(fault.page, source), P);
      });
      uffd.start(handler);
      assert.equal(Buffer.compare(await thread.bytes(base, P), source), 0);
      assert.equal(calls, [['pagefault', base, 'read']]);
    });
  });

  test(`7. copy many pages at once${place.suffix}`, async () => {
    await withUffd([], async (uffd, thread) => {
      const base = map(20);
      uffd.register(base, 20 * P);
      const source = new Uint8Array(20 * P).fill('a'.charCodeAt(0));
      const { calls, handler } = recorder(() => {
        assert.is(uffd.copy(base, source), 20 * P);
      });
      uffd.start(handler);
      await thread.read(base);
      assert.equal(Buffer.compare(await thread.bytes(base, 20 * P), source), 0);
      assert.equal(calls, [['pagefault', base, 'read']]);
    });
  });

  test(`8. copy pages one by one, touched at random offsets${place.suffix}`, async () => {
    await withUffd([], async (uffd, thread) => {
      const random = generator(seed());
      const base = map(20);
      uffd.register(base, 20 * P);
      const { calls, handler } = lettering(uffd, base);
      uffd.start(handler);
      const expected: Call[] = [];
      for (let n = 0; n < 20; n++) {
        assert.equal(await thread.read(at(base, n, random(P))), ['a'.charCodeAt(0) + n]);
        expected.push(['pagefault', at(base, n), 'read']);
      }
      for (let n = 0; n < 20; n++)
        assert.equal(Buffer.compare(await thread.bytes(at(base, n), P), letters(n)), 0);
      assert.equal(calls, expected);
    });
  });

  test(`9. a part of a mapping, read${place.suffix}`, async () => {
    await withUffd([], async (uffd, thread) => {
      const base = map(20);
      uffd.register(base, 10 * P);
      const { calls, handler } = lettering(uffd, base);
      uffd.start(handler);
      for (let n = 0; n < 20; n++) {
        const expected = n < 10 ? letters(n) : pageOf(0);
        assert.equal(Buffer.compare(await thread.bytes(at(base, n), P), expected), 0, `page ${n}`);
      }
      assert.equal(
        calls,
        Array.from({ length: 10 }, (_, n): Call => ['pagefault', at(base, n), 'read']),
      );
    });
  });

  test(`10. a part of a mapping, write${place.suffix}`, async () => {
    await withUffd([], async (uffd, thread) => {
      const base = map(20);
      uffd.register(base, 10 * P);
      const { calls, handler } = lettering(uffd, base);
      uffd.start(handler);
      for (let n = 0; n < 20; n++) {
        await thread.write('X'.charCodeAt(0), at(base, n));
        const expected = n < 10 ? letters(n) : pageOf(0);
        expected[0] = 'X'.charCodeAt(0);
        assert.equal(Buffer.compare(await thread.bytes(at(base, n), P), expected), 0, `page ${n}`);
      }
      assert.equal(
        calls,
        Array.from({ length: 10 }, (_, n): Call => ['pagefault', at(base, n), 'write']),
      );
    });
  });

  test(`11. remove one page${place.suffix}`, async () => {
    await withUffd(['event-remove'], async (uffd, thread) => {
      const base = map(1, 1);
      uffd.register(base, P);
      const { calls, handler } = recorder(never);
      uffd.start(handler);
      assert.is(await thread.madvise(base, P, MADV_DONTNEED), 0);
      assert.equal(calls, [['removed', base, at(base, 1)]]);
    });
  });

  test(`12. remove many pages: clipped to what is registered${place.suffix}`, async () => {
    await withUffd(['event-remove'], async (uffd, thread) => {
      const base = map(3, 1);
      uffd.register(base, 2 * P);
      const { calls, handler } = recorder(never);
      uffd.start(handler);
      assert.equal(await thread.read(base, at(base, 1), at(base, 2)), [1, 1, 1]);
      assert.is(await thread.madvise(base, 3 * P, MADV_DONTNEED), 0);
      assert.equal(calls, [['removed', base, at(base, 2)]]);
    });
  });

  test(`13. unmap one page${place.suffix}`, async () => {
    await withUffd(['event-unmap'], async (uffd, thread) => {
      const base = map(1, 1);
      uffd.register(base, P);
      const { calls, handler } = recorder(never);
      uffd.start(handler);
      assert.is(await thread.munmap(base, P), 0);
      assert.equal(calls, [['unmapped', base, at(base, 1)]]);
      assert.equal(uffd.ranges, []);
    });
  });

  test(`14. unmap many pages, then one that is not registered${place.suffix}`, async () => {
    await withUffd(['event-unmap'], async (uffd, thread) => {
      const base = map(3, 1);
      uffd.register(base, 2 * P);
      const { calls, handler } = recorder(never);
      uffd.start(handler);
      assert.is(await thread.munmap(base, 2 * P), 0);
      assert.is(await thread.munmap(at(base, 2), P), 0);
      assert.equal(calls, [['unmapped', base, at(base, 2)]]);
    });
  });

  test(`15. unmap page by page${place.suffix}`, async () => {
    await withUffd(['event-unmap'], async (uffd, thread) => {
      const base = map(3, 1);
      uffd.register(base, 2 * P);
      const { calls, handler } = recorder(never);
      uffd.start(handler);
      for (let n = 0; n < 3; n++) assert.is(await thread.munmap(at(base, n), P), 0);
      assert.equal(calls, [
        ['unmapped', base, at(base, 1)],
        ['unmapped', at(base, 1), at(base, 2)],
      ]);
    });
  });

  test(`16. remap: one event, with the original length${place.suffix}`, async () => {
    await withUffd(['event-remap'], async (uffd, thread) => {
      const base = map(1, 1);
      uffd.register(base, P);
      const { calls, handler } = recorder(never);
      uffd.start(handler);
      const moved = await moveAndGrow(place, thread, base);
      assert.equal(calls, [['remapped', base, moved, P]]);
      assert.equal(
        uffd.ranges.map(({ start, length }) => [start, length]),
        [[moved, P]],
      );
    });
  });

  test(`17. remap, then faults at the new address${place.suffix}`, async () => {
    await withUffd(['event-remap'], async (uffd, thread) => {
      const base = map(1);
      uffd.register(base, P);
      const { calls, handler } = recorder((fault) => {
        assert.is(uffd.zero(fault.page, P), P);
      });
      uffd.start(handler);
      const moved = await moveAndGrow(place, thread, base);
      assert.equal(await thread.read(moved, at(moved, 1)), [0, 0]);
      assert.equal(calls, [
        ['remapped', base, moved, P],
        ['pagefault', moved, 'read'],
        ['pagefault', at(moved, 1), 'read'],
      ]);
    });
  });
}

contract(REAL);
contract(simulated(seed()));

test.run();
