// The snapshot handler of `uffd serve` in the simulated kernel, where the test controls time, order and the speed of
// the source: the scenarios of test/serve/scenarios.test.ts that need more control than a real guest allows. Every page
// is compared with its expected bytes when it is read, when it is filled, and at the end.
//
// On Linux the kernel reads the memory file inside the copy, so a test cannot stop between "fetched" and "installed".
// Here the source returns bytes, and the test chooses what happens before they are copied.

import { strict as assert } from 'node:assert';
import type { FaultHandler, Feature, UffdError, Window } from '../../src/index.js';
import { Tally } from '../../src/serve/index.js';
import {
  type Action,
  exec,
  exit,
  type Inject,
  type Program,
  Random,
  read,
  Userfaultfd,
  write,
} from '../../src/sim/index.js';
import { SimulationError, simulate } from '../../src/testing/index.js';
import { suite } from '../support/harness.js';
import {
  always,
  answers,
  asleep,
  byteOf,
  RUNS,
  reads,
  remove,
  slowly,
  when,
} from './support/simulated-world.js';

const test = suite('serve/simulated');
const REMOVES: Feature[] = ['event-remove'];
/** Virtual milliseconds that a slow source takes; and at most, until a call that need not wait for it returns. */
const HELD_MS = 500;
const SOON_MS = 5;
const WAITS = ['poll', 'block', 'spin', 'adaptive'] as const;

// ---- random threads ----------------------------------------------------------------------------------------

const SEEDS = process.env.UFFD_CORE === 'debug' ? 150 : 600;
/** Disturbances that the handler must survive. Only a page whose read fails four times would be an error. */
const PASSING: Inject = {
  ...{ eagain: 0.05, partial: 0.1, eintr: 0.05, efault: 0.02, held: 0.1, repeat: 0.05 },
  ...{ wake: 0.05, signal: 0.05, short: 0.1, exit: 0.001, exec: 0.001 },
};

for (const pageSize of [4096, 65536]) {
  for (const features of [REMOVES, []]) {
    const name = `pages of ${pageSize}, ${features.length > 0 ? 'with' : 'without'} EVENT_REMOVE`;
    test(`random threads, ${name}: no page is wrong, no thread sleeps forever`, async () => {
      const seen = new Tally();
      for (let seed = 1; seed <= SEEDS; seed++) {
        const random = new Random(seed ^ 0xa115);
        const pick = <T>(list: readonly T[]): T => list[random.below(list.length)] as T;
        const [window, slow, mapped] = [
          pick([1, 2, 16, 'adaptive'] as Window[]),
          random.chance(0.5),
          random.chance(0.5),
        ];
        const hole = pick([() => false, (index: number) => index % 4 > 1]);
        const zeroRuns = random.chance(0.3);
        await simulate({
          ...{ seed, pageSize, features, inject: PASSING, wait: pick(WAITS) },
          ...{ pages: 2 + random.below(20), threads: 2 + random.below(4) },
          ...{ watched: pick(['own', 'another'] as const), preemption: pick([0.1, 0.3, 0.6]) },
          patienceMs: 20_000,
          source: (index) => new Uint8Array(pageSize).fill(hole(index) ? 0 : 1 + index),
          handler: (world) => {
            const fetched = (): void => {
              if (slow && world.chooser.below(3) === 0) slowly(world, 0.01 * 4 ** world.chooser.below(8));
            };
            return answers(world, { window, hole, mapped, zeroRuns, tally: seen, fetched });
          },
        });
      }
      const counts = seen.toJSON();
      const never = (['faults', 'writes', 'deferred', 'copied', 'hole', 'retried'] as const).filter(
        (count) => counts[count] === 0,
      );
      assert.deepEqual(never, []);
      assert.equal(counts.taken > 0, features.length > 0);
    }, 300_000);
  }
}

// ---- 5 to 8: removals --------------------------------------------------------------------------------------

test('5. a remove and writes queue up while the handler is held up: all are answered, what was removed is zero', () =>
  always((world) => {
    let [ready, held] = [false, false];
    const handler = answers(world, {
      fetched(first) {
        if (held || first !== 5) return;
        held = true;
        slowly(world, HELD_MS);
        assert.deepEqual(asleep(world), { fault: 3, event: 1 });
      },
    });
    const writer = function* (page: number): Program {
      yield when(() => held);
      yield write(world.page(page), 200 + page);
      assert.equal(yield read(world.page(page)), 200 + page);
      assert.equal(yield read(world.page(page) + 5n), byteOf(world, page));
    };
    const threads = [
      (function* (): Program {
        yield when(() => ready);
        yield* reads(world, 5);
      })(),
      (function* (): Program {
        yield* reads(world, 0, 1);
        ready = true;
        yield when(() => held);
        yield remove(world, 0, 2);
        assert.deepEqual([yield read(world.page(0)), yield read(world.page(1))], [0, 0]);
      })(),
      ...[2, 3].map(writer),
    ];
    return { handler, threads };
  }));

