// Where a loop's thread runs: what brings more faults a second is found and kept, at little cost; whoever faults is
// followed, one at a time, and only to where this thread may run.

import * as assert from 'uvu/assert';
import { type Arrangement, Arrangements } from '../src/arrangements.js';
import type { Processors, ThreadSeen, Watch } from '../src/kernel.js';
import { checkPlacement, Placer, usable } from '../src/placement.js';
import { suite } from './harness.js';

const test = suite('placement');

/** Has so many faults answered, each taking what `msOf` says; the time that each arrangement had, and faults. */
function run(
  faults: number,
  msOf: (arrangement: Arrangement, fault: number) => number,
  arrangements = new Arrangements(),
): { ms: number; faults: Record<Arrangement, number>; kept: Arrangement } {
  const told = { scheduler: 0, follow: 0, awake: 0 };
  let total = 0;
  for (let done = 0; done < faults; ) {
    const { arrangement, faults: some } = arrangements;
    let ms = 0;
    for (let fault = 0; fault < some; fault++) ms += msOf(arrangement, done + fault);
    arrangements.took(ms / some);
    told[arrangement] += some;
    total += ms;
    done += some;
  }
  return { ms: total, faults: told, kept: arrangements.arrangement };
}

/** What a fault takes in each arrangement. */
function taking(scheduler: number, follow: number, awake: number): (arrangement: Arrangement) => number {
  return (arrangement) => ({ scheduler, follow, awake })[arrangement];
}

test('the best arrangement is kept, and what is tried in vain costs less than a twentieth', () => {
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
  // While following is tried for the first time, another process is at work.
  const slow = (fault: number): number => (fault > 96 && fault < 192 ? 10 : 1);
  const { kept } = run(2_000, (arrangement, fault) => slow(fault) * taking(0.05, 0.01, 0.05)(arrangement));
  assert.is(kept, 'follow');
});

test('what the scheduler does by luck now and then is not relied on', () => {
  // It is as fast as the others for some time after another was tried, and then no more.
  let last: Arrangement = 'scheduler';
  let lucky = 0;
  const { ms } = run(200_000, (arrangement) => {
    if (arrangement === 'scheduler' && last !== 'scheduler') lucky = 300;
    last = arrangement;
    return arrangement === 'scheduler' ? (lucky-- > 0 ? 0.01 : 0.05) : taking(0.05, 0.05, 0.01)(arrangement);
  });
  assert.ok(ms < 200_000 * 0.0125, `${ms} ms`);
});

test('when the pattern changes, it looks again soon', () => {
  const arrangements = new Arrangements();
  const first = run(50_000, taking(0.05, 0.01, 0.05), arrangements);
  assert.is(first.kept, 'follow');
  // Several threads now: the scheduler spreads them.
  const second = run(8_000, taking(0.01, 0.03, 0.01), arrangements);
  assert.is(second.kept, 'scheduler');
  const third = run(8_000, taking(0.05, 0.05, 0.01), arrangements);
  assert.is(third.kept, 'awake');
});

test('what was found out is kept for faults like them, and found out anew where they are not', () => {
  const before = new Arrangements();
  const fast = taking(0.05, 0.01, 0.05);
  assert.is(run(5_000, fast, before).kept, 'follow');
  const alike = run(3_000, fast, new Arrangements(before));
  assert.equal(alike.faults.scheduler, 0);
  const other = run(20_000, taking(0.02, 0.03, 0.03), new Arrangements(before));
  assert.is(other.kept, 'scheduler');
  // Loops that are short find out together what one would have found out.
  let short = before;
  for (let loops = 0; loops < 40; loops++) {
    short = new Arrangements(short);
    run(512, taking(0.02, 0.03, 0.03), short);
  }
  assert.is(short.arrangement, 'scheduler');
  // One that was in the middle of a trial knows nothing yet.
  assert.is(new Arrangements(new Arrangements()).arrangement, 'scheduler');
});

/** Processors that are told who runs where; what was placed is written down. */
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
  /** Processors are kept awake; how often that was begun, and whether it may be. */
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

/** Faults one by one, each made by the thread that is told; 0: the kernel does not tell. */
function fault(placer: Placer, count: number, tidOf: (index: number) => number): void {
  for (let index = 0; index < count; index++) placer.answered(1, tidOf(index));
}

test('follow: goes where the thread is that faults, follows it, and is put back', () => {
  const board = new Board();
  board.seen = [{ tid: 7, processor: 2, faults: 10 }];
  const placer = new Placer(board, 0, 'follow');
  fault(placer, 300, () => 7);
  assert.equal(board.placed, ['2']);
  board.seen = [{ tid: 7, processor: 3, faults: 300 }];
  fault(placer, 300, () => 7);
  placer.leave();
  assert.equal(board.placed, ['2', '3', '0,1,2,3']);
});

