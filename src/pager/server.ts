// Serves the blocks of a pager: performs what the engine decides, on memory, a source and a target. It runs in the
// pager's thread (pager-thread.ts), and on the simulated kernel in tests.

import { UffdError } from '../errors/errors.js';
import type { Pagefault } from '../uffd/handler.js';
import type { FaultHandler, Userfaultfd } from '../uffd/userfaultfd.js';
import { BLOCKS_LEAST, type BudgetShare, type Usage } from './budget.js';
import { COUNTS } from './counts.js';
import { type Effects, Engine, PagerOutcome } from './engine.js';
import type { OpenSource, SourceError, Target } from './source.js';

const MIB = 2 ** 20;
/** Bytes of a request, if blocks are smaller. */
const REQUEST_BYTES = MIB;
/** Bytes that a source that answers at once reads before faults are looked at again. */
const SLICE_BYTES = 256 * 1024;
/** A call that found no memory is made again after this many milliseconds. */
const POSTPONED_MS = 10;
/** Milliseconds after which a source that still fails is reported again. */
const SAY_AGAIN_MS = 60_000;
/** Blocks of one range that are asked for at once. */
const ASKED_MOST = 64;

/** Where the counts of `Usage` are. */
const USAGE = (['reserved', 'pinned', 'faults', 'fetched', 'evicted', 'waiting'] as const).map((name) =>
  COUNTS.indexOf(name),
);

/** Most bytes of one request, for blocks of a size. */
export function requestBytes(blockSize: number): number {
  return Math.max(REQUEST_BYTES, blockSize);
}

/** The memory of a pager: offsets and lengths are in bytes, in whole pages. */
export interface BlockMemory {
  readonly address: bigint;
  readonly pageSize: number;
  readonly uffd: Userfaultfd;
  /** Makes memory for a range: what the source writes to; −errno: there is no memory. */
  room(offset: number, length: number): Uint8Array | number;
  /** To call when the bytes of a part of such a range are complete. @throws UffdError if there is no memory for them */
  filled(offset: number, length: number): void;
  /** The bytes of a range that is in memory, to write them to the target. */
  bytes(offset: number, length: number): Uint8Array;
  /**
   * Maps a range whose bytes are in memory, and wakes the threads that wait. False: not all of it, because the mapping is being
   * changed.
   *
   * @throws UffdError, as all of these
   */
  map(offset: number, length: number, writeProtect: boolean): boolean;
  protect(offset: number, length: number, on: boolean): boolean;
  /** Drops page-table entries, and poison; the bytes stay. */
  drop(offset: number, length: number): void;
  /** Frees the memory of a range. */
  punch(offset: number, length: number): void;
  /** Wakes threads that wait for a range, so that they fault again. */
  wake(offset: number, length: number): void;
  /** A thread that touches the range gets a signal. */
  poison(offset: number, length: number): boolean;
}

/** What a server is made of. */
export interface ServerParts {
  readonly memory: BlockMemory;
  readonly source: OpenSource;
  readonly target: Target | undefined;
  readonly blockSize: number;
  /** Bytes. */
  readonly resident: number;
  /** Its part of a limit that it shares with others; undefined: it shares none. */
  readonly share?: BudgetShare | undefined;
  readonly readAhead: number;
  /** Milliseconds until data that cannot be read is poisoned; infinite: never. */
  readonly deadlineMs: number;
  /** Whether it is poisoned when it cannot be read for the first time. */
  readonly poisonsAtOnce: boolean;
  /** Milliseconds between two writes of all changes; 0: never. */
  readonly flushMs: number;
  /** Of the jitter between attempts. */
  readonly seed: number;
  /** Monotonic milliseconds. */
  now(): number;
  /** Prints a sentence for the user. False: it could not be printed now, and is to be printed again. */
  say(text: string): boolean;
  /** A block cannot be read. */
  failing?(offset: number, length: number, message: string): void;
  /** An error outside of any call: the pager cannot go on. */
  broken(error: unknown): void;
  /** Called after each change. */
  settled?(): void;
}

