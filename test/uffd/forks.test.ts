// Forks with EVENT_FORK: each child's userfaultfd watches the same ranges as its parent's, serves the child, follows
// only the child's changes, and ends with the child. Invariant: no descriptor is left, no thread sleeps.

import { spawnSync } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import type { FaultHandler, Feature, RegisteredRange, UffdError, Userfaultfd } from '../../src/index.js';
import { suite } from '../support/harness.js';
import {
  compileLibrary,
  endAll,
  holdings,
  looper,
  map,
  needKernel,
  numberedSource,
  openWith,
  P,
  skipWithout,
  touchers,
  until,
} from '../support/real-kernel.js';
import { type Watched, watched } from '../support/watched-process.js';
import type { Starved } from './support/descriptor-exhaustion.js';

const test = suite('uffd/forks');

const PAGES = 256;
const EVENTS: Feature[] = ['event-fork', 'event-remap', 'event-remove', 'event-unmap'];

/** Start and length of each range, in pages. */
function inPages(ranges: readonly RegisteredRange[], base: bigint): [number, number][] {
  return ranges.map(({ start, length }) => [Number(start - base) / P, length / P]);
}

/** Serves numbered pages to a parent, its children and their children. */
class Family {
  readonly children: Userfaultfd[] = [];
  readonly ends: (UffdError | undefined)[] = [];
  faultsOfParent = 0;
  faultsOfChildren = 0;
  readonly #source: bigint;
  readonly #base: bigint;
  readonly #events: Partial<FaultHandler>;

  constructor(base: bigint, pages: number, events: Partial<FaultHandler> = {}) {
    this.#source = numberedSource(pages);
    this.#base = base;
    this.#events = events;
  }

  serve(parent: Userfaultfd): void {
    parent.start({
      pagefault: (fault, uffd) => {
        this.faultsOfParent++;
        return this.#fill(fault.page, uffd);
      },
      forked: (child) => {
        assert.equal(child.ranges, parent.ranges, 'a child has what its parent has');
        this.children.push(child);
        child.start(this.handlerOfChild);
      },
    });
  }

  get handlerOfChild(): FaultHandler {
    return {
      ...this.#events,
      pagefault: (fault, uffd) => {
        this.faultsOfChildren++;
        return this.#fill(fault.page, uffd);
      },
      closed: (error) => void this.ends.push(error),
    };
  }

  #fill(page: bigint, uffd: Userfaultfd): boolean {
    return uffd.copy(page, this.#source + (page - this.#base), P) === P;
  }
}

/** Runs a body, and waits until its descriptors and threads are gone. */
async function leavingNothing(body: () => Promise<void>): Promise<void> {
  const before = holdings();
  await body();
  await endAll();
  await until(
    () => holdings().descriptors <= before.descriptors && holdings().threads <= before.threads,
    'what was held to go',
  );
}

/** Runs a body with a watched process of `pages` pages, and ends the process even if the body fails. */
async function withWatched(
  pages: number,
  features: Feature[],
  body: (it: Watched) => Promise<void>,
): Promise<void> {
  needKernel();
  skipWithout('event-fork');
  await leavingNothing(async () => {
    const it = await watched(pages, features);
    try {
      await body(it);
    } finally {
      it.uffd.close();
      it.kill();
      await it.ended;
    }
  });
}

