// The affinity tuner finds and keeps, at little cost, the placement that serves the most faults per second. It follows
// one faulting thread at a time, and only to CPUs on which the loop's thread may run.

import * as assert from 'uvu/assert';
import type { Processors, ThreadSeen, Watch } from '../../src/kernel/port.js';
import { Affinity, checkPlacement, usable } from '../../src/scheduling/affinity.js';
import { AffinityTuner, type PlacementStrategy } from '../../src/scheduling/affinity-tuner.js';
import { suite } from '../support/harness.js';

const test = suite('scheduling/affinity');

/** Answers `faults` faults; each takes `msOf` milliseconds. Returns the total time, and the faults of each strategy. */
function run(
  faults: number,
  msOf: (arrangement: PlacementStrategy, fault: number) => number,
  arrangements = new AffinityTuner(),
): { ms: number; faults: Record<PlacementStrategy, number>; kept: PlacementStrategy } {
  const counted = { scheduler: 0, follow: 0, awake: 0 };
  let total = 0;
  for (let done = 0; done < faults; ) {
    const { strategy: arrangement, faults: some } = arrangements;
    let ms = 0;
    for (let fault = 0; fault < some; fault++) ms += msOf(arrangement, done + fault);
    arrangements.measured(ms / some);
    counted[arrangement] += some;
    total += ms;
    done += some;
  }
  return { ms: total, faults: counted, kept: arrangements.strategy };
}

/** The milliseconds that a fault takes with each strategy. */
function taking(
  scheduler: number,
  follow: number,
  awake: number,
): (arrangement: PlacementStrategy) => number {
  return (arrangement) => ({ scheduler, follow, awake })[arrangement];
}

test('the best arrangement is kept, and trying worse ones costs less than a twentieth', () => {
  for (const [scheduler, follow, awake, best] of [
    [0.05, 0.01, 0.05, 'follow'],
    [0.01, 0.05, 0.05, 'scheduler'],
    [0.01, 0.0098, 0.0098, 'scheduler'],
    [0.05, 0.05, 0.01, 'awake'],
    [0.05, 0.012, 0.01, 'follow'],
    [0.05, 0.02, 0.01, 'awake'],
    [0.01, 0.01, 0.009, 'scheduler'],
  ] as const) {
    const { ms, faults, kept } = run(500_000, taking(scheduler, follow, awake));
    assert.is(kept, best, `${scheduler} ${follow} ${awake}`);
    assert.ok(ms < 1.05 * 500_000 * scheduler, `${scheduler} ${follow}: ${ms} ms, ${JSON.stringify(faults)}`);
    for (const [one, count] of Object.entries(faults)) assert.ok(one === best || count < 500_000 / 50);
  }
});

test('a busy stretch in the middle of a trial changes nothing', () => {
  // During the first trial of `follow`, another process is busy.
  const slow = (fault: number): number => (fault > 96 && fault < 192 ? 10 : 1);
  const { kept } = run(2_000, (arrangement, fault) => slow(fault) * taking(0.05, 0.01, 0.05)(arrangement));
  assert.is(kept, 'follow');
});

test('what the scheduler does by luck now and then is not relied on', () => {
  // For some time after another strategy was tried, the scheduler is as fast as the best one; then it is slow again.
  let last: PlacementStrategy = 'scheduler';
  let lucky = 0;
  const { ms } = run(200_000, (arrangement) => {
    if (arrangement === 'scheduler' && last !== 'scheduler') lucky = 300;
    last = arrangement;
    return arrangement === 'scheduler' ? (lucky-- > 0 ? 0.01 : 0.05) : taking(0.05, 0.05, 0.01)(arrangement);
  });
  assert.ok(ms < 200_000 * 0.0125, `${ms} ms`);
});

test('when the pattern changes, it looks again soon', () => {
  const arrangements = new AffinityTuner();
  const first = run(50_000, taking(0.05, 0.01, 0.05), arrangements);
  assert.is(first.kept, 'follow');
  // As if several threads faulted now, which the scheduler spreads.
  const second = run(8_000, taking(0.01, 0.03, 0.01), arrangements);
  assert.is(second.kept, 'scheduler');
  const third = run(8_000, taking(0.05, 0.05, 0.01), arrangements);
  assert.is(third.kept, 'awake');
});

