// Faults that the core resolves from a source, on the real kernel: which counts and which faults the handler gets.

import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import {
  MADV_DONTNEED,
  MAP_ANONYMOUS,
  MAP_PRIVATE,
  MREMAP_FIXED,
  MREMAP_MAYMOVE,
  mmap,
} from '../../shim/memory.js';
import { type FaultHandler, type UffdError, Userfaultfd } from '../../src/index.js';
import { replay, TraceReader, TraceWriter } from '../../src/trace/index.js';
import { inDirectory } from '../cli/support/command.js';
import { suite } from '../support/harness.js';
import {
  at,
  kernelWith,
  map,
  needKernel,
  never,
  numberedSource,
  P,
  pageOf,
  recorder,
  toucher,
  until,
  withOpened,
  withUffd,
} from '../support/real-kernel.js';

const test = suite('uffd/source-data');
const gc = (globalThis as unknown as { gc(): void }).gc;
const PROT_NONE = 0;
const UFFDIO_COPY = 0xc028aa03;
const UFFD_EVENT_REMOVE = 0x15;

/** Fresh memory that begins at the start of a window. */
function aligned(pages: number): bigint {
  return (map(2 * pages) / BigInt(pages * P) + 1n) * BigInt(pages * P);
}

/** Memory that cannot be read. */
function unreadable(pages: number): bigint {
  return mmap(0n, pages * P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
}

/** A handler that records each call of `answered`, and resolves the other faults with `answer`. */
function listening(answer: Parameters<typeof recorder>[0]) {
  const { calls, handler } = recorder(answer);
  const answers: [faults: number, writes: number, putOff: number, pages: number][] = [];
  handler.answered = (faults, writes, putOff, bytes, ns) => {
    assert.ok(Number.isInteger(ns) && ns >= 0);
    answers.push([faults, writes, putOff, bytes / P]);
  };
  return { calls, answers, handler };
}

for (const how of ['by a loop', 'round by round'] as const) {
  test(`missing pages come from their source with their window, and the handler gets the counts; ${how}`, async () => {
    await withUffd(['event-remove'], async (uffd, thread) => {
      const base = aligned(16);
      uffd.register(base, 16 * P);
      assert.is(uffd.answerFrom(base, 16 * P, numberedSource(16), { window: 4 }), true);
      const { calls, answers, handler } = listening((fault) => void uffd.zero(fault.page, P));
      let over = false;
      const touches = (async () => {
        assert.equal(await thread.read(at(base, 2)), [3]);
        await thread.write(7, at(base, 9));
        // A removed page is left to the handler.
        await thread.madvise(base, P, MADV_DONTNEED);
        assert.equal(await thread.read(base), [0]);
        assert.equal(await thread.read(at(base, 1), at(base, 9), at(base, 10)), [2, 7, 11]);
        over = true;
      })();
      if (how === 'by a loop') uffd.start(handler);
      while (!over) {
        if (how !== 'by a loop') uffd.poll(handler);
        await sleep(1);
      }
      await touches;
      assert.equal(answers, [
        [1, 0, 0, 4],
        [1, 1, 0, 4],
      ]);
      assert.equal(calls, [
        ['removed', base, base + BigInt(P)],
        ['pagefault', base, 'read'],
      ]);
    });
  });
}

test('where the source cannot be read the handler is asked, and another source may follow', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(4);
    uffd.register(base, 4 * P);
    uffd.answerFrom(base, 4 * P, unreadable(4));
    const { calls, answers, handler } = listening((fault) => {
      uffd.copy(fault.page, pageOf(9));
      uffd.answerFrom(base, 4 * P, numberedSource(4));
    });
    uffd.start(handler);
    assert.equal(await thread.read(base), [9]);
    assert.equal(await thread.read(at(base, 1)), [2]);
    assert.equal(calls, [['pagefault', base, 'read']]);
    assert.equal(answers, [[1, 0, 0, 1]]);
    assert.throws(
      () => uffd.answerFrom(base, 2 * P, pageOf(1)),
      (error: { code?: string }) => error.code === 'ERR_OUT_OF_RANGE',
    );
    for (const [start, window] of [
      [base + 1n, 1],
      [base, 0],
      [base, 1.5],
    ] as const) {
      assert.throws(() => uffd.answerFrom(start, P, base, { window }), RangeError);
    }
  });
});