/** A read of a source that answers at once. */
interface Job {
  readonly id: number;
  readonly block: number;
  readonly count: number;
  readonly urgent: boolean;
  done: number;
}

/** A range that the program waits for. */
interface Wanted {
  readonly first: number;
  readonly end: number;
  /** The first block that is not there yet, and the first that was not asked for yet. */
  next: number;
  asked: number;
  readonly pin: boolean;
  readonly write: boolean;
  answer(error?: unknown): void;
}

export class PagerServer implements Effects {
  readonly handler: FaultHandler;
  readonly #parts: ServerParts;
  readonly #memory: BlockMemory;
  readonly #source: OpenSource;
  readonly #blockSize: number;
  readonly #engine: Engine;
  readonly #jobs: Job[] = [];
  readonly #reads = new Map<number, AbortController>();
  readonly #wanted = new Set<Wanted>();
  /** Whether a read was given up, or a block poisoned: the program may wait for it. Any input may find a deadline over. */
  #hasGivenUp = false;
  /** Who waits for the flush that is under way; undefined: none is. */
  #flushing: ((error?: unknown) => void)[] | undefined;
  /** Who waits for the next one: a flush writes what was changed before it began, so that it ends. */
  #flushes: ((error?: unknown) => void)[] = [];
  /** Blocks to write, collected until the actions of an input are done, and until the target can take them. */
  #writes: number[] = [];
  /** Writes of a target that answers later, and their bytes. */
  readonly #writing = new Set<AbortController>();
  #writingBytes = 0;
  /** Blocks whose last write has failed. */
  readonly #unwritten = new Set<number>();
  /** Calls that found no memory, by block: they are made again, unless a later call takes their place. */
  readonly #postponed = new Map<number, () => void>();
  #postponedDue = Number.POSITIVE_INFINITY;
  /** Blocks that could not be write-protected: they must not be written now. */
  readonly #unprotected = new Set<number>();
  #flushDue = Number.POSITIVE_INFINITY;
  /** Blocks that may have memory, now and ever. */
  #limit: number;
  readonly #most: number;
  /** What the source's failure is, while it fails. */
  #failing: { message: string; saidMs: number } | undefined;
  #targetError: Error | undefined;
  /** The message of the failed write that was printed last; undefined: writes succeed. */
  #toldTarget: string | undefined;
  #ended = false;

