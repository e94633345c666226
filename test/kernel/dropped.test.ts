// What is dropped without a close: mappings are freed, and userfaultfds closed, unless somebody may need them still.

import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { closeDescriptor } from '../../shim/descriptors.js';
import { Mapping, Userfaultfd } from '../../src/index.js';
import { suite } from '../harness.js';
import { looper, map, needKernel, openWith, P, pageOf, toucher, until } from './support.js';

const test = suite('dropped');
const gc = (globalThis as unknown as { gc(): void }).gc;

function isMapped(address: bigint): boolean {
  return new RegExp(`^${address.toString(16)}-|-${address.toString(16)} `, 'm').test(
    readFileSync('/proc/self/maps', 'latin1'),
  );
}

/** Open descriptors of a kind, as /proc/self/fd names it. */
function descriptors(kind: string): number {
  return readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).includes(kind);
    } catch {
      return false;
    }
  }).length;
}

/** Collects for a while; true: it came about. */
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

/** Collects warnings of this library while something runs. */
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
    assert.ok(isMapped(address));
    await comes(() => !isMapped(address));
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
  // Other memory may come to lie there at once.
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
    assert.ok(isMapped(address));
    assert.is(uffd.copy(address, pageOf(5)), P);
    if (end === 'unregister') uffd.unregister(address, 2 * P);
    else uffd.close();
    await comes(() => !isMapped(address));
    uffd.close();
  });
}

test('a dropped mapping is kept while a userfaultfd watches it that this thread knows nothing of', async () => {
  needKernel();
  const first = openWith(['event-unmap']);
  const watched = (): bigint => {
    const mapping = Mapping.anonymous(2 * P);
    first.register(mapping.address, 2 * P);
    return mapping.address;
  };
  const address = watched();
  // Nobody reads its events: unmapping would hang this thread.
  const fd = first.release();
  await collect();
  assert.ok(isMapped(address));
  closeDescriptor(fd);
  await comes(() => !isMapped(address));
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
  assert.ok(isMapped(address));
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
  // The thread has only the address: the space is kept for it by this view.
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
  // Closing the mapping unregisters it: this thread reads nobody's events.
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

test('a loop keeps its userfaultfd, whoever else has let go of it', async () => {
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
  // On a thread of its own as well.
  const other = openWith();
  const more = map(1);
  other.register(more, P);
  const loop = await looper(other, { wait: 'block' });
  await loop.end();
  await thread.end();
});

test.run();