for (const [name, forks, features] of [
  ['a thousand forks while both sides fault', 1000, ['event-fork']],
  ['forks while both sides fault and the mapping changes', 300, EVENTS],
] as [string, number, Feature[]][]) {
  test(name, async () => {
    await withWatched(PAGES, features, async (it) => {
      const family = new Family(it.base, PAGES);
      family.serve(it.uffd);
      const changes = features.length > 1 ? 1 : 0;
      const said = (await it.request(`storm ${forks} 8 8 ${changes}`)).split(' ').map(Number);
      assert.equal(said.slice(0, 2), [0, 0], 'children that went wrong, pages that were wrong');
      assert.ok((said[2] as number) > 0, 'the parent touched meanwhile');
      assert.is((said[3] as number) > 0, changes > 0, 'and changed its mapping');
      assert.is(family.children.length, forks);
      assert.ok(family.faultsOfParent > 0 && family.faultsOfChildren > 0);
      // Only the child's own object reports its end.
      await until(() => family.ends.length === forks, 'the children to end');
      assert.ok(family.ends.every((error) => error?.code === 'ESRCH'));
      assert.ok(family.children.every((child) => child.closed));
      assert.equal(inPages(it.uffd.ranges, it.base), [[0, PAGES]]);
    });
  }, 120_000);
}

test('forks of this very process, by a thread, while others fault', async () => {
  skipWithout('event-fork');
  const library = compileLibrary('support/fork.c');
  const forks = 200;
  await leavingNothing(async () => {
    const uffd = openWith(['event-fork']);
    const base = map(PAGES);
    uffd.register(base, PAGES * P);
    const family = new Family(base, PAGES);
    family.serve(uffd);
    const [forker, ...readers] = await touchers(3);
    let forking = true;
    const reads = readers.map(async (reader) => {
      let wrong = 0;
      while (forking) {
        wrong += await reader.verify(base, PAGES / 2, P, 7);
        await reader.madvise(base, (PAGES / 2) * P, 4);
      }
      return wrong;
    });
    for (let n = 0; n < forks; n++) {
      assert.is(await forker?.forkTouch(library, base, (n * 7) % (PAGES - 8), 8), 0);
    }
    forking = false;
    assert.equal(await Promise.all(reads), [0, 0]);
    assert.is(family.children.length, forks);
    await until(() => family.ends.length === forks, 'the children to end');
    uffd.close();
  });
}, 120_000);

test("a child's ranges follow the child, the parent's the parent", async () => {
  await withWatched(16, EVENTS, async (it) => {
    const seen: [number, number][][] = [];
    const note = (): void => {
      seen.push(inPages(family.children.at(-1)?.ranges ?? [], it.base));
    };
    const family = new Family(it.base, 16, { unmapped: note });
    family.serve(it.uffd);

    assert.is(await it.request('fork u 4 2'), '0');
    assert.equal(seen, [
      [
        [0, 4],
        [6, 10],
      ],
    ]);
    assert.equal(inPages(it.uffd.ranges, it.base), [[0, 16]], 'the parent has all still');

    // This child touches a page and stays alive.
    const pid = Number(await it.request('start p 3 1'));
    const child = family.children.at(-1) as Userfaultfd;
    assert.is(await it.request('unmap 0 2'), '0');
    assert.equal(inPages(it.uffd.ranges, it.base), [[2, 14]]);
    assert.equal(inPages(child.ranges, it.base), [[0, 16]], 'that child has all still');

    // A later child starts with the ranges that its parent has by then.
    assert.is(await it.request('fork t 2 14'), '0');
    assert.equal(inPages((family.children.at(-1) as Userfaultfd).ranges, it.base), [[2, 14]]);
    process.kill(pid, 'SIGKILL');
    assert.is(await it.request(`reap ${pid}`), '0');
    await until(() => family.ends.length === 3, 'the children to end');
  });
});

test('a child that moves its memory is served where it has it', async () => {
  await withWatched(16, EVENTS, async (it) => {
    const source = numberedSource(16);
    let base = it.base;
    const children: Userfaultfd[] = [];
    it.uffd.start({
      pagefault: () => false,
      forked(child) {
        children.push(child);
        child.start({
          pagefault: (fault, uffd) => uffd.copy(fault.page, source + (fault.page - base), P) === P,
          remapped(from, to, length) {
            assert.equal([from, length], [it.base, 16 * P]);
            base = to;
          },
        });
      },
    });
    assert.is(await it.request('fork m 0 16'), '0');
    assert.not.equal(base, it.base);
    assert.equal(inPages((children[0] as Userfaultfd).ranges, base), [[0, 16]]);
    assert.equal(inPages(it.uffd.ranges, it.base), [[0, 16]]);
  });
});