  constructor(parts: ServerParts) {
    const { memory, source, blockSize, flushMs } = parts;
    this.#parts = parts;
    this.#memory = memory;
    this.#source = source;
    this.#blockSize = blockSize;
    const blocks = Math.ceil(source.size / blockSize);
    // No room in the block table for memory that will never be used.
    this.#limit = Math.min(Math.floor(parts.resident / blockSize), Math.max(blocks, BLOCKS_LEAST));
    this.#engine = new Engine(
      {
        blocks,
        resident: this.#limit,
        writable: parts.target !== undefined,
        writesLate: parts.flushMs === 0,
        requestBlocks: requestBytes(blockSize) / blockSize,
        aheadBlocks: Math.min(256, Math.max(1, parts.readAhead / blockSize)),
        parallel: source.parallel,
        deadlineMs: parts.deadlineMs,
        poisonsAtOnce: parts.poisonsAtOnce,
        mayStall: source.immediate !== true,
        seed: parts.seed,
      },
      this,
      parts.now,
    );
    if (flushMs > 0 && parts.target) this.#flushDue = parts.now() + flushMs;
    this.#most = this.#limit;
    this.#takeShare();
    this.handler = {
      pagefault: ({ page, access, kind }: Pagefault) => {
        const block = Math.floor(Number(page - memory.address) / blockSize);
        const isHeld = this.#engine.fault(block, access === 'write' || kind === 'write-protect');
        this.#settle();
        return isHeld;
      },
    };
  }

  // ---- time ----------------------------------------------------------------------------------------------

  /** Milliseconds until `tick` is due; −1: it is not. */
  get untilDueMs(): number {
    const share = this.#parts.share?.due ?? Number.POSITIVE_INFINITY;
    const due = Math.min(this.#engine.due, this.#postponedDue, this.#flushDue, share);
    return due === Number.POSITIVE_INFINITY ? -1 : Math.max(0, Math.ceil(due - this.#parts.now()));
  }

  /** Does what is due. */
  tick(): void {
    if (this.#ended) return;
    const now = this.#parts.now();
    if (now >= this.#postponedDue) this.#callAgain();
    if (now >= this.#flushDue) {
      this.#flushDue = now + this.#parts.flushMs;
      if (!this.#flushing) this.#engine.flush();
    }
    if (now >= this.#engine.due) this.#engine.tick();
    const { share } = this.#parts;
    if (share && now >= share.due) this.#limitTo(share.look(this.#usage));
    this.#settle();
  }

  /** To call after each input of the engine: writes what it wants written, and answers the program. */
  #settle(): void {
    do {
      this.#hasGivenUp = false;
      this.#takeShare();
      do {
        this.#beginFlush();
        while (this.#canWrite()) this.#writeNext();
        // What is asked for may need room, and so more writes.
        for (const wanted of this.#wanted) this.#proceed(wanted);
      } while (this.#canWrite() || this.#endFlush());
      // While memory of a shared limit is free, what waits for room takes that, and not the room of other blocks.
      while (this.#parts.share && this.#usage.waiting > 0 && this.#takeShare()) {}
    } while (this.#hasGivenUp);
    this.#parts.settled?.();
  }

  /** The counts, in the order of `COUNTS`. */
  get counts(): Float64Array {
    return this.#engine.counts;
  }

  get #usage(): Usage {
    const { counts } = this.#engine;
    const [reserved, pinned, faults, fetched, evicted, waiting] = USAGE.map((index) => counts[index]);
    return { reserved, pinned, faults, fetched, evicted, waiting } as Usage;
  }

  /** Takes more of a shared limit before memory runs short, and returns what is free. True: it has more now. */
  #takeShare(): boolean {
    const { share } = this.#parts;
    return share !== undefined && this.#limitTo(share.attend(this.#usage));
  }

  #limitTo(blocks: number): boolean {
    const before = this.#limit;
    const limit = Math.min(blocks, this.#most);
    if (limit === before) return false;
    this.#limit = limit;
    this.#engine.limit(limit);
    return limit > before;
  }

  // ---- what the program asks for -------------------------------------------------------------------------

  /**
   * Reads a range, and pins it if `pin` says so. `answer` is called when it is there. If it could not be read, `answer`
   * gets an error if it was to be pinned, and nothing is pinned.
   */
  ask(range: ByteRange, pin: boolean, write: boolean, answer: (error?: unknown) => void): void {
    const { first, end } = this.#blocksOf(range);
    this.#wanted.add({ first, end, next: first, asked: first, pin, write, answer });
    this.#settle();
  }

  unpin(range: ByteRange): void {
    const { first, end } = this.#blocksOf(range);
    for (let block = first; block < end; block++) this.#engine.unpin(block);
    this.#settle();
  }

  evict(range: ByteRange): void {
    const { first, end } = this.#blocksOf(range);
    if (end > first) this.#engine.evict(first, end - first);
    this.#settle();
  }

  /** Writes all changes; then `answer` is called. */
  flush(answer: (error?: unknown) => void): void {
    this.#flushes.push(answer);
    this.#settle();
  }

  /** Poisons what cannot be read of a range. */
  giveUp(range: ByteRange): void {
    const { first, end } = this.#blocksOf(range);
    for (let block = first; block < end; block++) this.#engine.giveUp(block);
    this.#settle();
  }

  /** Ends all reads and writes. Nothing may be called after it. */
  end(): void {
    this.#ended = true;
    for (const one of [...this.#reads.values(), ...this.#writing])
      one.abort(new Error('the pager is closed'));
    this.#reads.clear();
    this.#jobs.length = 0;
  }

  #blocksOf({ offset, length }: ByteRange): { first: number; end: number } {
    return {
      first: Math.floor(offset / this.#blockSize),
      end: Math.ceil((offset + length) / this.#blockSize),
    };
  }

  /** Asks for more blocks of a range, and answers when all of them are there. */
  #proceed(wanted: Wanted): void {
    const { end, pin, write } = wanted;
    while (wanted.next < end) {
      const more = Math.min(end, wanted.next + ASKED_MOST) - wanted.asked;
      // Not for each block: what is asked for together is read together.
      if (more >= ASKED_MOST / 2 || (more > 0 && wanted.asked + more === end)) {
        wanted.asked += this.#engine.ask(wanted.asked, more, pin, write);
      }
      // The engine takes more when others have been read.
      if (wanted.next >= wanted.asked) return;
      const there = this.#engine.isThere(wanted.next);
      // What is pinned must be mapped, and not only be about to be.
      if (there === 0 || (pin && this.#postponed.has(wanted.next))) return;
      if (there < 0 && pin) {
        this.#wanted.delete(wanted);
        this.#unpinAsked(wanted);
        const why = this.#failing?.message ?? 'it is poisoned';
        wanted.answer(new Error(`block ${wanted.next} cannot be read: ${why}`));
        return;
      }
      wanted.next++;
    }
    this.#wanted.delete(wanted);
    wanted.answer();
  }

  /** Ends the pins of a range that cannot be pinned as a whole. */
  #unpinAsked({ first, asked }: Wanted): void {
    for (let block = first; block < asked; block++) this.#engine.unpin(block);
  }

  /** Begins the flush that is waited for, unless one is under way. */
  #beginFlush(): void {
    if (this.#flushing || this.#flushes.length === 0) return;
    this.#flushing = this.#flushes;
    this.#flushes = [];
    this.#targetError = undefined;
    this.#engine.flush();
  }

  /** Answers the flush that is under way if all is written, or a write has failed. True: another one is waited for. */
  #endFlush(): boolean {
    const answers = this.#flushing;
    if (!answers || (!this.#targetError && this.#engine.flushing > 0)) return false;
    this.#flushing = undefined;
    const answerAll = (error?: unknown): void => {
      if (!this.#ended) for (const answer of answers) answer(error);
    };
    if (this.#targetError) answerAll(this.#targetError);
    else this.#call(() => this.#parts.target?.sync(), answerAll);
    return this.#flushes.length > 0;
  }

  // ---- reading -------------------------------------------------------------------------------------------

  fetch(id: number, block: number, count: number, urgent: boolean): void {
    if (this.#source.immediate) this.#jobs.push({ id, block, count, urgent, done: 0 });
    else this.#read(id, block, count);
  }

  /** Reads from a source that answers later. */
  #read(id: number, block: number, count: number): void {
    const { offset, length } = this.#span(block, count);
    const aborted = new AbortController();
    this.#reads.set(id, aborted);
    const isOver = (): boolean => this.#reads.get(id) !== aborted;
    let blocks = 0;
    const arrived = (bytes: number): void => {
      const whole = Math.min(Math.floor(bytes / this.#blockSize), count - 1);
      if (isOver() || whole <= blocks) return;
      const more = whole - blocks;
      this.#filled(block + blocks, more);
      blocks = whole;
      this.#engine.arrived(id, more);
      this.#settle();
    };
    const ended = (error?: unknown): void => {
      if (isOver()) return;
      this.#reads.delete(id);
      try {
        if (error === undefined) this.#filled(block + blocks, count - blocks);
        this.#fetched(id, block, count, error);
      } catch (caught) {
        this.#parts.broken(caught);
      }
    };
    const start = async (): Promise<void> => {
      const into = this.#room(block, count);
      await this.#source.read(offset, into.subarray(0, length), aborted.signal, arrived);
    };
    start().then(
      () => ended(),
      (error) => ended(error ?? new Error('the source has failed')),
    );
  }

  /** Whether `slice` has something to read. */
  get hasJobs(): boolean {
    return this.#jobs.length > 0;
  }

  /** Reads a part of the most urgent read of a source that answers at once. */
  slice(): void {
    const job = this.#jobs.find(({ urgent }) => urgent) ?? (this.#jobs[0] as Job);
    const block = job.block + job.done;
    const more = Math.min(job.count - job.done, Math.max(1, SLICE_BYTES / this.#blockSize));
    const { offset, length } = this.#span(block, more);
    let error: unknown;
    try {
      const into = this.#room(block, more);
      void this.#source.read(offset, into.subarray(0, length), NEVER_ABORTED, () => {});
      this.#filled(block, more);
      job.done += more;
    } catch (caught) {
      error = caught ?? new Error('the source has failed');
    }
    if (error === undefined && job.done < job.count) {
      this.#engine.arrived(job.id, more);
      this.#settle();
      return;
    }
    this.#jobs.splice(this.#jobs.indexOf(job), 1);
    this.#fetched(job.id, job.block, job.count, error);
  }

  /** @throws UffdError if there is no memory */
  #room(block: number, count: number): Uint8Array {
    const { offset, length } = this.#pages(block, count);
    const room = this.#memory.room(offset, length);
    if (typeof room === 'number') throw new UffdError(room, 'MADV_POPULATE_WRITE', { length });
    return room;
  }

  #filled(block: number, count: number): void {
    const { offset, length } = this.#pages(block, count);
    this.#memory.filled(offset, length);
  }

  /** A read has ended. */
  #fetched(id: number, block: number, count: number, error: unknown): void {
    if (error === undefined) {
      if (this.#failing) this.#parts.say('the data can be read again');
      this.#failing = undefined;
      this.#engine.fetched(id, PagerOutcome.OK);
    } else {
      const permanent = (error as Partial<SourceError>).permanent === true;
      this.#tellFailing(String((error as Partial<Error>).message ?? error), block, count, permanent);
      this.#engine.fetched(id, permanent ? PagerOutcome.NEVER : PagerOutcome.AGAIN);
    }
    this.#settle();
  }

  /** Tells once that the source fails, and again if it fails for long. */
  #tellFailing(message: string, block: number, count: number, permanent: boolean): void {
    const { now, say, deadlineMs, poisonsAtOnce, failing } = this.#parts;
    const { offset, length } = this.#span(block, count);
    // Messages may differ in the numbers of bytes alone.
    if (
      this.#failing?.message.replace(/\d+/g, '') !== message.replace(/\d+/g, '') ||
      now() - this.#failing.saidMs > SAY_AGAIN_MS
    ) {
      const forever = deadlineMs === Number.POSITIVE_INFINITY;
      const next =
        permanent || poisonsAtOnce
          ? 'threads that touch them get SIGBUS'
          : `it is tried again${forever ? '' : ` for ${deadlineMs} ms`}, and threads that touch them wait`;
      const said = say(`bytes ${offset} to ${offset + length} cannot be read: ${message}; ${next}`);
      this.#failing = { message, saidMs: said ? now() : Number.NEGATIVE_INFINITY };
    }
    if (!permanent) failing?.(offset, length, message);
  }

  expire(id: number, block: number, count: number): void {
    this.cancel(id);
    const { deadlineMs } = this.#parts;
    this.#tellFailing(`the source has not answered for ${deadlineMs} ms`, block, count, true);
  }

  cancel(id: number): void {
    this.#hasGivenUp = true;
    this.#reads.get(id)?.abort(new Error('not needed any more'));
    this.#reads.delete(id);
    const job = this.#jobs.findIndex((one) => one.id === id);
    if (job >= 0) this.#jobs.splice(job, 1);
  }

  // ---- memory --------------------------------------------------------------------------------------------

  /** The bytes of blocks: the last block may be shorter. */
  #span(block: number, count: number): ByteRange {
    const offset = block * this.#blockSize;
    return { offset, length: Math.min(count * this.#blockSize, this.#source.size - offset) };
  }

  /** The pages of blocks. */
  #pages(block: number, count: number): ByteRange {
    const { pageSize } = this.#memory;
    const { offset, length } = this.#span(block, count);
    return { offset, length: Math.ceil(length / pageSize) * pageSize };
  }

  map(block: number, count: number, writeProtect: boolean): void {
    this.#attempt(block, count, (offset, length) => this.#memory.map(offset, length, writeProtect));
  }

  protect(block: number, count: number, on: boolean): void {
    for (let one = block; one < block + count; one++) {
      const { offset, length } = this.#pages(one, 1);
      // Some of its pages may not be mapped yet.
      const isMapped = !this.#postponed.has(one);
      if (on && !isMade(() => this.#memory.protect(offset, length, true))) this.#unprotected.add(one);
      if (!isMapped) this.map(one, 1, on);
      else if (!on) this.#attempt(one, 1, (from, bytes) => this.#memory.protect(from, bytes, false));
    }
  }

  drop(block: number, count: number): void {
    const { offset, length } = this.#pages(block, count);
    this.#memory.drop(offset, length);
    this.#faultAgain(block, count);
  }

  punch(block: number, count: number): void {
    const { offset, length } = this.#pages(block, count);
    this.#memory.punch(offset, length);
    this.#faultAgain(block, count);
  }

  /** Lets threads fault again whose answer was postponed, and is void now. */
  #faultAgain(block: number, count: number): void {
    if (this.#postponed.size === 0) return;
    for (let one = block; one < block + count; one++) {
      const { offset, length } = this.#pages(one, 1);
      if (this.#postponed.delete(one)) this.#memory.wake(offset, length);
    }
  }

  poison(block: number, count: number): void {
    this.#hasGivenUp = true;
    this.#attempt(block, count, (offset, length) => this.#memory.poison(offset, length));
  }

  wake(block: number, count: number): void {
    for (let one = block; one < block + count; one++) {
      const { offset, length } = this.#pages(one, 1);
      // If its answer was postponed, threads would touch it again and again.
      if (!this.#postponed.has(one)) this.#memory.wake(offset, length);
    }
  }

  /** Makes a call for blocks. If there is no memory for it, it is made again later, for each block by itself. */
  #attempt(block: number, count: number, call: (offset: number, length: number) => boolean): void {
    const { offset, length } = this.#pages(block, count);
    this.#forget(block, count);
    if (isMade(() => call(offset, length))) return;
    for (let one = block; one < block + count; one++) {
      this.#postponed.set(one, () => this.#attempt(one, 1, call));
    }
    this.#postponedDue = Math.min(this.#postponedDue, this.#parts.now() + POSTPONED_MS);
  }

  #callAgain(): void {
    this.#postponedDue = Number.POSITIVE_INFINITY;
    for (const call of [...this.#postponed.values()]) call();
  }

  /** Forgets calls for blocks that a later call is about. */
  #forget(block: number, count: number): void {
    if (this.#postponed.size === 0) return;
    for (let one = block; one < block + count; one++) this.#postponed.delete(one);
  }

  // ---- writing -------------------------------------------------------------------------------------------

  write(block: number, count: number): void {
    for (let one = block; one < block + count; one++) this.#writes.push(one);
  }

  /** Whether there is something to write that the target can take now. */
  #canWrite(): boolean {
    if (this.#writes.length === 0) return false;
    const { bytesAtOnce } = this.#parts.target as Target;
    return (
      bytesAtOnce === undefined ||
      this.#writing.size === 0 ||
      this.#writingBytes + this.#blockSize <= bytesAtOnce
    );
  }

  /** Writes what the engine wants written: as one batch or, if the target answers later, as much as it can take now. */
  #writeNext(): void {
    const target = this.#parts.target as Target;
    const { bytesAtOnce } = target;
    const blocks = bytesAtOnce === undefined ? this.#writes.splice(0) : this.#takeRun(bytesAtOnce);
    const [protectedOnes, others] = [
      blocks.filter((block) => !this.#unprotected.has(block)),
      blocks.filter((block) => this.#unprotected.delete(block)),
    ];
    const parts = protectedOnes.map((block) => {
      const { offset, length } = this.#span(block, 1);
      const bytes = this.#memory.bytes(offset, length);
      return { offset, bytes: bytesAtOnce === undefined ? bytes : bytes.slice() };
    });
    const length = parts.reduce((sum, { bytes }) => sum + bytes.length, 0);
    const aborted = new AbortController();
    this.#writing.add(aborted);
    this.#writingBytes += length;
    let returned = false;
    this.#call(
      () => target.write(parts, aborted.signal),
      (error) => {
        this.#writing.delete(aborted);
        this.#writingBytes -= length;
        if (this.#ended) return;
        this.#tellWritten(protectedOnes, error);
        const outcome = error === undefined ? PagerOutcome.OK : PagerOutcome.AGAIN;
        for (const block of protectedOnes) this.#engine.written(block, outcome);
        if (returned) this.#settle();
      },
    );
    returned = true;
    for (const block of others) this.#engine.written(block, PagerOutcome.AGAIN);
  }

  /** Takes a run of adjacent blocks of those to write: what one call of the target gets. */
  #takeRun(bytesAtOnce: number): number[] {
    const most = Math.min(requestBytes(this.#blockSize), bytesAtOnce - this.#writingBytes);
    const run = this.#writes.splice(0, 1);
    while (this.#writes[0] === (run.at(-1) as number) + 1 && (run.length + 1) * this.#blockSize <= most)
      run.push(...this.#writes.splice(0, 1));
    return run;
  }

  /** Tells once that the target fails, until all that could not be written is. */
  #tellWritten(blocks: readonly number[], error: unknown): void {
    const { say } = this.#parts;
    if (error !== undefined) {
      for (const block of blocks) this.#unwritten.add(block);
      this.#targetError = error as Error;
      const { message = String(error) } = error as Partial<Error>;
      const text = `changes cannot be written: ${message}; they stay in memory, and it is tried again`;
      // If there is no memory to print it now, the next failure prints it.
      if (this.#toldTarget !== message && say(text)) this.#toldTarget = message;
      return;
    }
    for (const block of blocks) this.#unwritten.delete(block);
    if (this.#unwritten.size > 0) return;
    if (this.#toldTarget !== undefined) say('changes can be written again');
    this.#toldTarget = this.#targetError = undefined;
  }

  /** Makes a call of the target, and says when it is done: at once, if it returns no promise. */
  #call(make: () => void | Promise<void>, done: (error?: unknown) => void): void {
    const failed = (error: unknown): void => done(error ?? new Error('the sink has failed'));
    let result: void | Promise<void>;
    try {
      result = make();
    } catch (error) {
      failed(error);
      return;
    }
    if (result) result.then(() => done(), failed).catch((error) => this.#parts.broken(error));
    else done();
  }
}

/** Bytes, from the start of the data. */
export interface ByteRange {
  readonly offset: number;
  readonly length: number;
}

/** Whether a call was made. False: there was no memory for it, or the mapping was being changed. */
function isMade(call: () => boolean): boolean {
  try {
    return call();
  } catch (error) {
    if ((error as Partial<UffdError>).code === 'ENOMEM') return false;
    throw error;
  }
}

const NEVER_ABORTED = new AbortController().signal;