test('what was found out is kept for faults like them, and found out anew where they are not', () => {
  const before = new AffinityTuner();
  const fast = taking(0.05, 0.01, 0.05);
  assert.is(run(5_000, fast, before).kept, 'follow');
  const alike = run(3_000, fast, new AffinityTuner(before));
  assert.equal(alike.faults.scheduler, 0);
  const other = run(20_000, taking(0.02, 0.03, 0.03), new AffinityTuner(before));
  assert.is(other.kept, 'scheduler');
  // Many short loops together find out as much as one long loop.
  let short = before;
  for (let loops = 0; loops < 40; loops++) {
    short = new AffinityTuner(short);
    run(512, taking(0.02, 0.03, 0.03), short);
  }
  assert.is(short.strategy, 'scheduler');
  // A tuner that was in the middle of a trial passes nothing on.
  assert.is(new AffinityTuner(new AffinityTuner()).strategy, 'scheduler');
});

/** Simulated processors: the test sets on which CPU each thread runs, and placements are recorded. */
class Board implements Processors {
  seen: ThreadSeen[] = [];
  readonly placed: string[] = [];
  refuses = false;
  time = 0;
  own = [0, 1, 2, 3];
  allowed = (): number[] => this.own;
  place(cpus: readonly number[]): number {
    if (this.refuses && cpus.length === 1) return -22;
    if (this.placed.at(-1) !== cpus.join()) this.placed.push(cpus.join());
    return 0;
  }
  thread = (_: number, tid: number): ThreadSeen | undefined => this.seen.find((one) => one.tid === tid);
  threads = (): readonly ThreadSeen[] => this.seen;
  now = (): number => this.time;
  /** Whether processors are kept awake; how often that began; whether the system forbids it. */
  awake = false;
  wakes = 0;
  sleepy = false;
  yield(): void {}

  keepAwake(): Watch | undefined {
    if (this.sleepy) return undefined;
    assert.not(this.awake);
    this.awake = true;
    this.wakes++;
    return {
      close: () => {
        this.awake = false;
      },
    };
  }
  after = (): Watch => ({ close() {} });
}

/** Answers faults one by one, each of the given thread; 0: the kernel does not report the thread. */
function fault(placer: Affinity, count: number, tidOf: (index: number) => number): void {
  for (let index = 0; index < count; index++) placer.answered(1, tidOf(index));
}

test('follow: goes where the thread is that faults, follows it, and is put back', () => {
  const board = new Board();
  board.seen = [{ tid: 7, processor: 2, faults: 10 }];
  const placer = new Affinity(board, 0, 'follow');
  fault(placer, 300, () => 7);
  assert.equal(board.placed, ['2']);
  board.seen = [{ tid: 7, processor: 3, faults: 300 }];
  fault(placer, 300, () => 7);
  placer.restore();
  assert.equal(board.placed, ['2', '3', '0,1,2,3']);
});

test('follow: finds the faulting thread by its fault count if the kernel does not report thread ids', () => {
  const board = new Board();
  board.seen = [
    { tid: 7, processor: 1, faults: 9_000 },
    { tid: 8, processor: 2, faults: 10 },
  ];
  const placer = new Affinity(board, 0, 'follow');
  fault(placer, 1, () => 0);
  // Thread 7 has more faults in total, but since the last look only thread 8 had many.
  board.seen = [
    { tid: 7, processor: 1, faults: 9_001 },
    { tid: 8, processor: 2, faults: 400 },
  ];
  fault(placer, 256, () => 0);
  assert.is(board.placed.at(-1), '2');
  // From now on thread 7 faults.
  board.seen = [
    { tid: 7, processor: 1, faults: 9_300 },
    { tid: 8, processor: 2, faults: 400 },
  ];
  fault(placer, 256, () => 0);
  assert.is(board.placed.at(-1), '1');
});

test('follow: leaves several that fault at once on several processors alone, and follows those on one', () => {
  const board = new Board();
  board.seen = [
    { tid: 7, processor: 1, faults: 100 },
    { tid: 8, processor: 2, faults: 100 },
  ];
  const placer = new Affinity(board, 0, 'follow');
  fault(placer, 300, (index) => 7 + (index % 2));
  assert.is(board.placed.at(-1), '0,1,2,3');
  board.seen = [
    { tid: 7, processor: 2, faults: 300 },
    { tid: 8, processor: 2, faults: 300 },
  ];
  fault(placer, 300, (index) => 7 + (index % 2));
  assert.is(board.placed.at(-1), '2');
});

test('follow: goes nowhere that it may not go, and goes on where that is refused', () => {
  const board = new Board();
  board.own = [0, 1];
  board.seen = [{ tid: 7, processor: 3, faults: 10 }];
  const placer = new Affinity(board, 0, 'follow');
  fault(placer, 600, () => 7);
  assert.equal(board.placed, ['0,1']);
  board.refuses = true;
  board.seen = [{ tid: 7, processor: 1, faults: 10 }];
  fault(placer, 600, () => 7);
  assert.equal(board.placed, ['0,1']);
  placer.restore();
});

