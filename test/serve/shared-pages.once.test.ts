// Guests share pages: one copy of a page for all guests whose monitors ask, while written and removed pages are each
// guest's own. Sharing is measured in the kernel: the memfd's blocks, and what each guest has for itself.

import { strict as assert } from 'node:assert';
import { ftruncateSync, readdirSync, readFileSync, readlinkSync, renameSync, statSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { readMemory } from '../../shim/access.js';
import { closeDescriptor, writeAt } from '../../shim/descriptors.js';
import { MAP_SHARED, mmap, munmap, PROT_READ, PROT_WRITE, punchHole } from '../../shim/memory.js';
import type { Guest } from '../../src/cli/guest/guest.js';
import { Mapping, Userfaultfd } from '../../src/index.js';
import type { KnownFeature } from '../../src/kernel/features.js';
import { handOver, type Region, requestSharedMemory, type Session } from '../../src/serve/index.js';
import { memfdWriter, SharedPages, sharedSource } from '../../src/serve/shared-pages.js';
import { inDirectory } from '../cli/support/command.js';
import { suite } from '../support/harness.js';
import { needKernel } from '../support/real-kernel.js';
import { P, writeMemory } from './support/serve-process.js';
import { type Scene, serving, until } from './support/server.js';
import { assertRight, withSnapshot } from './support/snapshot-store.js';

const test = suite('serve/shared-pages');
const PAGES = 512;
/** Every eighth page is a hole. */
const DATA = PAGES - PAGES / 8;

function sparseMemory(directory: string, name = 'memory', seed = 1): string {
  const path = join(directory, name);
  writeMemory(path, PAGES, seed, (page) => page % 8 === 7);
  return path;
}

const MEMFD = /^\/memfd:uffd-shared/;

/** Pages that the memory of this server's guests takes in the kernel, by its memfds. */
function pagesOfMemfds(): number[] {
  return readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      const path = `/proc/self/fd/${fd}`;
      return MEMFD.test(readlinkSync(path)) ? [(statSync(path).blocks * 512) / P] : [];
    } catch {
      return [];
    }
  });
}

/** Pages of a guest's mappings of the memfd: its share of them, and those that are its own. */
function pagesOf({ pid }: Guest): { pss: number; own: number } {
  const sum = { pss: 0, own: 0 };
  const smaps = readFileSync(`/proc/${pid}/smaps`, 'latin1');
  for (const [, fields = ''] of smaps.matchAll(
    /^[0-9a-f]+-.*\/memfd:uffd-shared.*\n((?:[A-Z]\w+:.*\n)*)/gm,
  )) {
    const kib = (name: string): number => Number(new RegExp(`^${name}:\\s*(\\d+) kB`, 'm').exec(fields)?.[1]);
    sum.pss += (kib('Pss') * 1024) / P;
    sum.own += (kib('Anonymous') * 1024) / P;
  }
  return sum;
}

/** Resolves when all pages that the guests should have are installed. */
async function settled({ server }: Scene, guests: number): Promise<void> {
  const sessions = (): Session[] => [...server.sessions];
  await until(
    () => server.sessions.size === guests && sessions().every(({ settledMs }) => settledMs !== undefined),
  );
}

async function correct(guest: Guest, options: Partial<Parameters<Guest['touch']>[0]> = {}): Promise<void> {
  const { wrongCount, wrong } = await guest.touch({ threads: 2, order: 'random', seed: 3, ...options });
  assert.equal(wrongCount, 0, wrong.join('\n'));
}

