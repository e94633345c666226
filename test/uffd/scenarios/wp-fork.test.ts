// Scenarios wp-fork, with events, with pins: whether a child finds its pages write-protected. Without fork events it
// does not; with them, its own userfaultfd keeps the parent's protection. A fork copies a pinned page at once.

import { closeSync } from 'node:fs';
import * as assert from 'uvu/assert';
import type { Userfaultfd } from '../../../src/index.js';
import { skip, suite } from '../../support/harness.js';
import { isProtected, type Stage, scenario, scenarioLibrary } from './support.js';

const test = suite('wp-fork');

/** Pins pages as a device would, until the returned descriptor is closed. */
async function pin({ thread, base, pageSize }: Stage): Promise<number> {
  const ring = await thread.native(scenarioLibrary(), 'int pin(uintptr_t at, size_t length)', base, pageSize);
  return ring >= 0 ? ring : skip(`io_uring, which pins the pages, cannot be used here (errno ${-ring})`);
}

for (const withEvent of [false, true]) {
  for (const withPin of [false, true]) {
    const name = `wp-fork${withEvent ? ', with events' : ''}${withPin ? ', with pins' : ''}`;
    scenario(
      test,
      name,
      // A child's copy of a pinned huge page comes from the pool.
      { features: withEvent ? ['event-fork'] : [], modes: 'write-protect', pages: 2, extra: 2 },
      async (stage) => {
        const { uffd, thread, base, page, pageSize } = stage;
        const children: Userfaultfd[] = [];
        uffd.start({
          pagefault: (fault) => uffd.writeProtect(fault.page, pageSize, false) === pageSize,
          forked: (child) => void children.push(child),
        });
        const childProtected = (address: bigint): Promise<number> =>
          thread.native(scenarioLibrary(), 'int child_protected(uintptr_t at)', address);
        await thread.write(1, page(0), page(1));
        const ring = withPin ? await pin(stage) : -1;
        assert.is(uffd.writeProtect(base, pageSize, true), pageSize);
        assert.ok(isProtected(page(0)) && !isProtected(page(1)));

        assert.is(await childProtected(page(0)), withEvent ? 1 : 0);
        assert.is(await childProtected(page(1)), 0, 'a page that was not protected');
        assert.ok(isProtected(page(0)), 'the fork leaves the parent as it was');
        // Without the events the child gets no userfaultfd, and its memory is not watched.
        assert.is(children.length, withEvent ? 2 : 0);
        for (const child of children) {
          assert.equal(child.ranges, uffd.ranges);
          child.close();
        }

        await thread.write(2, page(0));
        assert.not.ok(isProtected(page(0)));
        assert.is(await childProtected(page(0)), 0, 'and once it was lifted, the next child has none either');
        children.at(-1)?.close();
        if (ring >= 0) closeSync(ring);
        assert.equal(await thread.read(page(0)), [2]);
      },
    );
  }
}

test.run();
