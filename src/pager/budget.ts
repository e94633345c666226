// A limit of memory that several pagers share. Its state is shared memory, which the threads of all of them look at.
//
// Rules:
//  - What pagers hold, together, never exceeds the budget: a pager takes memory from what is free before it uses it, and
//    gives it back after it has freed it.
//  - A pager takes what is free as long as there is any. When nothing is left, each may have its fair share, which is the
//    budget divided by the number of pagers: a pager that holds more gives memory to one that needs it and holds less.
//  - Beyond that, a pager without a fault for a second gives memory to one that needs some. If it is touched again, it
//    needs memory itself, and its fair share comes back to it.
//  - No pager gives away what it needs to continue: 16 blocks besides those that are pinned.

import { checkInteger, outOfRange } from '../errors/arguments.js';

/** Fewest blocks of a pager: a thread may need several at a time, and there may be many threads. */
export const BLOCKS_LEAST = 16;
/** Memory is counted in these many bytes. */
const UNIT = 4096;
const BUDGET_MOST = UNIT * (2 ** 31 - 1);
/** Most pagers of a budget. */
const MEMBERS_MOST = 256;
/** Milliseconds. */
interface Timing {
  /** Between two looks at the others: while there are any, and while there are none. */
  readonly look: number;
  readonly lookAlone: number;
  /** A pager that was not used for so long gives memory to others. */
  readonly quiet: number;
}
const TIMING: Timing = { look: 100, lookAlone: 250, quiet: 1000 };
/** A pager is refused if it gets no memory of the budget for this many milliseconds. */
const JOIN_MOST_MS = 10_000;
/** Memory is taken and given in steps of this part of the budget, and at most as many blocks. */
const STEP_PART = 16;
const STEP_BLOCKS_MOST = 512;
/** A pager takes more when fewer blocks than this are left to it. */
const HEADROOM_BLOCKS = 8;

/** The words of the state. Then come those of each pager. */
enum Word {
  FREE,
  MEMBERS,
  PINNED,
  FIRST_MEMBER,
}
enum Member {
  /** Whether the place is taken. */
  USED,
  HELD,
  /** What it cannot go on without, if nothing is pinned. */
  LEAST,
  /** Whether it is short of memory. */
  NEEDS,
  WORDS,
}

/** A limit for several pagers: the `resident` of their options. It may be posted to other threads of the process. */
export interface PagerBudget {
  readonly kind: 'budget';
  /** Bytes that the pagers may have in memory together. */
  readonly bytes: number;
  /** What the pagers' threads share. */
  readonly state: SharedArrayBuffer;
}

/** @throws RangeError */
export function makeBudget(bytes: number): PagerBudget {
  checkInteger(bytes, 'bytes', BLOCKS_LEAST * UNIT, BUDGET_MOST);
  const state = new SharedArrayBuffer(4 * (Word.FIRST_MEMBER + MEMBERS_MOST * Member.WORDS));
  new Int32Array(state)[Word.FREE] = Math.floor(bytes / UNIT);
  return Object.freeze({ kind: 'budget', bytes, state });
}

/** Takes up to `most` of a word, in whole `step`s. Returns how much. */
function take(words: Int32Array, word: number, most: number, step: number): number {
  for (;;) {
    const there = Atomics.load(words, word);
    const taken = Math.floor(Math.min(there, most) / step) * step;
    if (taken <= 0) return 0;
    if (Atomics.compareExchange(words, word, there, there - taken) === there) return taken;
  }
}

/** The bytes of a budget that may be pinned: of a pager that has pinned `own` bytes already. */
export class BudgetPins {
  readonly #words: Int32Array;
  readonly #bytes: number;

  constructor({ state, bytes }: PagerBudget) {
    this.#words = new Int32Array(state);
    this.#bytes = bytes;
  }