test('events that were read during a failing copy are delivered before its fault', async () => {
  needKernel();
  const base = aligned(4);
  const EAGAIN = 11;
  const EFAULT = 14;
  const outcomes = [EAGAIN, EFAULT, EFAULT];
  const kernel = kernelWith((port, { buffer }) => {
    const { ioctl, read } = port;
    let removal = false;
    return {
      ioctl(fd, request, at) {
        const outcome = request === UFFDIO_COPY && outcomes.shift();
        if (!outcome) return ioctl.call(port, fd, request, at);
        new DataView(buffer).setBigInt64(at + 32, -BigInt(outcome), true);
        removal = outcome === EAGAIN;
        return -outcome;
      },
      read(fd, at, length) {
        if (!removal) return read.call(port, fd, at, length);
        removal = false;
        const message = new DataView(buffer, at, 32);
        message.setUint8(0, UFFD_EVENT_REMOVE);
        message.setBigUint64(8, base + 2n * BigInt(P), true);
        message.setBigUint64(16, base + 3n * BigInt(P), true);
        return 32;
      },
    };
  });
  await withOpened(Userfaultfd.open({ features: ['event-remove'], kernel }), async (uffd, thread) => {
    uffd.register(base, 4 * P);
    uffd.answerFrom(base, P, numberedSource(1));
    const { calls, answers, handler } = listening((fault) => void uffd.copy(fault.page, pageOf(8)));
    uffd.start(handler);
    assert.equal(await thread.read(base), [8]);
    assert.equal(answers, [[0, 0, 1, 0]]);
    assert.equal(calls, [
      ['removed', base + 2n * BigInt(P), base + 3n * BigInt(P)],
      ['pagefault', base, 'read'],
    ]);
  });
});

test('what a view holds is answered from as long as the memory is watched', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = aligned(64);
    uffd.register(base, 64 * P);
    const name = (): boolean => uffd.answerFrom(base, 64 * P, new Uint8Array(64 * P).fill(3), { window: 8 });
    assert.is(name(), true);
    globalThis.gc?.();
    const { answers, handler } = listening(never);
    uffd.start(handler);
    for (let page = 0; page < 64; page += 8) assert.equal(await thread.read(at(base, page)), [3]);
    assert.is(answers.length, 8);
    // Unregistered memory has no source: later faults there go to the handler.
    uffd.unregister(base, 64 * P);
    uffd.register(base, 64 * P);
    await thread.madvise(base, 64 * P, MADV_DONTNEED);
    uffd.stop();
    const asked = listening((fault) => void uffd.zero(fault.page, P));
    uffd.start(asked.handler);
    assert.equal(await thread.read(base), [0]);
    assert.is(asked.answers.length, 0);
  });
});

test('pages are installed before they are asked for, run by run', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(16);
    uffd.register(base, 16 * P);
    assert.is(uffd.fillAhead(base, 16 * P), undefined);
    uffd.copy(at(base, 2), pageOf(1));
    uffd.answerFrom(base, 8 * P, numberedSource(8));
    assert.equal(uffd.fillAhead(base, 16 * P), { passed: 0, installed: 2 * P, leftOut: 0 });
    assert.equal(uffd.fillAhead(base, 16 * P), { passed: 3 * P, installed: 5 * P, leftOut: 0 });
    assert.is(uffd.fillAhead(base, 16 * P), undefined);
    assert.equal(uffd.fillAhead(base, 8 * P), { passed: 8 * P, installed: 0, leftOut: 0 });
    uffd.start(listening(never).handler);
    assert.equal(await thread.read(at(base, 7)), [8]);
    const gone = unreadable(1);
    uffd.answerFrom(at(base, 8), P, gone);
    assert.throws(
      () => uffd.fillAhead(at(base, 8), P),
      (error: UffdError) =>
        error.code === 'EFAULT' &&
        error.address === at(base, 8) &&
        error.transferred === 0 &&
        error.message.includes(`at 0x${gone.toString(16)}`),
    );
  });
});

test('an answer is timed from when its fault was read, in the round that names the first source, too', async () => {
  needKernel();
  // A clock that starts at a large value, and advances at each reading.
  let now = 1e9;
  const kernel = kernelWith(() => ({ now: () => now++ }));
  await withOpened(Userfaultfd.open({ kernel }), async (uffd, thread) => {
    const other = await toucher();
    const base = map(2);
    uffd.register(base, 2 * P);
    const touches = [thread.read(base), other.read(at(base, 1))];
    await Promise.all([thread.asleep(), other.asleep()]);
    const times: number[] = [];
    const handled = uffd.poll({
      pagefault({ page }) {
        uffd.copy(page, pageOf(6));
        uffd.answerFrom(base, 2 * P, numberedSource(2));
      },
      answered: (_faults, _writes, _putOff, _bytes, ns) => void times.push(ns),
    });
    await Promise.all(touches);
    assert.is(handled, 2);
    assert.is(times.length, 1);
    assert.ok((times[0] as number) > 0 && (times[0] as number) < 100e6, `${times} ns`);
  });
});

