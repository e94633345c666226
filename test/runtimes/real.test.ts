// The full library in the current runtime: each wait strategy answers real faults of a thread, all kinds of memory can
// be mapped and unmapped, writes are tracked, and serving guests works or fails with advice.

import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import * as assert from 'uvu/assert';
import { DirtyTracker } from '../../src/dirty/index.js';
import { Mapping, Userfaultfd } from '../../src/index.js';
import { serve } from '../../src/serve/index.js';
import { suite } from '../support/harness.js';
import { needKernel } from '../support/real-kernel.js';
import type { Task } from './reader.js';

const test = suite('runtimes/real');
const PAGES = 40;
const LIMIT_MS = 20_000;
const { bun, deno } = process.versions;

/** Starts a thread that reads all pages; resolves with the bytes. The caller may have to serve its faults. */
function reader(memory: Mapping, uffd: Userfaultfd): Promise<number[]> {
  const workerData: Task = { memory: memory.share(), stopHandle: uffd.stopHandle };
  const worker = new Worker(new URL('./reader.js', import.meta.url), { workerData });
  return once(worker, 'message').then(([read]) => read as number[]);
}

for (const wait of ['poll', 'block', 'spin', 'adaptive'] as const) {
  test(
    `'${wait}' answers the faults of a thread, and stops when that thread asks`,
    async () => {
      needKernel();
      using uffd = Userfaultfd.open();
      using memory = Mapping.anonymous(PAGES * uffd.pageSize);
      uffd.register(memory.address, memory.length);
      const bytes = new Uint8Array(uffd.pageSize);
      const done = reader(memory, uffd);
      const pagefault = ({ page }: { page: bigint }): boolean => {
        bytes.fill(Number(page - memory.address) / uffd.pageSize + 1);
        return uffd.copy(page, bytes) === bytes.length;
      };
      assert.ok(uffd.start({ pagefault }, { wait }));
      const read = await done;
      assert.equal(
        read,
        Array.from({ length: PAGES }, (_, page) => page + 1),
      );
      while (uffd.waiting) await new Promise((resolve) => setTimeout(resolve, 1));
    },
    LIMIT_MS,
  );
}

test(
  'close lets a thread go that waits; it reads zeros',
  async () => {
    needKernel();
    const uffd = Userfaultfd.open();
    using memory = Mapping.anonymous(uffd.pageSize);
    uffd.register(memory.address, memory.length);
    const faulted = new Promise<void>((resolve) => {
      uffd.start({
        pagefault() {
          resolve();
          return false;
        },
      });
    });
    const done = reader(memory, uffd);
    await faulted;
    uffd.close();
    assert.equal(await done, [0]);
  },
  LIMIT_MS,
);

test('memory of each kind is mapped, aliased, given back and closed', () => {
  needKernel();
  const folder = mkdtempSync(join(tmpdir(), 'uffd-runtimes-'));
  try {
    const path = join(folder, 'file');
    writeFileSync(path, new Uint8Array(5000).fill(7));
    for (let round = 0; round < 50; round++) {
      using anonymous = Mapping.anonymous(8192);
      using shared = Mapping.memfd(8192);
      using alias = shared.alias();
      using file = Mapping.file(path, { shared: true });
      using copy = file.alias();
      shared.bytes[5] = 1;
      assert.equal(
        [anonymous.bytes[0], alias.bytes[5], file.bytes[4999], copy.bytes.length],
        [0, 1, 7, 5000],
      );
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
});

for (const mode of ['async', 'sync'] as const) {
  test(
    `writes are reported, tracked '${mode}'`,
    async () => {
      needKernel();
      using memory = Mapping.memfd(16 * 4096);
      const tracker = await DirtyTracker.open(memory, { mode });
      memory.bytes[3 * 4096] = 1;
      assert.equal(
        tracker.collect().map(({ start, length }) => [start - memory.address, length]),
        [[BigInt(3 * 4096), 4096]],
      );
      tracker.close();
    },
    LIMIT_MS,
  );
}

test(
  'guests are served on Node; elsewhere that is refused, with what to do instead',
  async () => {
    needKernel();
    const folder = mkdtempSync(join(tmpdir(), 'uffd-runtimes-'));
    try {
      const [socket, memory] = [join(folder, 'socket'), join(folder, 'memory')];
      writeFileSync(memory, new Uint8Array(4096));
      const came = await serve({ vms: [{ socket, memory }] }).then(
        async (server) => {
          await server.close();
          return 'served';
        },
        (error) => `${error.code}: ${error.message}`,
      );
      if (bun ?? deno) assert.match(came, /^ERR_UFFD_UNSUPPORTED: .* runs on Node.*wait: 'block'/);
      else assert.is(came, 'served');
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
  LIMIT_MS,
);

test.run();
