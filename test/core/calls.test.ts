// How many calls into the WebAssembly module a fault costs. Each call crosses from JavaScript into WebAssembly, which
// takes most of the core's time for a fault. Both limits are for a batch of one fault in the simulated kernel.

import { strict as assert } from 'node:assert';
import type { FaultHandler } from '../../src/index.js';
import { read, SimulatedKernel, Userfaultfd } from '../../src/sim/index.js';
import { WasmModule } from '../../src/uffd/core.js';
import { suite } from '../support/harness.js';

const test = suite('calls');

const P = 4096;
const PAGES = 8;

/** The names of the module's functions that were called, in order. */
const calls: string[] = [];

/** Runs `body`; modules instantiated by it record their calls in `calls`. */
function noting<T>(body: () => T): T {
  const { instantiate } = WasmModule.prototype;
  WasmModule.prototype.instantiate = function (this: WasmModule<Record<string, unknown>>) {
    const exports: Record<string, unknown> = instantiate.call(this);
    for (const [name, value] of Object.entries(exports)) {
      if (typeof value !== 'function') continue;
      exports[name] = (...values: unknown[]) => {
        calls.push(name);
        return value(...values);
      };
    }
    return exports;
  };
  try {
    return body();
  } finally {
    WasmModule.prototype.instantiate = instantiate;
  }
}

/** A thread reads each page in turn. Returns the calls of each fault's batch, without the first batch. */
function batches(handler: FaultHandler, prepare?: (uffd: Userfaultfd, base: bigint) => void): string[][] {
  const kernel = new SimulatedKernel({ seed: 1, preemption: 0 });
  const base = kernel.mapMemory(PAGES);
  const uffd = noting(() => Userfaultfd.open({ kernel, features: ['event-remove'] }));
  uffd.register(base, PAGES * P);
  prepare?.(uffd, base);
  const thread = kernel.thread(
    (function* () {
      for (let index = 0; index < PAGES; index++) yield read(base + BigInt(index * P));
    })(),
  );
  const all: string[][] = [];
  while (!thread.done) {
    while (kernel.step());
    if (thread.done) break;
    calls.length = 0;
    assert.equal(uffd.poll(handler), 1);
    all.push([...calls]);
  }
  uffd.close();
  assert.equal(all.length, PAGES);
  // The first batch may make further calls, to learn what later ones know.
  return all.slice(1);
}

/** Checks that no batch made more calls than `most`. */
function atMost(most: number, all: string[][], what: string): void {
  for (const batch of all) {
    assert.ok(
      batch.length <= most,
      `${what}: ${batch.length} calls into the module, at most ${most} are meant: ${batch.join(', ')}`,
    );
  }
}

test('a fault that the handler answers with one copy takes at most five calls', () => {
  const data = new Uint8Array(P).fill(7);
  const all = batches({ pagefault: ({ page }, uffd) => uffd.copy(page, data) === P });
  atMost(5, all, 'a copy by the handler');
});

test('a fault that is answered from a source takes at most three calls', () => {
  const data = new Uint8Array(PAGES * P).fill(7);
  const all = batches(
    { pagefault: () => assert.fail('the source has answered') },
    (uffd, base) => void assert.equal(uffd.answerFrom(base, data.length, data), true),
  );
  atMost(3, all, 'an answer from a source');
});

test.run();