test('zeros in runs: few faults for much removed memory, and zeros alone where it is removed again or filled meanwhile', async () => {
  await withUffd(['event-remove'], async (uffd, thread) => {
    const others = [await toucher(), await toucher()];
    const pages = 1024;
    const base = map(pages);
    uffd.register(base, pages * P);
    uffd.answerFrom(base, pages * P, numberedSource(pages), { removed: 'zeros', zeroRuns: true });
    const { answers, handler } = listening((fault) => {
      // A fill returned EEXIST, because the page was filled meanwhile; then it was removed once more, and faulted again.
      assert.ok(fault.repeats > 0, 'a fault that the source answers was not expected');
      return uffd.zero(fault.page, P) === P;
    });
    uffd.start(handler);
    assert.is(await thread.verify(base, pages, P, 101), 0);
    const faults = (): number => answers.reduce((sum, [some]) => sum + some, 0);
    const before = faults();
    const kept = 100;
    await thread.madvise(at(base, kept), (pages - kept) * P, MADV_DONTNEED);
    const all = Array.from({ length: pages - kept }, (_, page) => at(base, kept + page));
    const zeros = all.map(() => 0);
    assert.equal(await thread.read(...all), zeros);
    assert.ok(faults() - before < 30, `${faults() - before} faults`);
    // The kernel removes pages after their REMOVE event was read, and so after this fill.
    handler.removed = (start) => void uffd.zero(start, 16 * P);
    for (let round = 0; round < 20; round++) {
      const [one, other] = others.map((toucher) => toucher.read(...all));
      for (let step = 0; step < 10; step++)
        await thread.madvise(at(base, kept + 32 * step), 64 * P, MADV_DONTNEED);
      assert.equal([await one, await other], [zeros, zeros]);
    }
    assert.is(await thread.verify(base, kept, P, 101), 0);
  });
});

test('a recording leaves sources as they are, and its replay has no need of their data', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const trace = `${directory}/trace`;
    const asked = { live: 0, replayed: 0 };
    const writer = TraceWriter.toFile(trace);
    await withOpened(
      Userfaultfd.open({ record: writer, features: ['event-remove'] }),
      async (uffd, thread) => {
        const base = map(8);
        uffd.register(base, 8 * P);
        uffd.answerFrom(base, 4 * P, numberedSource(4), { window: 2, removed: 'zeros' });
        uffd.answerFrom(at(base, 4), 2 * P, 'zeros');
        assert.equal(uffd.fillAhead(base, P), { passed: 0, installed: P, leftOut: 0 });
        const { answers, handler } = listening((fault) => {
          asked.live++;
          uffd.copy(fault.page, pageOf(9));
        });
        uffd.start(handler);
        assert.equal(await thread.read(base, at(base, 2), at(base, 4), at(base, 7)), [1, 3, 0, 9]);
        await thread.madvise(at(base, 2), P, MADV_DONTNEED);
        assert.equal(await thread.read(at(base, 2)), [0]);
        uffd.forgetSources();
        assert.equal(await thread.read(at(base, 5)), [9]);
        assert.is(asked.live, 2);
        assert.is(answers.length, 3);
      },
    );
    const handler: FaultHandler = {
      pagefault(fault, uffd) {
        asked.replayed++;
        uffd.copy(fault.page, pageOf(0));
      },
    };
    const alone = await replay(TraceReader.fromFile(trace));
    assert.equal([alone.identical, alone.difference], [true, undefined]);
    const other = await replay(TraceReader.fromFile(trace), () => handler);
    assert.equal([other.identical, other.difference], [true, undefined]);
    assert.is(asked.replayed, 2);
  });
});

test('a source that was forgotten does not come back with the next one', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = aligned(4);
    uffd.register(base, 4 * P);
    uffd.answerFrom(base, 2 * P, new Uint8Array(2 * P).fill(1));
    uffd.forgetSources();
    uffd.answerFrom(at(base, 2), 2 * P, new Uint8Array(2 * P).fill(2));
    const { answers, handler } = listening((fault) => void uffd.copy(fault.page, pageOf(3)));
    uffd.start(handler);
    assert.equal(await thread.read(base, at(base, 2)), [3, 2]);
    assert.equal(answers, [[1, 0, 0, 1]]);
  });
});

test('an adaptive window: few faults in ascending order, one for each page at random, every page right', async () => {
  const pages = 1024;
  for (const [step, most] of [
    [1, 40],
    [401, pages],
  ] as const) {
    await withUffd([], async (uffd, thread) => {
      const base = map(pages);
      uffd.register(base, pages * P);
      uffd.answerFrom(base, pages * P, numberedSource(pages), { window: 'adaptive' });
      const { answers, handler } = listening(never);
      uffd.start(handler);
      assert.is(await thread.verify(base, pages, P, step), 0);
      uffd.stop();
      assert.ok(
        answers.length <= most && (step === 1 || answers.length > pages * 0.9),
        `${answers.length} faults`,
      );
      const installed = answers.reduce((sum, [, , , count]) => sum + count, 0);
      assert.ok(installed >= pages);
    });
  }
});

