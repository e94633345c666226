// Objects that are garbage-collected without a close: the library unmaps mappings and closes userfaultfds, unless a
// thread may still need them.

import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { readMemory } from '../../shim/access.js';
import { closeDescriptor } from '../../shim/descriptors.js';
import { Mapping, Userfaultfd } from '../../src/index.js';
import { suite } from '../support/harness.js';
import { looper, map, needKernel, openWith, P, pageOf, toucher, until } from '../support/real-kernel.js';

const test = suite('uffd/dropped-objects');
const gc = (globalThis as unknown as { gc(): void }).gc;

/** Whether an address holds a byte. Once memory is unmapped, other memory may get its address at once. */
function holds(address: bigint, byte: number): boolean {
  const found = new Uint8Array(1);
  return readMemory(address, found) === 1 && found[0] === byte;
}

/** The number of open descriptors of a kind, as /proc/self/fd names it. */
function descriptors(kind: string): number {
  return readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).includes(kind);
    } catch {
      return false;
    }
  }).length;
}

/** Collects garbage until the condition holds. */
async function comes(condition: () => boolean): Promise<void> {
  await until(() => {
    gc();
    return condition();
  });
}

async function collect(): Promise<void> {
  for (let n = 0; n < 10; n++) {
    gc();
    await sleep(2);
  }
}

/** Records the warnings of this library while a body runs. */
async function warned(body: () => Promise<void>): Promise<string[]> {
  const warnings: string[] = [];
  const listener = ({ name, message }: Error): void => {
    if (name === 'UserfaultfdWarning') warnings.push(message);
  };
  process.on('warning', listener);
  try {
    await body();
    await sleep(1);
  } finally {
    process.off('warning', listener);
  }
  return warnings;
}

for (const [kind, make] of [
  ['anonymous', () => Mapping.anonymous(4 * P)],
  ['memfd', () => Mapping.memfd(4 * P)],
] as const) {
  test(`a dropped mapping is freed, its descriptor with it: ${kind}`, async () => {
    needKernel();
    const before = descriptors('memfd:userfaultfd');
    const drop = (): bigint => {
      const mapping = make();
      mapping.bytes.fill(3);
      return mapping.address;
    };
    const address = drop();
    assert.ok(holds(address, 3));
    await comes(() => !holds(address, 3));
    assert.is(descriptors('memfd:userfaultfd'), before);
  });
}

test('many dropped mappings: none is left', async () => {
  needKernel();
  const left = (): number => readFileSync('/proc/self/maps', 'latin1').split('/memfd:userfaultfd').length - 1;
  const before = left();
  for (let n = 0; n < 500; n++) Mapping.memfd(P);
  assert.ok(left() > before);
  await comes(() => left() === before && descriptors('memfd:userfaultfd') === 0);
});

test('a view of a dropped mapping keeps it, and what is in it', async () => {
  needKernel();
  let view: Uint8Array | undefined = Mapping.anonymous(2 * P)
    .bytes.fill(7)
    .subarray(P);
  const { address } = (() => {
    const mapping = Mapping.memfd(P);
    view = mapping.bytes.fill(9).subarray(1);
    return { address: mapping.address };
  })();
  // Compare the name too: other memory may get the address at once.
  const isThere = (): boolean =>
    new RegExp(`^${address.toString(16)}-.*/memfd:userfaultfd`, 'm').test(
      readFileSync('/proc/self/maps', 'latin1'),
    );
  await collect();
  assert.is(view?.[0], 9);
  assert.ok(isThere());
  view = undefined;
  await comes(() => !isThere());
});

for (const end of ['unregister', 'close'] as const) {
  test(`a dropped mapping that is watched is kept until ${end}`, async () => {
    const uffd = openWith(['event-unmap']);
    const watched = (): bigint => {
      const mapping = Mapping.anonymous(2 * P);
      uffd.register(mapping.address, 2 * P);
      return mapping.address;
    };
    const address = watched();
    await collect();
    assert.is(uffd.copy(address, pageOf(5)), P, 'it is there');
    if (end === 'unregister') uffd.unregister(address, 2 * P);
    else uffd.close();
    await comes(() => !holds(address, 5));
    uffd.close();
  });
}

test('a dropped mapping is kept while a userfaultfd watches it that this thread knows nothing of', async () => {
  needKernel();
  const first = openWith(['event-unmap']);
  const watched = (): bigint => {
    const mapping = Mapping.anonymous(2 * P);
    first.register(mapping.address, 2 * P);
    first.copy(mapping.address, pageOf(5));
    return mapping.address;
  };
  const address = watched();
  // No loop reads the events of this userfaultfd: an unmap would hang this thread.
  const fd = first.release();
  await collect();
  assert.ok(holds(address, 5));
  closeDescriptor(fd);
  await comes(() => !holds(address, 5));
});