test('6. a fault of page 1 is read before page 0 is removed: both are right', () =>
  always((world) => {
    let asked = false;
    const handler = answers(world, {
      fetched(first) {
        if (asked || first !== 1) return;
        asked = true;
        slowly(world, HELD_MS);
        assert.equal(asleep(world).event, 1);
      },
    });
    const threads = [
      (function* (): Program {
        yield* reads(world, 0, 1);
      })(),
      (function* (): Program {
        yield when(() => asked);
        yield remove(world, 0);
        assert.equal(yield read(world.page(0) + 5n), 0);
        assert.equal(yield read(world.page(1) + 5n), byteOf(world, 1));
      })(),
    ];
    return { handler, threads };
  }));

for (const window of [1, 4]) {
  test(`7. a page that is removed between fetching and filling is zero, window ${window}`, () =>
    always((world) => {
      let fetched = false;
      const handler = answers(world, {
        window,
        fetched(first, count) {
          if (fetched || first > 1 || first + count <= 1) return;
          fetched = true;
          slowly(world, HELD_MS);
          assert.equal(asleep(world).event, 1);
        },
      });
      const threads = [
        reads(world, 1),
        (function* (): Program {
          yield when(() => fetched);
          yield remove(world, 1);
          assert.equal(yield read(world.page(1) + 5n), 0);
          assert.equal(yield read(world.page(2) + 5n), byteOf(world, 2));
        })(),
      ];
      return { handler, threads };
    }));
}

for (const features of [REMOVES, []]) {
  const posted = features.length > 0;
  const outcome = posted
    ? 'with EVENT_REMOVE: it waits for that read alone'
    : 'without EVENT_REMOVE: it returns at once';
  test(`8. madvise while the source is slow, ${outcome}`, () =>
    always(
      (world) => {
        let reading = 0;
        const handler = answers(world, {
          fetched() {
            reading++;
            slowly(world, HELD_MS);
          },
        });
        const threads = [
          ...[0, 1, 2, 3].map((page) => reads(world, page)),
          (function* (): Program {
            yield when(() => reading === 1);
            const begun = world.kernel.now;
            yield remove(world, 5);
            assert.ok(world.kernel.now - begun < (posted ? HELD_MS + SOON_MS : SOON_MS));
          })(),
        ];
        return { handler, threads };
      },
      { features },
    ));
}

test('8. madvise while a source that fails is to be tried again returns at once', () =>
  always((world) => {
    let tries = 0;
    const handler = answers(world, { fetched: (first) => first === 0 && ++tries < 4 });
    const threads = [
      reads(world, 0),
      (function* (): Program {
        yield when(() => tries > 0);
        while (tries < 4) {
          const begun = world.kernel.now;
          yield remove(world, 5);
          assert.ok(world.kernel.now - begun < SOON_MS);
          world.kernel.after(5, () => {});
          yield when(() => world.kernel.now >= begun + 5);
        }
      })(),
    ];
    return { handler, threads };
  }));

// ---- 9: the end of the process or of the userfaultfd -------------------------------------------------------

for (const wait of WAITS) {
  for (const [what, end] of Object.entries({ exits: exit, 'calls exec': exec })) {
    test(`9. a process that ${what} while its page is fetched, ${wait}: a clean end`, async () => {
      const ends: (string | undefined)[] = [];
      await always(
        (world) => {
          let fetching = false;
          const handler = answers(world, {
            fetched() {
              fetching = true;
              slowly(world, HELD_MS);
            },
            closed: (code) => void ends.push(code),
          });
          const threads = [
            reads(world, 0, 1, 2),
            reads(world, 3, 4),
            (function* (): Program {
              yield when(() => fetching);
              yield end();
            })(),
          ];
          return { handler, threads };
        },
        { wait, watched: 'another', patienceMs: 20_000 },
      );
      assert.deepEqual(ends, Array(RUNS).fill('ESRCH'));
    });
  }
}