test('follow: follows no thread if the last one has exited or no thread faults', () => {
  const board = new Board();
  const placer = new Affinity(board, 0, 'follow');
  fault(placer, 600, () => 7);
  assert.equal(board.placed, []);
});

test('auto: follows where that pays, by the clock it is given', () => {
  const board = new Board();
  board.seen = [{ tid: 7, processor: 2, faults: 10 }];
  const placer = new Affinity(board, 0, 'auto');
  for (let index = 0; index < 5_000; index++) {
    board.time += board.placed.at(-1) === '2' ? 0.01 : 0.05;
    placer.answered(1, 7);
  }
  assert.is(board.placed.at(-1), '2');
  for (let index = 0; index < 10_000; index++) {
    board.time += board.placed.at(-1) === '2' ? 0.05 : 0.01;
    placer.answered(1, 7);
  }
  assert.is(board.placed.at(-1), '0,1,2,3');
});

/** Answers faults that come `ms` milliseconds apart. */
function faultEvery(placer: Affinity, board: Board, ms: number, count: number): void {
  for (let index = 0; index < count; index++) {
    board.time += ms;
    placer.answered(1, 7);
  }
}

test('awake: while faults come fast, and not in a pause nor behind the end', () => {
  const board = new Board();
  const placer = new Affinity(board, 0, 'awake');
  faultEvery(placer, board, 2, 1_000);
  assert.is(board.wakes, 0, 'faults that are far apart are not worth it');
  faultEvery(placer, board, 0.05, 600);
  assert.ok(board.awake && placer.keepsAwake);
  placer.pause();
  assert.not(board.awake || placer.keepsAwake);
  // The time of the pause does not count as time of faults.
  board.time += 60_000;
  faultEvery(placer, board, 0.05, 100);
  assert.ok(board.awake);
  faultEvery(placer, board, 2, 1_000);
  assert.not(board.awake);
  faultEvery(placer, board, 0.05, 600);
  placer.restore();
  assert.not(board.awake);
  assert.is(board.wakes, 3);
  assert.equal(board.placed, ['0,1,2,3']);
});

test('auto: keeps processors awake where that pays, and serves on where it may not', () => {
  for (const sleepy of [false, true]) {
    const board = new Board();
    board.sleepy = sleepy;
    const placer = new Affinity(board, 0, 'auto');
    for (let index = 0; index < 5_000; index++) faultEvery(placer, board, board.awake ? 0.01 : 0.05, 1);
    assert.is(board.awake, !sleepy);
    placer.restore();
    assert.not(board.awake);
  }
});

test('auto: leaves everything to the scheduler while many fault at once', () => {
  const board = new Board();
  board.seen = [{ tid: 7, processor: 2, faults: 10 }];
  const placer = new Affinity(board, 0, 'auto');
  for (let round = 0; round < 30_000; round++) {
    board.time += 0.5;
    placer.answered(10, 0);
  }
  assert.equal([board.wakes, board.placed.filter((cpus) => cpus !== '0,1,2,3')], [0, []]);
  // Faults come one by one again. Results of earlier trials may keep the tuner from trying `awake` for a while.
  for (let index = 0; index < 300_000; index++) faultEvery(placer, board, board.awake ? 0.01 : 0.05, 1);
  assert.ok(board.awake);
  board.time += 0.5;
  for (let round = 0; round < 100; round++) placer.answered(10, 0);
  assert.not(board.awake, 'that was for those that came one by one');
  placer.restore();
});

test('on one processor there is nothing to choose', () => {
  const board = new Board();
  board.own = [1];
  board.seen = [{ tid: 7, processor: 1, faults: 10 }];
  const placer = new Affinity(board, 0, 'auto');
  fault(placer, 5_000, () => 7);
  assert.equal(board.placed, []);
});

test('processors by their numbers: those that may be used, or an error', () => {
  const board = new Board();
  new Affinity(board, 0, [1, 9]).restore();
  assert.equal(board.placed, ['1', '0,1,2,3']);
  assert.throws(() => usable([7, 9], [0, 1]), /placement must be some of the processors 0, 1/);
  const wrong: [unknown, RegExp][] = [
    ['near', /placement must be one of auto, none, follow, awake, or an array; it is 'near'/],
    [[], /at least one processor/],
    [[-1], /numbers of processors; it holds -1/],
    [[0.5], /it holds 0\.5/],
    [3, /placement must be one of auto, none, follow, awake, or an array; it is number/],
  ];
  for (const [placement, message] of wrong) assert.throws(() => checkPlacement(placement), message);
});

test.run();