test('a dropped mapping that was shared with another thread is kept', async () => {
  needKernel();
  const { address, bytes } = (() => {
    const mapping = Mapping.anonymous(P);
    mapping.bytes[0] = 4;
    const shared = structuredClone(mapping.share());
    return { address: mapping.address, bytes: () => Mapping.attach(shared).bytes };
  })();
  await collect();
  assert.ok(holds(address, 4));
  assert.is(bytes()[0], 4);
});

test('a dropped userfaultfd that watches nothing is closed, its other descriptors with it', async () => {
  needKernel();
  const before = [descriptors('[userfaultfd]'), descriptors('[eventfd]'), descriptors('[pidfd]')];
  const warnings = await warned(async () => {
    (() => {
      for (let n = 0; n < 20; n++) Userfaultfd.open({ features: ['event-remove'], pid: process.pid });
      const used = openWith();
      const memory = map(2);
      used.register(memory, 2 * P);
      used.start({ pagefault() {} });
      used.stop();
      used.unregister(memory, 2 * P);
    })();
    await comes(() => descriptors('[userfaultfd]') === before[0]);
  });
  assert.equal([descriptors('[eventfd]'), descriptors('[pidfd]')], before.slice(1));
  assert.equal(warnings, []);
});

test('a dropped userfaultfd with registered ranges stays open, with one warning, until nothing is registered', async () => {
  needKernel();
  const before = descriptors('[userfaultfd]');
  const mapping = Mapping.anonymous(2 * P);
  // The thread has only the address; this view keeps the memory mapped for it.
  const view = mapping.bytes;
  const thread = await toucher();
  let reading: Promise<number[]> | undefined;
  const warnings = await warned(async () => {
    (() => {
      const uffd = openWith(['event-unmap']);
      uffd.register(mapping.address, 2 * P);
      reading = thread.read(mapping.address);
    })();
    await collect();
    assert.is(descriptors('[userfaultfd]'), before + 1);
    await thread.asleep();
    await collect();
  });
  assert.is(warnings.length, 1, warnings.join('\n'));
  assert.match(warnings[0] ?? '', /was dropped without close\(\) while memory is registered/);
  // close() unregisters the memory before the unmap: this thread could not read the event of an unmap.
  mapping.close();
  assert.equal(await reading, [0]);
  assert.is(view.length, 2 * P);
  assert.is(descriptors('[userfaultfd]'), before);
  await thread.end();
});

test('what was dropped with registered ranges can be adopted again by its number', async () => {
  needKernel();
  const before = descriptors('[userfaultfd]');
  const memory = map(2);
  const fd = (() => {
    const uffd = openWith();
    uffd.register(memory, 2 * P);
    return uffd.fd;
  })();
  await warned(collect);
  using uffd = Userfaultfd.wrap(fd);
  const thread = await toucher();
  uffd.start({ pagefault: ({ page }) => void uffd.copy(page, pageOf(6)) });
  assert.equal(await thread.read(memory), [6]);
  uffd.close();
  await collect();
  assert.is(descriptors('[userfaultfd]'), before);
  await thread.end();
});

test('one that was wrapped without its ranges may watch anything, and stays open', async () => {
  needKernel();
  const memory = map(1);
  const first = openWith();
  first.register(memory, P);
  const fd = first.release();
  const warnings = await warned(async () => {
    (() => void Userfaultfd.wrap(fd))();
    await collect();
  });
  assert.is(warnings.length, 1);
  using again = Userfaultfd.wrap(fd);
  assert.is(again.closed, false);
});

test('a running loop keeps its userfaultfd, even if the program has dropped it', async () => {
  needKernel();
  const memory = map(2);
  const thread = await toucher();
  const handle = (() => {
    const uffd = openWith();
    uffd.register(memory, 2 * P);
    uffd.start({ pagefault: ({ page }, own) => void own.copy(page, pageOf(8)) });
    return uffd.stopHandle;
  })();
  await collect();
  assert.equal(await thread.read(memory), [8]);
  Userfaultfd.stop(handle);
  // The same with a loop on another thread.
  const other = openWith();
  const more = map(1);
  other.register(more, P);
  const loop = await looper(other, { wait: 'block' });
  await loop.end();
  await thread.end();
});

test.run();