test('follow: finds the thread by its faults where the kernel does not tell who faults', () => {
  const board = new Board();
  board.seen = [
    { tid: 7, processor: 1, faults: 9_000 },
    { tid: 8, processor: 2, faults: 10 },
  ];
  const placer = new Placer(board, 0, 'follow');
  fault(placer, 1, () => 0);
  // Most of all faults so far were the other's; since the last look they are this one's.
  board.seen = [
    { tid: 7, processor: 1, faults: 9_001 },
    { tid: 8, processor: 2, faults: 400 },
  ];
  fault(placer, 256, () => 0);
  assert.is(board.placed.at(-1), '2');
  // Another thread faults from then on.
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
  const placer = new Placer(board, 0, 'follow');
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
  const placer = new Placer(board, 0, 'follow');
  fault(placer, 600, () => 7);
  assert.equal(board.placed, ['0,1']);
  board.refuses = true;
  board.seen = [{ tid: 7, processor: 1, faults: 10 }];
  fault(placer, 600, () => 7);
  assert.equal(board.placed, ['0,1']);
  placer.leave();
});

test('a thread that is gone, and nobody who faults, is nobody to follow', () => {
  const board = new Board();
  const placer = new Placer(board, 0, 'follow');
  fault(placer, 600, () => 7);
  assert.equal(board.placed, []);
});

test('auto: follows where that pays, by the clock it is given', () => {
  const board = new Board();
  board.seen = [{ tid: 7, processor: 2, faults: 10 }];
  const placer = new Placer(board, 0, 'auto');
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

/** Faults that are so many milliseconds apart. */
function faultEvery(placer: Placer, board: Board, ms: number, count: number): void {
  for (let index = 0; index < count; index++) {
    board.time += ms;
    placer.answered(1, 7);
  }
}

test('awake: while faults come fast, and not in a pause nor behind the end', () => {
  const board = new Board();
  const placer = new Placer(board, 0, 'awake');
  faultEvery(placer, board, 2, 1_000);
  assert.is(board.wakes, 0, 'faults that are far apart are not worth it');
  faultEvery(placer, board, 0.05, 600);
  assert.ok(board.awake && placer.keepsAwake);
  placer.pause();
  assert.not(board.awake || placer.keepsAwake);
  // The pause itself is nothing that faults took.
  board.time += 60_000;
  faultEvery(placer, board, 0.05, 100);
  assert.ok(board.awake);
  faultEvery(placer, board, 2, 1_000);
  assert.not(board.awake);
  faultEvery(placer, board, 0.05, 600);
  placer.leave();
  assert.not(board.awake);
  assert.is(board.wakes, 3);
  assert.equal(board.placed, ['0,1,2,3']);
});

test('auto: keeps processors awake where that pays, and serves on where it may not', () => {
  for (const sleepy of [false, true]) {
    const board = new Board();
    board.sleepy = sleepy;
    const placer = new Placer(board, 0, 'auto');
    for (let index = 0; index < 5_000; index++) faultEvery(placer, board, board.awake ? 0.01 : 0.05, 1);
    assert.is(board.awake, !sleepy);
    placer.leave();
    assert.not(board.awake);
  }
});

test('auto: leaves everything to the scheduler while many fault at once', () => {
  const board = new Board();
  board.seen = [{ tid: 7, processor: 2, faults: 10 }];
  const placer = new Placer(board, 0, 'auto');
  for (let round = 0; round < 30_000; round++) {
    board.time += 0.5;
    placer.answered(10, 0);
  }
  assert.equal([board.wakes, board.placed.filter((cpus) => cpus !== '0,1,2,3')], [0, []]);
  // One after the other again; what was found out before this test may keep it from looking for a while.
  for (let index = 0; index < 300_000; index++) faultEvery(placer, board, board.awake ? 0.01 : 0.05, 1);
  assert.ok(board.awake);
  board.time += 0.5;
  for (let round = 0; round < 100; round++) placer.answered(10, 0);
  assert.not(board.awake, 'that was for those that came one by one');
  placer.leave();
});

test('on one processor there is nothing to choose', () => {
  const board = new Board();
  board.own = [1];
  board.seen = [{ tid: 7, processor: 1, faults: 10 }];
  const placer = new Placer(board, 0, 'auto');
  fault(placer, 5_000, () => 7);
  assert.equal(board.placed, []);
});

test('processors by their numbers: those that may be used, or an error', () => {
  const board = new Board();
  new Placer(board, 0, [1, 9]).leave();
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