test("a child's userfaultfd is handed to a thread of its own", async () => {
  await withWatched(16, ['event-fork'], async (it) => {
    const source = numberedSource(16);
    const loops: ReturnType<typeof looper>[] = [];
    it.uffd.start({
      pagefault: () => false,
      forked: (child) => void loops.push(looper(child, { wait: 'block', source, base: it.base })),
    });
    assert.is(await it.request('fork t 0 16'), '0');
    const loop = await (loops[0] as ReturnType<typeof looper>);
    await loop.end();
    assert.is((await loop.waitFor('stopped')).faults, 16);
  });
});

test('no handler takes the child: its userfaultfd is closed, and it reads zeros', async () => {
  await withWatched(4, ['event-fork'], async (it) => {
    it.uffd.start({ pagefault: () => false });
    const { descriptors } = holdings();
    for (let n = 0; n < 20; n++) {
      assert.is(await it.request('fork t 0 4'), '1', 'its pages do not have their numbers');
      assert.is(holdings().descriptors, descriptors);
    }
  });
});

test('a handler that throws: the child is closed, and the next start goes on', async () => {
  await withWatched(4, ['event-fork'], async (it) => {
    const thrown = new Promise<Error>((resolve) => process.once('uncaughtException', resolve));
    it.uffd.start({
      pagefault: () => false,
      forked() {
        throw new Error('planted');
      },
    });
    assert.is(await it.request('fork t 0 4'), '1');
    assert.is((await thrown).message, 'planted');
    assert.is(it.uffd.waiting, false);
    assert.is(it.uffd.closed, false);
    const family = new Family(it.base, 4);
    family.serve(it.uffd);
    assert.is(await it.request('fork t 0 4'), '0');
    await until(() => family.ends.length === 1, 'the child to end');
  });
});

test('a child that is not served sleeps, and runs on when its userfaultfd is closed', async () => {
  await withWatched(4, ['event-fork'], async (it) => {
    const children: Userfaultfd[] = [];
    it.uffd.start({ pagefault: () => false, forked: (child) => void children.push(child) });
    const forked = it.request('fork t 0 4');
    await until(() => children.length > 0, 'the fork');
    const ended = await Promise.race([forked, sleep(50).then(() => 'asleep')]);
    assert.is(ended, 'asleep');
    children[0]?.close();
    assert.is(await forked, '1');
  });
});

const STARVED = fileURLToPath(new URL('./support/descriptor-exhaustion.js', import.meta.url));

for (const way of ['poll', 'block', 'spin', 'adaptive', 'by hand'] as const) {
  for (const then of ['free', 'close'] as const) {
    test(`no descriptor is left for children, ${way}, then ${then}: no thread is left asleep`, () => {
      skipWithout('event-fork');
      const args = [...process.execArgv, STARVED, way, then, compileLibrary('support/fork.c')];
      const { stdout, stderr, status } = spawnSync(process.execPath, args, {
        encoding: 'utf8',
        timeout: 40_000,
        killSignal: 'SIGKILL',
      });
      assert.is(status, 0, stderr || 'it hung');
      const outcome = JSON.parse(stdout) as Starved;
      assert.equal(outcome.statuses, [0, 0], 'the forks got through');
      assert.equal(outcome.calls, then === 'free' ? ['forked', 'closed'] : ['closed']);
      assert.is(outcome.warnings.length, 1, 'warned once');
      assert.match(outcome.warnings[0] as string, /no descriptor left for its child/);
      // The loop retries with a delay, and does not spin.
      if (['poll', 'block', 'adaptive'].includes(way))
        assert.ok(outcome.elapsedMs > 100, `${outcome.elapsedMs}`);
      assert.is(outcome.left, 0);
    });
  }
}

test.run();
