// Forks under EVENT_FORK: each child's userfaultfd watches what the parent's did, serves the child, follows the
// child's changes and not the parent's, and ends with the child. Invariant: no descriptor is left, nobody sleeps.

import { spawnSync } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import type { FaultHandler, Feature, RegisteredRange, UffdError, Userfaultfd } from '../../src/index.js';
import { suite } from '../harness.js';
import type { Starved } from './starved.js';
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
} from './support.js';
import { type Watched, watched } from './watched.js';

const test = suite('forks');

const PAGES = 256;
const EVENTS: Feature[] = ['event-fork', 'event-remap', 'event-remove', 'event-unmap'];

/** Start and length of each range, in pages. */
function inPages(ranges: readonly RegisteredRange[], base: bigint): [number, number][] {
  return ranges.map(({ start, length }) => [Number(start - base) / P, length / P]);
}

/** Serves numbered pages to a family: a parent, its children, theirs. */
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

/** Runs a body, and waits until no descriptor and no thread is left of it. */
async function leavingNothing(body: () => Promise<void>): Promise<void> {
  const before = holdings();
  await body();
  await endAll();
  await until(
    () => holdings().descriptors <= before.descriptors && holdings().threads <= before.threads,
    'what was held to go',
  );
}

/** Runs a body with a watched process of `pages` pages, and ends that whatever happens. */
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
      const said = (await it.tell(`storm ${forks} 8 8 ${changes}`)).split(' ').map(Number);
      assert.equal(said.slice(0, 2), [0, 0], 'children that went wrong, pages that were wrong');
      assert.ok((said[2] as number) > 0, 'the parent touched meanwhile');
      assert.is((said[3] as number) > 0, changes > 0, 'and changed its mapping');
      assert.is(family.children.length, forks);
      assert.ok(family.faultsOfParent > 0 && family.faultsOfChildren > 0);
      // Nobody tells of a child's end but its own object, by itself.
      await until(() => family.ends.length === forks, 'the children to end');
      assert.ok(family.ends.every((error) => error?.code === 'ESRCH'));
      assert.ok(family.children.every((child) => child.closed));
      assert.equal(inPages(it.uffd.ranges, it.base), [[0, PAGES]]);
    });
  }, 120_000);
}

test('forks of this very process, by a thread, while others fault', async () => {
  skipWithout('event-fork');
  const library = compileLibrary('fork.c');
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

    assert.is(await it.tell('fork u 4 2'), '0');
    assert.equal(seen, [
      [
        [0, 4],
        [6, 10],
      ],
    ]);
    assert.equal(inPages(it.uffd.ranges, it.base), [[0, 16]], 'the parent has all still');

    // This child touches a page and stays.
    const pid = Number(await it.tell('start p 3 1'));
    const child = family.children.at(-1) as Userfaultfd;
    assert.is(await it.tell('unmap 0 2'), '0');
    assert.equal(inPages(it.uffd.ranges, it.base), [[2, 14]]);
    assert.equal(inPages(child.ranges, it.base), [[0, 16]], 'that child has all still');

    // A child of later has what its parent has by then.
    assert.is(await it.tell('fork t 2 14'), '0');
    assert.equal(inPages((family.children.at(-1) as Userfaultfd).ranges, it.base), [[2, 14]]);
    process.kill(pid, 'SIGKILL');
    assert.is(await it.tell(`reap ${pid}`), '0');
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
    assert.is(await it.tell('fork m 0 16'), '0');
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
    assert.is(await it.tell('fork t 0 16'), '0');
    const loop = await (loops[0] as ReturnType<typeof looper>);
    await loop.end();
    assert.is((await loop.heard('stopped')).faults, 16);
  });
});

test('nobody takes the child: it is closed, and reads zeros', async () => {
  await withWatched(4, ['event-fork'], async (it) => {
    it.uffd.start({ pagefault: () => false });
    const { descriptors } = holdings();
    for (let n = 0; n < 20; n++) {
      assert.is(await it.tell('fork t 0 4'), '1', 'its pages do not have their numbers');
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
    assert.is(await it.tell('fork t 0 4'), '1');
    assert.is((await thrown).message, 'planted');
    assert.is(it.uffd.waiting, false);
    assert.is(it.uffd.closed, false);
    const family = new Family(it.base, 4);
    family.serve(it.uffd);
    assert.is(await it.tell('fork t 0 4'), '0');
    await until(() => family.ends.length === 1, 'the child to end');
  });
});

test('a child that nobody serves sleeps, and goes on when its userfaultfd is closed', async () => {
  await withWatched(4, ['event-fork'], async (it) => {
    const children: Userfaultfd[] = [];
    it.uffd.start({ pagefault: () => false, forked: (child) => void children.push(child) });
    const forked = it.tell('fork t 0 4');
    await until(() => children.length > 0, 'the fork');
    const ended = await Promise.race([forked, sleep(50).then(() => 'asleep')]);
    assert.is(ended, 'asleep');
    children[0]?.close();
    assert.is(await forked, '1');
  });
});

const STARVED = fileURLToPath(new URL('./starved.js', import.meta.url));

for (const way of ['poll', 'block', 'spin', 'adaptive', 'by hand'] as const) {
  for (const then of ['free', 'close'] as const) {
    test(`no descriptor is left for children, ${way}, then ${then}: nobody is left asleep`, () => {
      skipWithout('event-fork');
      const args = [...process.execArgv, STARVED, way, then, compileLibrary('fork.c')];
      const { stdout, stderr, status } = spawnSync(process.execPath, args, {
        encoding: 'utf8',
        timeout: 40_000,
        killSignal: 'SIGKILL',
      });
      assert.is(status, 0, stderr || 'it hung');
      const told = JSON.parse(stdout) as Starved;
      assert.equal(told.statuses, [0, 0], 'the forks got through');
      assert.equal(told.calls, then === 'free' ? ['forked', 'closed'] : ['closed']);
      assert.is(told.warnings.length, 1, 'warned once');
      assert.match(told.warnings[0] as string, /no descriptor left for its child/);
      // Asked again on a delay, and not as fast as can be.
      if (['poll', 'block', 'adaptive'].includes(way)) assert.ok(told.elapsedMs > 100, `${told.elapsedMs}`);
      assert.is(told.left, 0);
    });
  }
}

test.run();
