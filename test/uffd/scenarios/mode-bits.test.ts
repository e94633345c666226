// Every mode bit of every operation: which threads DONTWAKE leaves asleep, which pages are installed write-protected,
// and what a range without the mode refuses.

import * as assert from 'uvu/assert';
import type { Feature, FillOptions, Mode } from '../../../src/index.js';
import { suite } from '../../support/harness.js';
import { map, P, sleepers, withUffd } from '../../support/real-kernel.js';
import {
  isHuge,
  isProtected,
  isShared,
  KINDS,
  type Kind,
  refused,
  type Stage,
  scenario,
  touch,
} from './support.js';

const test = suite('mode bits');
const SIGBUS = 7;

interface Case {
  name: string;
  kinds: readonly Kind[];
  features?: readonly Feature[];
  modes: readonly Mode[];
  /** Runs before the thread touches page 1. */
  prepare?(stage: Stage): void;
  /** Whether the thread writes; it reads otherwise. */
  writes?: boolean;
  /** Resolves the fault of page 1. */
  run(stage: Stage, options: FillOptions): number;
  /** The byte at the touched address after the fault. */
  finds: number;
}

function inPageCache({ area, pageSize, content }: Stage): void {
  const alias = area.alias();
  alias.bytes.set(content(1), pageSize);
  alias.close();
}

const CASES: readonly Case[] = [
  {
    ...{ name: 'copy', kinds: KINDS, modes: ['missing'], finds: 2 },
    run: ({ page, fill }, options) => fill(page(1), options),
  },
  {
    ...{ name: 'zero', kinds: KINDS.filter((kind) => !isHuge(kind)), modes: ['missing'], finds: 0 },
    run: ({ uffd, page, pageSize }, options) => uffd.zero(page(1), pageSize, options),
  },
  {
    ...{ name: 'move', kinds: ['anon'], features: ['move'], modes: ['missing'], finds: 6 },
    run: ({ uffd, page }, options) => uffd.move(page(1), map(1, 6), P, options),
  },
  {
    ...{ name: 'continue', kinds: KINDS.filter(isShared), modes: ['minor'], prepare: inPageCache, finds: 2 },
    run: ({ uffd, page, pageSize }, options) => uffd.continue(page(1), pageSize, options),
  },
  {
    ...{
      name: 'writeProtect off',
      kinds: KINDS,
      modes: ['missing', 'write-protect'],
      writes: true,
      finds: 9,
    },
    prepare: ({ page, fill }) => void fill(page(1), { writeProtect: true }),
    run: ({ uffd, page, pageSize }, options) => uffd.writeProtect(page(1), pageSize, false, options),
  },
];

for (const one of CASES) {
  const { kinds, modes, features = [] } = one;
  scenario(test, `dontWake: ${one.name}`, { kinds, modes, features }, async (stage) => {
    const { uffd, thread, page, pageSize } = stage;
    one.prepare?.(stage);
    const touched = one.writes ? thread.write(9, page(1)) : thread.read(page(1));
    await thread.asleep();
    assert.is(uffd.poll({ pagefault: () => false }), 1);
    assert.is(one.run(stage, { dontWake: true }), pageSize);
    assert.is(sleepers(uffd.fd), 1, 'it sleeps still');
    if (one.name !== 'move') {
      assert.is(one.run(stage, { dontWake: true }), pageSize, 'again, where it is done already');
      assert.is(sleepers(uffd.fd), 1);
    }
    uffd.wake(page(0), pageSize);
    assert.is(sleepers(uffd.fd), 1, 'and a wake of another page is none');
    uffd.wake(page(1), pageSize);
    assert.is(sleepers(uffd.fd), 0);
    await touched;
    assert.equal(await thread.read(page(1)), [one.finds]);
  });

  scenario(test, `without dontWake: ${one.name}`, { kinds, modes, features }, async (stage) => {
    const { uffd, thread, page, pageSize } = stage;
    one.prepare?.(stage);
    const touched = one.writes ? thread.write(9, page(1)) : thread.read(page(1));
    await thread.asleep();
    assert.is(uffd.poll({ pagefault: () => false }), 1);
    assert.is(one.run(stage, {}), pageSize);
    assert.is(sleepers(uffd.fd), 0);
    await touched;
    assert.equal(await thread.read(page(1)), [one.finds]);
  });
}

scenario(test, 'dontWake: poison', { features: ['poison'] }, async ({ uffd, thread, page, pageSize }) => {
  const signal = touch(thread, page(1));
  await thread.asleep();
  assert.is(uffd.poll({ pagefault: () => false }), 1);
  assert.is(uffd.poison(page(1), pageSize, { dontWake: true }), pageSize);
  assert.is(sleepers(uffd.fd), 1);
  uffd.wake(page(1), pageSize);
  assert.is(await signal, SIGBUS);
});

scenario(
  test,
  'copy with writeProtect: the first write waits',
  { modes: ['missing', 'write-protect'] },
  async (stage) => {
    const { uffd, thread, page, pageSize, fill } = stage;
    const kinds: string[] = [];
    uffd.start({
      pagefault(fault) {
        kinds.push(fault.kind);
        if (fault.kind === 'missing') return fill(fault.page, { writeProtect: true }) === pageSize;
        return uffd.writeProtect(fault.page, pageSize, false) === pageSize;
      },
    });
    assert.equal(await thread.read(page(1)), [2]);
    assert.ok(isProtected(page(1)) && uffd.isWriteProtected(page(1)));
    await thread.write(8, page(1), page(2));
    assert.not.ok(isProtected(page(2)) || uffd.isWriteProtected(page(2)));
    assert.equal(await thread.read(page(1), page(2), page(1) + 1n), [8, 8, 2]);
    assert.equal(kinds, ['missing', 'write-protect', 'missing', 'write-protect']);
  },
);

scenario(
  test,
  'what a range without write-protect refuses',
  {},
  async ({ uffd, base, pageSize, content }) => {
    refused(
      () => uffd.copy(base, content(0), pageSize, { writeProtect: true }),
      'EINVAL',
      'UFFDIO_COPY',
      /not registered for write-protect/,
    );
    assert.is(uffd.writeProtect(base, pageSize, true), 0, 'there is nothing that could be protected');
    assert.not.ok(uffd.isWriteProtected(base));
  },
);

test('writeProtect on, with dontWake: the kernel knows no such thing, so it is on', async () => {
  await withUffd(['pagefault-flag-wp'], async (uffd) => {
    const base = map(1, 1);
    uffd.register(base, P, 'write-protect');
    assert.is(uffd.writeProtect(base, P, true, { dontWake: true }), P);
    assert.ok(isProtected(base));
  });
});

test.run();
