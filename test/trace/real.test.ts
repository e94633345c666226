// Recordings of the real kernel replay identically: storms of mapping changes and forks, every wait strategy from a
// worker, a loop that is stopped and started again, and a recorder that is killed.

import { strict as assert } from 'node:assert';
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { MADV_DONTNEED, MREMAP_FIXED, MREMAP_MAYMOVE } from '../../shim/memory.js';
import { type FaultHandler, type Feature, Userfaultfd, type Wait } from '../../src/index.js';
import { type HandlerFactory, Kind, replay, summarize, TraceReader } from '../../src/trace/index.js';
import { generator, seed, suite } from '../support/harness.js';
import {
  at,
  compileLibrary,
  endAll,
  looper,
  map,
  needKernel,
  numberedSource,
  P,
  pageOf,
  skipWithout,
  touchers,
} from '../support/real-kernel.js';
import { inMemory } from './support/traces.js';

const test = suite('trace/real');
const PAGES = 64;

/** Replays a trace, and checks that nothing differs; returns the number of faults. */
async function assertIdentical(bytes: Uint8Array, ...factories: HandlerFactory[]): Promise<number> {
  let faults = 0;
  for (const factory of [undefined, ...factories]) {
    const result = await replay(TraceReader.of(bytes), factory);
    assert.deepEqual(result.difference, undefined);
    assert.equal(result.damage, undefined);
    faults = result.faults;
  }
  return faults;
}

const filling: HandlerFactory = (uffd): FaultHandler => ({
  pagefault({ page }) {
    const removed = uffd.pageState(page) === 'removed';
    return (removed ? uffd.zero(page, P) : uffd.copy(page, pageOf(7))) === P;
  },
  removed() {},
  unmapped() {},
  remapped() {},
  forked: (child) => child.close(),
});

/** Records while threads work on registered memory; returns the trace. */
async function storm(
  features: Feature[],
  threads: number,
  work: (crew: Awaited<ReturnType<typeof touchers>>, base: bigint, uffd: Userfaultfd) => Promise<void>,
): Promise<Uint8Array> {
  for (const feature of features) skipWithout(feature);
  const { writer, bytes } = inMemory();
  const uffd = Userfaultfd.open({ features, record: writer });
  try {
    const crew = await touchers(threads);
    const base = map(PAGES);
    uffd.register(base, PAGES * P);
    uffd.start(filling(uffd, { pageSize: P }));
    await work(crew, base, uffd);
  } finally {
    uffd.close();
    await endAll();
  }
  return bytes();
}

/** Returns a function that counts the records of a kind. */
function counts(bytes: Uint8Array): (kind: number) => number {
  const reader = TraceReader.of(bytes);
  const found = new Map<number, number>();
  while (reader.next()) found.set(reader.codec.kind, (found.get(reader.codec.kind) ?? 0) + 1);
  return (kind) => found.get(kind) ?? 0;
}

/** Pages in random order. */
function shuffled(dice: (below: number) => number): number[] {
  return Array.from({ length: PAGES }, (_, page) => ({ page, key: dice(2 ** 20) }))
    .sort((a, b) => a.key - b.key)
    .map(({ page }) => page);
}

test('a storm of removals', async () => {
  needKernel();
  const dice = generator(seed());
  const bytes = await storm(['event-remove', 'thread-id'], 4, async ([remover, ...others], base) => {
    let over = false;
    const touching = others.map(async (thread) => {
      while (!over) await thread.read(...shuffled(dice).map((page) => at(base, page)));
    });
    for (let round = 0; round < 150; round++) {
      const page = dice(PAGES - 4);
      assert.equal(await remover?.madvise(at(base, page), (1 + dice(4)) * P, MADV_DONTNEED), 0);
    }
    over = true;
    await Promise.all(touching);
  });
  assert.ok((await assertIdentical(bytes, filling)) > PAGES);
  const { changes } = summarize(TraceReader.of(bytes));
  assert.equal(changes.remove, 150);
});