test('9. closed while a page is fetched: an error, and no call on the new owner of the descriptor’s number', async () => {
  let closings = 0;
  await always(
    (world) => {
      const { files } = world.kernel;
      const { get } = files;
      let [other, calls]: [Userfaultfd | undefined, number] = [undefined, 0];
      const inner = answers(world, {
        fetched() {
          const { fd } = world.uffd;
          world.uffd.close();
          other = Userfaultfd.open({ kernel: world.kernel });
          assert.equal(other.fd, fd);
          files.get = (asked) => {
            calls++;
            return get.call(files, asked);
          };
        },
      });
      const handler: FaultHandler = {
        pagefault(fault, uffd) {
          assert.throws(() => inner.pagefault(fault, uffd), { code: 'EBADF' });
          assert.equal(calls, 0);
          files.get = get;
          other?.close();
          closings++;
        },
      };
      return { handler, threads: [reads(world, 0)] };
    },
    { mayClose: true },
  );
  assert.equal(closings, RUNS);
});

// ---- 10 and 13: deferred faults and failed reads -----------------------------------------------------------

test('10. a deferred fault is one, however many threads wait; a write makes it a write; then nothing is left', () =>
  always((world) => {
    const tally = new Tally();
    const offers: string[] = [];
    let [tries, through] = [0, 0];
    const inner = answers(world, { tally, fetched: (first) => first === 0 && ++tries < 4 });
    const handler: FaultHandler = {
      pagefault(fault, uffd) {
        offers.push(fault.access);
        return inner.pagefault(fault, uffd);
      },
    };
    const touching = function* (from: number, touch: Action): Program {
      yield when(() => tries >= from);
      yield touch;
      through++;
    };
    const threads = [
      ...[0, 1, 2].map(() => touching(0, read(world.page(0)))),
      touching(1, write(world.page(0), 7)),
      (function* (): Program {
        yield when(() => through === 4);
        const { length } = offers;
        const begun = world.kernel.now;
        world.kernel.after(1000, () => {});
        yield when(() => world.kernel.now > begun + 1000);
        // The loop may have read a fault, but not offered it yet, when its page was installed.
        assert.ok(offers.length <= length + 1, 'nothing comes back');
        const behind = offers.slice(offers.indexOf('write'), length);
        assert.ok(behind.length > 1 && behind.every((access) => access === 'write'), `${offers}`);
        assert.equal(tally.get('retried'), 3);
        // All threads have one deferred fault, which is offered again after 1, 2, 4 … 64 ms.
        assert.ok(offers.length < 30, `${offers.length} offers`);
      })(),
    ];
    return { handler, threads };
  }));

/** Least milliseconds between two tries. A deferred fault is offered again at least every 64 ms. */
const PAUSES = [100, 200, 400];
const LATE_MS = 70;

for (const cured of [true, false]) {
  const outcome = cured ? 'which can be read the fourth time is served' : 'is the end after four tries';
  test(`13. a page that cannot be read ${outcome}; threads that touch other pages are served meanwhile`, async () => {
    const runs: { tries: number[]; neighbours: number; through: boolean }[] = [];
    const running = always(
      (world) => {
        const run = { tries: [] as number[], neighbours: 0, through: false };
        runs.push(run);
        const handler = answers(world, {
          window: 4,
          fetched(first, count) {
            if (first > 1 || first + count <= 1) return false;
            run.tries.push(world.kernel.now);
            return !(cured && run.tries.length === 4);
          },
        });
        const neighbour = function* (first: number): Program {
          yield when(() => run.tries.length > 0);
          for (let page = first; page < world.pages; page += 2) {
            assert.equal(yield read(world.page(page) + 5n), byteOf(world, page));
            run.neighbours++;
            assert.equal(run.through, false);
          }
        };
        const first = (function* (): Program {
          yield* reads(world, 1);
          run.through = true;
        })();
        return { handler, threads: [first, neighbour(4), neighbour(5)] };
      },
      { pages: 12 },
    );
    if (cured) await running;
    else {
      await assert.rejects(running, (error) => {
        assert.ok(error instanceof SimulationError && error.invariant === 'threw', String(error));
        return (error.cause as UffdError).code === 'EFAULT';
      });
    }
    assert.ok(runs.length > 0);
    for (const { tries, neighbours, through } of runs) {
      assert.deepEqual({ neighbours, through }, { neighbours: 8, through: cured });
      const pauses = tries.slice(1).map((at, index) => at - (tries[index] as number));
      assert.equal(pauses.length, PAUSES.length);
      for (const [index, least] of PAUSES.entries()) {
        const pause = pauses[index] as number;
        assert.ok(pause >= least && pause < least + LATE_MS, `${pauses}`);
      }
    }
  });
}

test.run();
