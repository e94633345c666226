// A recording of a simulated kernel replays to the same end, byte for byte; a handler that deviates is found at its
// first different call; and a damaged trace is an error or a shorter trace.

import { strict as assert } from 'node:assert';
import type { FaultHandler } from '../../src/index.js';
import {
  advise,
  forked,
  type Program,
  read,
  remap,
  SimulatedKernel,
  Userfaultfd,
  unmap,
  write,
} from '../../src/sim/index.js';
import { replay, TraceError, TraceReader, type TraceSink, TraceWriter } from '../../src/trace/index.js';
import { suite } from '../support/harness.js';

const test = suite('trace');

const P = 4096;
const PAGES = 24;
const BASE_OF_SOURCE = 3;

/** A sink in memory. */
function memorySink(): TraceSink & { bytes(): Uint8Array } {
  const chunks: Uint8Array[] = [];
  return {
    write: (bytes) => void chunks.push(bytes.slice()),
    close() {},
    bytes: () => Buffer.concat(chunks),
  };
}

/** Fills each page with its number; defers every third fault once. */
function handlerOf(uffd: Userfaultfd, base: bigint): FaultHandler {
  const children: Userfaultfd[] = [];
  let asked = 0;
  return {
    pagefault(fault) {
      if (++asked % 3 === 0) return false;
      if (fault.kind === 'write-protect') return uffd.writeProtect(fault.page, P, false) === P;
      if (uffd.pageState(fault.page) === 'removed') return uffd.zero(fault.page, P) === P;
      const page = Number((fault.page - base) / BigInt(P));
      return uffd.copy(fault.page, new Uint8Array(P).fill(BASE_OF_SOURCE + page)) === P;
    },
    removed() {},
    unmapped() {},
    remapped() {},
    forked: (child) => void children.push(child),
    closed() {
      for (const child of children) child.close();
    },
  };
}

/** Two threads that touch, remove, move, unmap and fork. */
function programs(kernel: SimulatedKernel, base: bigint): Program[] {
  const at = (page: number): bigint => base + BigInt(page * P);
  const target = BigInt(kernel.place(2 * P));
  return [
    (function* () {
      for (let page = 0; page < 12; page++) yield read(at(page));
      yield advise(at(2), 3 * P, 4);
      for (let page = 0; page < 6; page++) yield write(at(page), page + 1);
      yield remap(at(10), 2 * P, 2 * P, 3, target);
      yield read(target);
    })(),
    (function* () {
      for (let page = 12; page < PAGES; page++) yield write(at(page), 9);
      yield forked();
      yield unmap(at(20), 2 * P);
      yield read(at(13));
    })(),
  ];
}

/** Runs `programs` on a simulated kernel with a recorder. Returns the trace, and the address of the memory. */
function recorded(seed: number): { bytes: Uint8Array; base: bigint } {
  const kernel = new SimulatedKernel({ seed });
  const sink = memorySink();
  const uffd = Userfaultfd.open({
    kernel,
    features: ['event-remove', 'event-unmap', 'event-remap', 'event-fork'],
    record: new TraceWriter(sink, { about: { seed } }),
  });
  const base = kernel.map(PAGES);
  uffd.register(base, PAGES * P);
  uffd.start(handlerOf(uffd, base));
  const threads = programs(kernel, base).map((program) => kernel.thread(program));
  while (threads.some((thread) => !thread.done)) assert.ok(kernel.step(), 'a thread sleeps forever');
  uffd.close();
  return { bytes: sink.bytes(), base };
}

test('one seed, one trace, whatever else; another seed, another', () => {
  const [first, again, other] = [recorded(5), recorded(5), recorded(6)];
  assert.equal(Buffer.compare(first.bytes, again.bytes), 0);
  assert.notEqual(Buffer.compare(first.bytes, other.bytes), 0);
});

test('replays are identical, without the handler and with it', async () => {
  for (let seed = 1; seed <= 30; seed++) {
    const { bytes, base } = recorded(seed);
    const reader = TraceReader.of(bytes);
    assert.deepEqual(reader.meta.about, { seed });
    const plain = await replay(reader);
    assert.equal(plain.identical, true, `seed ${seed}: ${JSON.stringify(plain.difference, bigintsAsText)}`);
    const handled = await replay(TraceReader.of(bytes), (uffd) => handlerOf(uffd, base));
    assert.equal(
      handled.identical,
      true,
      `seed ${seed}: ${JSON.stringify(handled.difference, bigintsAsText)}`,
    );
    assert.equal(handled.records, plain.records);
    assert.ok(handled.faults > PAGES / 2);
  }
});

const bigintsAsText = (_key: string, value: unknown): unknown =>
  typeof value === 'bigint' ? `${value}` : value;

test('a handler that does otherwise is found at its first call, with the fault and what came before', async () => {
  const { bytes, base } = recorded(3);
  let faults = 0;
  const { identical, difference } = await replay(TraceReader.of(bytes), (uffd) => ({
    ...handlerOf(uffd, base),
    pagefault: (fault) => {
      faults++;
      return uffd.zero(fault.page, P) === P;
    },
  }));
  assert.equal(identical, false);
  assert.equal(faults, 1);
  assert.match(difference?.expected ?? '', /^copy\(dst 0x/);
  assert.match(difference?.came ?? '', /^zero\(start 0x/);
  assert.equal(typeof difference?.fault?.page, 'bigint');
  assert.ok((difference?.before.length ?? 0) > 0);
});

test('cut anywhere it is an error or a shorter trace; so it is with any byte changed', async () => {
  const { bytes } = recorded(2);
  const check = async (some: Uint8Array, what: string): Promise<void> => {
    let reader: TraceReader;
    try {
      reader = TraceReader.of(some);
    } catch (error) {
      assert.ok(error instanceof TraceError, `${what}: ${error}`);
      return;
    }
    while (reader.next());
    assert.notEqual(reader.damage, undefined, what);
    reader.close();
  };
  for (let length = 0; length < bytes.length; length += length < 64 ? 1 : 37) {
    await check(bytes.subarray(0, length), `${length} bytes`);
  }
  for (let at = 0; at < bytes.length; at++) {
    const changed = bytes.slice();
    changed[at] = (changed[at] as number) ^ (1 << (at % 8));
    await check(changed, `byte ${at}`);
  }
});

test('a sink that fails ends the recording with a warning, and nothing else', () => {
  const kernel = new SimulatedKernel({ seed: 1, preemption: 0 });
  const warnings: string[] = [];
  let writes = 0;
  const record = new TraceWriter(
    {
      write() {
        if (++writes > 1) throw new Error('the disk is full');
      },
      close() {},
    },
    { warn: (message) => void warnings.push(message) },
  );
  const uffd = Userfaultfd.open({ kernel, record });
  const base = kernel.map(4);
  uffd.register(base, 4 * P);
  uffd.start(handlerOf(uffd, base));
  const thread = kernel.thread(
    (function* () {
      for (let page = 0; page < 4; page++) yield read(base + BigInt(page * P));
    })(),
  );
  while (!thread.done) assert.ok(kernel.step());
  uffd.close();
  assert.match(record.failure?.message ?? '', /the disk is full/);
  assert.equal(warnings.length, 1);
});

test.run();