test('a storm of unmapped and moved memory', async () => {
  needKernel();
  const dice = generator(seed());
  const bytes = await storm(['event-unmap', 'event-remap'], 3, async ([mover, ...others], _base, uffd) => {
    for (let round = 0; round < 40; round++) {
      const [from, to] = [map(16), map(16)];
      uffd.register(from, 16 * P);
      const touched = others.map((thread) =>
        thread.read(...Array.from({ length: 8 }, () => at(from, dice(8)))),
      );
      assert.equal(await mover?.mremap(at(from, 8), 4 * P, 4 * P, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
      await Promise.all([...touched, mover?.read(at(to, 1))]);
      // Not the hole between its parts: another thread of this process may have memory there by now.
      assert.equal(await mover?.munmap(from, 8 * P), 0);
      assert.equal(await mover?.munmap(at(from, 12), 4 * P), 0);
      assert.equal(await mover?.munmap(to, 16 * P), 0);
    }
  });
  assert.ok((await assertIdentical(bytes, filling)) > 40);
  const { changes } = summarize(TraceReader.of(bytes));
  assert.ok(changes.remap === 40 && changes.unmap >= 80, JSON.stringify(changes));
});

test('a storm of forks', async () => {
  needKernel();
  const library = compileLibrary('support/fork.c');
  const bytes = await storm(['event-fork'], 2, async ([forker, other], base) => {
    for (let round = 0; round < 30; round++) {
      const touched = other?.read(...Array.from({ length: 2 }, (_, i) => at(base, (2 * round + i) % PAGES)));
      assert.equal(await forker?.fork(library), 0);
      await touched;
    }
  });
  await assertIdentical(bytes, filling);
  assert.equal(summarize(TraceReader.of(bytes)).changes.fork, 30);
});

for (const wait of ['poll', 'block', 'spin', 'adaptive'] as Wait[]) {
  test(`from a worker, through wrap, stopped from another thread: ${wait}`, async () => {
    needKernel();
    const folder = mkdtempSync(join(tmpdir(), 'uffd-trace-'));
    try {
      const uffd = Userfaultfd.open();
      const base = map(PAGES);
      uffd.register(base, PAGES * P);
      const record = join(folder, 'trace');
      const source = numberedSource(PAGES);
      const worker = await looper(uffd, { wait, source, base, record });
      const crew = await touchers(4);
      const wrong = await Promise.all(
        crew.map((thread, i) => thread.verify(base, PAGES, P, [1, 3, 5, 7][i] as number)),
      );
      assert.deepEqual(wrong, [0, 0, 0, 0]);
      await worker.end();
      const bytes = readFileSync(record);
      const served = worker.messages.find((one) => one.type === 'stopped');
      const faults = await assertIdentical(bytes, (face) => ({
        pagefault: (fault) => face.copy(fault.page, source + (fault.page - base), P) === P,
      }));
      assert.equal(faults, served?.type === 'stopped' ? served.faults : -1);
      assert.equal(summarize(TraceReader.of(bytes)).how, 'wrap');
      // A loop that spins needs the time at each read. The trace takes it from the record of the read.
      const count = counts(bytes);
      assert.ok(
        count(Kind.NOW) < count(Kind.READ) / 4,
        `${count(Kind.NOW)} times, ${count(Kind.READ)} reads`,
      );
    } finally {
      await endAll();
      rmSync(folder, { recursive: true });
    }
  });
}

test('stopped and started again, with other handlers, and polled by hand in between', async () => {
  const bytes = await storm([], 1, async ([thread], base, uffd) => {
    for (let round = 0; round < 10; round++) {
      await thread?.read(at(base, 3 * round));
      uffd.stop();
      const reading = thread?.read(at(base, 3 * round + 1));
      await thread?.asleep();
      uffd.poll({ pagefault: ({ page }) => void uffd.zero(page, P) });
      await reading;
      uffd.start({ pagefault: ({ page }) => void uffd.copy(page, pageOf(round)) });
    }
  });
  assert.equal(await assertIdentical(bytes), 20);
});

test('a handler that answers later', async () => {
  needKernel();
  const later: HandlerFactory = (uffd) => ({
    pagefault({ page }) {
      sleep(1).then(() => {
        if (!uffd.closed) uffd.zero(page, P);
      });
    },
  });
  const { writer, bytes } = inMemory();
  const uffd = Userfaultfd.open({ record: writer });
  try {
    const crew = await touchers(3);
    const base = map(PAGES);
    uffd.register(base, PAGES * P);
    uffd.start(later(uffd, { pageSize: P }));
    await Promise.all(crew.map((thread, i) => thread.read(at(base, i), at(base, i + 3), at(base, i + 6))));
  } finally {
    uffd.close();
    await endAll();
  }
  assert.equal(await assertIdentical(bytes()), 9);
});

test('a recorder that is killed: its trace is readable to the last whole block, and replays as far', async () => {
  needKernel();
  const folder = mkdtempSync(join(tmpdir(), 'uffd-trace-'));
  const file = join(folder, 'trace');
  try {
    const script = fileURLToPath(new URL('./support/endless-recording.js', import.meta.url));
    const child = spawn(process.execPath, [...process.execArgv, script, file], { stdio: 'inherit' });
    // Wait for a few blocks. The first one holds the description.
    while (child.exitCode === null && (statSync(file, { throwIfNoEntry: false })?.size ?? 0) < 200_000)
      await sleep(5);
    assert.equal(child.exitCode, null);
    const exited = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGKILL');
    await exited;
    const bytes = readFileSync(file);
    const { faults, damage, blocks } = summarize(TraceReader.of(bytes));
    assert.ok(faults > 1000 && blocks > 2, `${faults} faults in ${blocks} blocks`);
    assert.ok(damage);
    const result = await replay(TraceReader.of(bytes));
    assert.equal(result.difference, undefined);
    assert.equal(result.damage, damage);
    assert.ok(result.faults > 1000);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test.run();