test("one copy of each page for all guests; holes take none; a written page is its guest's own", async () => {
  await serving({ memory: sparseMemory, sharePages: true, window: 4 }, async (scene) => {
    const guests = await Promise.all([1, 2, 3].map((regions) => scene.guest({ sharePages: true, regions })));
    await Promise.all(guests.map((guest) => correct(guest)));
    assert.deepEqual(pagesOfMemfds(), [DATA]);
    assert.deepEqual(scene.server.sharing, { guests: 3, memoryBytes: DATA * P });
    // A guest may go on before its page is counted.
    await until(() =>
      [...scene.server.sessions].every(
        ({ tally }) => tally.get('shared') === DATA * P && tally.get('hole') === (PAGES - DATA) * P,
      ),
    );
    for (const guest of guests) {
      const { pss, own } = pagesOf(guest);
      assert.equal(own, 0);
      // The server's mapping counts, too. Pss is rounded for each mapping.
      assert.ok(pss <= DATA / 3, `${pss}`);
    }
    // A guest without sharing has copies, and takes nothing from the others.
    const plain = await scene.guest();
    await correct(plain);
    assert.equal(pagesOf(plain).pss, 0);
    assert.equal(scene.server.sharing?.guests, 3);
    const [first, second] = guests as [Guest, Guest];
    await correct(first, { writes: 1, from: 0, to: 64 });
    assert.ok(pagesOf(first).own >= 56, `${pagesOf(first).own}`);
    assert.equal(pagesOf(second).own, 0);
    await correct(second);
    await correct(await scene.guest({ sharePages: true }));
    assert.deepEqual(pagesOfMemfds(), [DATA]);
    assert.deepEqual(scene.refusals, []);
  });
  // Nothing of it is left.
  assert.deepEqual(pagesOfMemfds(), []);
});

test('a removed page reads zeros, in the memfd or not, written or not, and for this guest only', async () => {
  await serving({ memory: sparseMemory, sharePages: true }, async (scene) => {
    const one = await scene.guest({ sharePages: true });
    const two = await scene.guest({ sharePages: true });
    // Pages 0 to 63 are read, 64 to 127 are written, 128 to 191 are only in the memfd, 192 to 255 nowhere.
    await correct(one, { from: 0, to: 64 });
    await correct(one, { from: 64, to: 128, writes: 1 });
    await correct(two, { from: 128, to: 192 });
    await one.remove(0, 256);
    await correct(one);
    await correct(one, { writes: 1, from: 0, to: 256 });
    await correct(two);
    await one.remove(0, PAGES);
    await correct(one);
    assert.deepEqual(pagesOfMemfds(), [DATA]);
  });
});

test('pages that are installed in the background are shared; a recorded run is prefetched', async () => {
  await inDirectory(async (folder) => {
    const memory = sparseMemory(folder);
    const record = join(folder, 'trace');
    await serving({ memory: () => memory, sharePages: true, record }, async (scene) => {
      const guest = await scene.guest({ sharePages: true });
      await correct(guest, { from: 0, to: 100 });
      await guest.end();
      await until(() => scene.ends.length === 1);
    });
    await serving({ memory: () => memory, sharePages: true, prefetch: [record] }, async (scene) => {
      const guests = await Promise.all([1, 2].map(() => scene.guest({ sharePages: true })));
      await settled(scene, 2);
      // Of 100 pages, 12 are holes.
      assert.deepEqual(pagesOfMemfds(), [88]);
      await Promise.all(guests.map((guest) => correct(guest, { from: 0, to: 100 })));
      for (const { tally } of scene.server.sessions) assert.equal(tally.get('faults'), 0);
      await Promise.all(guests.map((guest) => correct(guest)));
    });
    await serving({ memory: () => memory, sharePages: true, eager: true }, async (scene) => {
      const guest = await scene.guest({ sharePages: true });
      await settled(scene, 1);
      assert.deepEqual(pagesOfMemfds(), [DATA]);
      await correct(guest);
    });
  });
});

test('a snapshot in a store is shared, too', () =>
  withSnapshot(async ({ store, serve }) => {
    const { guest } = await serve({ sharePages: true });
    const guests = await Promise.all([1, 2, 3].map(() => guest({ sharePages: true })));
    await Promise.all(guests.map((one) => assertRight(one)));
    assert.deepEqual(store.repeated, []);
    const [pages = 0, ...others] = pagesOfMemfds();
    assert.equal(others.length, 0);
    for (const one of guests) assert.ok(pagesOf(one).pss <= pages / 3, `${pagesOf(one).pss} of ${pages}`);
  }));

test('a file that is replaced: the next guest gets other memory, and the old goes with its last guest', async () => {
  await serving({ memory: sparseMemory, sharePages: true }, async (scene) => {
    const first = await scene.guest({ sharePages: true, memory: sparseMemory(scene.directory, 'same') });
    await correct(first, { from: 0, to: 128 });
    renameSync(sparseMemory(scene.directory, 'next', 2), scene.memory);
    const second = await scene.guest({ sharePages: true });
    await correct(second);
    await correct(first);
    assert.deepEqual(pagesOfMemfds(), [DATA, DATA]);
    await first.end();
    await until(() => pagesOfMemfds().length === 1);
    await correct(second);
  });
});