  /** Half of the fair share, and of all pagers together at most half of the budget. */
  room(own: number): number {
    const members = Math.max(1, Atomics.load(this.#words, Word.MEMBERS));
    const all = Atomics.load(this.#words, Word.PINNED) * UNIT;
    return Math.max(0, Math.min(this.#bytes / 2 / members - own, this.#bytes / 2 - all));
  }

  /** Notes that `bytes` more (negative: less) are pinned. */
  add(bytes: number): void {
    Atomics.add(this.#words, Word.PINNED, bytes / UNIT);
  }
}

/** What a pager's memory looks like, in blocks. */
export interface Usage {
  readonly reserved: number;
  readonly pinned: number;
  /** Counts since the start. */
  readonly faults: number;
  readonly fetched: number;
  readonly evicted: number;
  /** Blocks that wait for room. */
  readonly waiting: number;
}

/** One pager's part of a budget. Used by its thread alone. */
export class BudgetShare {
  readonly #words: Int32Array;
  readonly #now: () => number;
  readonly #timing: Timing;
  /** Units of the budget, and of a block. */
  readonly #total: number;
  readonly #block: number;
  /** Its first word. */
  readonly #at: number;
  /** Blocks that may have memory: at most what it holds. */
  #limit = 0;
  #lookDue: number;
  /** Faults and blocks read, and blocks evicted, as of the last look. */
  #used = 0;
  #evicted = 0;
  /** When the pager was last seen in use. */
  #usedMs: number;
  #left = false;

  private constructor({ state, bytes }: PagerBudget, blockSize: number, now: () => number, timing: Timing) {
    this.#words = new Int32Array(state);
    this.#timing = timing;
    this.#now = now;
    this.#total = Math.floor(bytes / UNIT);
    this.#block = blockSize / UNIT;
    this.#usedMs = this.#lookDue = now();
    this.#at = this.#enter();
    Atomics.add(this.#words, Word.MEMBERS, 1);
    Atomics.store(this.#words, this.#at + Member.LEAST, BLOCKS_LEAST * this.#block);
    Atomics.store(this.#words, this.#at + Member.NEEDS, 1);
  }

  /**
   * Takes part in a budget, and waits until the others have freed what a pager needs at least.
   *
   * @param now milliseconds
   * @param wait returns after some milliseconds
   * @throws RangeError if the budget is too small for one more; Error if the others free nothing; what `wait` throws
   */
  static async join(
    budget: PagerBudget,
    blockSize: number,
    now: () => number,
    wait: (ms: number) => Promise<void>,
    timing = TIMING,
  ): Promise<BudgetShare> {
    const share = new BudgetShare(budget, blockSize, now, timing);
    const begun = now();
    try {
      const least = share.#leastOfAll();
      if (least > share.#total)
        throw outOfRange(
          'resident',
          `a budget of ${least * UNIT} bytes or more: each of its ${share.#members} pagers needs ${BLOCKS_LEAST} blocks`,
          budget.bytes,
        );
      while (!share.#begin()) {
        if (now() - begun > JOIN_MOST_MS)
          throw new Error(
            `the budget has no memory for one more pager: the others could not free ${BLOCKS_LEAST} blocks in ` +
              `${JOIN_MOST_MS / 1000} s, because what they hold is pinned or cannot be written`,
          );
        await wait(timing.look / 2);
      }
    } catch (error) {
      share.leave();
      throw error;
    }
    return share;
  }

  /** Takes what it needs at least. False: it is not there yet. */
  #begin(): boolean {
    this.#take(BLOCKS_LEAST - this.#limit);
    return this.#limit >= BLOCKS_LEAST;
  }

  #enter(): number {
    for (let at = Word.FIRST_MEMBER as number; at < this.#words.length; at += Member.WORDS) {
      if (Atomics.compareExchange(this.#words, at + Member.USED, 0, 1) === 0) return at;
    }
    throw outOfRange('resident', `a budget of at most ${MEMBERS_MOST} pagers`, MEMBERS_MOST + 1);
  }

  get #members(): number {
    return Atomics.load(this.#words, Word.MEMBERS);
  }

  get #held(): number {
    return Atomics.load(this.#words, this.#at + Member.HELD);
  }

  /** Bytes that this pager holds of the budget. */
  get bytes(): number {
    return this.#held * UNIT;
  }

  /** Milliseconds, by its clock, when `look` is due. */
  get due(): number {
    return this.#lookDue;
  }

  /** Takes up to `blocks` of what is free. */
  #take(blocks: number): void {
    const taken = take(this.#words, Word.FREE, blocks * this.#block, this.#block);
    Atomics.add(this.#words, this.#at + Member.HELD, taken);
    this.#limit += taken / this.#block;
  }

  #give(units: number): void {
    Atomics.sub(this.#words, this.#at + Member.HELD, units);
    Atomics.add(this.#words, Word.FREE, units);
  }

  /**
   * Blocks that may have memory now. To call after each change: it takes more before memory runs short, and returns what
   * has become free of what others need.
   */
  attend(usage: Usage): number {
    const { reserved } = usage;
    const surplus = this.#held - Math.max(reserved, this.#limit) * this.#block;
    if (surplus > 0) this.#give(surplus);
    const left = this.#limit - reserved;
    if (left >= 0 && left < HEADROOM_BLOCKS && this.#mayGrow(usage)) this.#take(this.#step);
    return this.#limit;
  }

  /** Looks whether others need memory. Returns how many blocks may have memory from now on. */
  look(usage: Usage): number {
    const now = this.#now();
    if (usage.faults + usage.fetched !== this.#used) this.#usedMs = now;
    const isShort = this.#limit - usage.reserved < HEADROOM_BLOCKS;
    const needs = isShort && (usage.evicted !== this.#evicted || usage.waiting > 0);
    this.#used = usage.faults + usage.fetched;
    this.#evicted = usage.evicted;
    Atomics.store(this.#words, this.#at + Member.NEEDS, needs ? 1 : 0);
    const least = BLOCKS_LEAST + usage.pinned;
    // Not before what it gave away the last time is free.
    if (usage.reserved <= this.#limit)
      this.#limit -= Math.min(this.#owed(), Math.max(0, this.#limit - least));
    this.#lookDue = now + (this.#members > 1 ? this.#timing.look : this.#timing.lookAlone);
    return this.attend(usage);
  }

  /** Ends this pager's part: all that it holds is free. Idempotent. */
  leave(): void {
    if (this.#left) return;
    this.#left = true;
    this.#give(this.#held);
    for (const word of [Member.LEAST, Member.NEEDS, Member.USED])
      Atomics.store(this.#words, this.#at + word, 0);
    Atomics.sub(this.#words, Word.MEMBERS, 1);
  }

  /** Blocks that are taken or given at a time. */
  get #step(): number {
    const part = Math.ceil(this.#total / STEP_PART / this.#block);
    return Math.min(Math.max(part, 1), STEP_BLOCKS_MOST);
  }

  get #fair(): number {
    return Math.floor(this.#total / Math.max(1, this.#members));
  }

  /** Whether it may take what is free. Others that need it and hold less than their fair share come first. */
  #mayGrow({ faults, fetched, waiting }: Usage): boolean {
    if (Atomics.load(this.#words, Word.FREE) < this.#block) return false;
    if (waiting === 0 && faults + fetched === this.#used && this.#isQuiet()) return false;
    return this.#held + this.#block <= this.#fair || !this.#others().entitled;
  }

  #isQuiet(): boolean {
    return this.#now() - this.#usedMs >= this.#timing.quiet;
  }

  /** Blocks to give to others. */
  #owed(): number {
    const { needing, entitled } = this.#others();
    if (needing && this.#isQuiet()) return this.#step;
    if (!entitled) return 0;
    return Math.max(0, Math.min(this.#step, Math.floor((this.#held - this.#fair) / this.#block)));
  }

  /** Whether another pager needs memory, and whether one of them holds less than its fair share. */
  #others(): { needing: boolean; entitled: boolean } {
    const [words, fair] = [this.#words, this.#fair];
    let [needing, entitled] = [false, false];
    for (let at = Word.FIRST_MEMBER as number; at < words.length; at += Member.WORDS) {
      if (at === this.#at || Atomics.load(words, at + Member.NEEDS) === 0) continue;
      needing = true;
      if (Atomics.load(words, at + Member.HELD) < fair) entitled = true;
    }
    return { needing, entitled };
  }

  /** Units that all pagers need at least. */
  #leastOfAll(): number {
    let all = 0;
    for (let at = Word.FIRST_MEMBER as number; at < this.#words.length; at += Member.WORDS)
      all += Atomics.load(this.#words, at + Member.LEAST);
    return all;
  }
}