test('neighbours that several threads wait for come in one call, and each is counted and reported', async () => {
  await withUffd([], async (uffd, thread) => {
    const others = [await toucher(), await toucher()];
    const base = map(8);
    uffd.register(base, 8 * P);
    uffd.answerFrom(base, 8 * P, numberedSource(8));
    const touchers = [thread, ...others];
    const reads = touchers.map((one, index) => one.read(at(base, 3 + index)));
    await Promise.all(touchers.map((one) => one.asleep()));
    const { answers, handler } = listening(never);
    assert.is(uffd.poll(handler), 3);
    assert.equal(await Promise.all(reads), [[4], [5], [6]]);
    assert.equal(answers, [[3, 0, 0, 3]]);
  });
});

test('threads that wait far from each other are all woken, and so are those that fault in the meantime', async () => {
  await withUffd([], async (uffd, thread) => {
    const others = [await toucher(), await toucher(), await toucher()];
    const pages = 512;
    const base = map(pages);
    uffd.register(base, pages * P);
    uffd.answerFrom(base, pages * P, numberedSource(pages));
    const { answers, handler } = listening(never);
    uffd.start(handler);
    const touchers = [thread, ...others];
    const wrong = await Promise.all(touchers.map((one) => one.verify(base, pages, P, 101)));
    assert.equal(wrong, [0, 0, 0, 0]);
    assert.is(
      answers.reduce((sum, [, , , count]) => sum + count, 0),
      pages,
    );
  });
});

test('a stop inside `answered` leaves the next fault to the next start', async () => {
  await withUffd([], async (uffd, thread) => {
    const other = await toucher();
    const base = map(2);
    uffd.register(base, 2 * P);
    uffd.answerFrom(base, P, numberedSource(1));
    // The kernel delivers the older fault first.
    const reads = [thread.read(base)];
    await thread.asleep();
    reads.push(other.read(at(base, 1)));
    await other.asleep();
    const first = listening(never);
    const { answered } = first.handler;
    first.handler.answered = (...counts) => {
      answered?.(...counts);
      uffd.stop();
    };
    uffd.start(first.handler, { wait: 'block' });
    assert.equal(first.answers, [[1, 0, 0, 1]]);
    assert.equal(first.calls, []);
    const second = listening((fault) => void uffd.copy(fault.page, pageOf(5)));
    uffd.start(second.handler);
    assert.equal(await Promise.all(reads), [[1], [5]]);
    assert.equal(second.calls, [['pagefault', at(base, 1), 'read']]);
  });
});

/** Makes a view the source of some memory. Returns a function that says whether the view is still kept. */
function keeps(uffd: Userfaultfd, base: bigint, pages: number): () => boolean {
  const view = new Uint8Array(pages * P);
  uffd.answerFrom(base, pages * P, view);
  const kept = new WeakRef(view.buffer);
  return () => kept.deref() !== undefined;
}

test('a view is kept while its source is in use, and released with the range, however that ends', async () => {
  await withUffd(['event-unmap', 'event-remap'], async (uffd, thread) => {
    const handler = recorder(never).handler;
    const moved = map(4);
    const ends: Record<string, (base: bigint) => unknown> = {
      unregister: (base) => uffd.unregister(base, 4 * P),
      'another source': (base) => uffd.answerFrom(base, 4 * P, base),
      unmap: (base) => thread.munmap(base, 4 * P),
      remap: (base) => thread.mremap(base, 4 * P, 4 * P, MREMAP_MAYMOVE | MREMAP_FIXED, moved),
      forgetSources: () => uffd.forgetSources(),
      close: () => uffd.close(),
    };
    uffd.start(handler);
    for (const [how, end] of Object.entries(ends)) {
      const base = map(4);
      uffd.register(base, 4 * P);
      const kept = keeps(uffd, base, 4);
      for (let n = 0; n < 3; n++) {
        gc();
        await sleep(1);
      }
      assert.ok(kept(), `${how}: kept before`);
      await end(base);
      await until(() => {
        gc();
        return !kept();
      }, `the view to be released: ${how}`);
    }
  });
});

test('the 1,025th source, and the 3,000th, answer like the first', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(6000);
    uffd.register(base, 6000 * P);
    const source = numberedSource(6000);
    for (let page = 0; page < 6000; page += 2) {
      assert.is(uffd.answerFrom(at(base, page), P, at(source, page)), true);
    }
    const { answers, handler } = listening(never);
    uffd.start(handler);
    assert.is(await thread.verify(base, 6000, P, 2), 0);
    assert.is(answers.length, 3000);
  });
});

test.run();