test('a monitor cannot write to the memory, and what it makes the kernel allocate is not taken for data', async () => {
  await serving({ memory: sparseMemory, sharePages: true }, async ({ guest, socket }) => {
    const shared = await requestSharedMemory(socket);
    const { fd, bytes } = shared;
    assert.equal(bytes, PAGES * P);
    assert.equal(writeAt(fd, Buffer.alloc(P, 1), 0), -constants.errno.EPERM);
    assert.equal(mmap(0n, P, PROT_READ | PROT_WRITE, MAP_SHARED, fd), BigInt(-constants.errno.EPERM));
    assert.equal(punchHole(fd, 0, P), -constants.errno.EPERM);
    assert.throws(() => ftruncateSync(fd, 0), { code: 'EPERM' });
    // A read through a mapping that nothing watches makes a page of zeros.
    const there = mmap(0n, bytes, PROT_READ, MAP_SHARED, fd);
    assert.equal(readMemory(there, new Uint8Array(64 * P)), 64 * P);
    assert.deepEqual(pagesOfMemfds().slice(0, 1), [64]);
    const one = await guest({ sharePages: true });
    await correct(one);
    munmap(there, bytes);
    shared.close();
  });
});

test('a page whose image cannot be read is an error, and no data for any guest until it can', () => {
  needKernel();
  const pages = new SharedPages(2 * P);
  const { address, marks } = pages.memory;
  let bytes: bigint | Uint8Array = 4096n;
  const share = sharedSource(marks, memfdWriter(address, { bytesAt: () => bytes }));
  assert.throws(() => share.put(0, P), { code: 'EFAULT' });
  assert.equal(share.presentFrom(0, 2 * P), 0);
  bytes = new Uint8Array(P).fill(7);
  share.put(0, P);
  assert.equal(share.presentFrom(0, 2 * P), P);
  // What is there is not read again: from here on it comes from the first page.
  bytes = address;
  share.put(0, 2 * P);
  const found = new Uint8Array(2 * P);
  assert.equal(readMemory(address, found), 2 * P);
  assert.deepEqual(new Set(found), new Set([7]));
  assert.ok(pages.release());
});

test('what cannot be shared is refused, and the reason told', async () => {
  await serving({ memory: sparseMemory }, async ({ guest, socket }) => {
    await assert.rejects(requestSharedMemory(socket), {
      code: 'ERR_UFFD_HAND_OFF',
      message: /the server shares no pages: it was started without --share-pages/,
    });
    await correct(await guest(), { from: 0, to: 8 });
  });
  await serving(
    { memory: sparseMemory, sharePages: true, onError: 'leave' },
    async ({ socket, refusals }) => {
      const refused = async (
        features: readonly KnownFeature[],
        send: (region: Region, fd: number) => void,
        reason: RegExp,
      ): Promise<void> => {
        const memory = Mapping.anonymous(4 * P);
        const uffd = Userfaultfd.open({ features });
        uffd.register(memory.address, memory.length);
        const fd = uffd.release();
        const before = refusals.length;
        send({ start: memory.address, length: 4 * P, offset: 0, pageSize: P }, fd);
        await until(() => refusals.length > before);
        assert.match(refusals.at(-1) as string, reason);
        closeDescriptor(fd);
        memory.close();
      };
      await refused(
        ['event-remove'],
        (region, fd) => handOver(socket, [{ ...region, shared: true }], fd),
        /regions are shared, and no memory was asked for/,
      );
      for (const [has, lacks] of [
        ['event-remove', 'minor-shmem'],
        ['minor-shmem', 'event-remove'],
      ] as const) {
        const shared = await requestSharedMemory(socket);
        const reason = new RegExp(`only if '${lacks}' is on`);
        await refused([has], (region, fd) => shared.handOver([region], fd), reason);
        shared.close();
      }
    },
  );
  assert.deepEqual(pagesOfMemfds(), []);
});

test.run();
