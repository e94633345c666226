// A pager in a simulated world: its server on a simulated kernel, threads that read and write its memory, and a source
// and a target that are slow, fail and answer out of order. The seed decides everything.
//
// Rules:
//  - Thread number T writes only to byte T of each page: it knows what must be there. Another thread's byte must hold
//    a value that was once written there, and never 0, because the source has no zeros.
//  - The memory's pages are counted by the simulated kernel, and never exceed the limit.

import { BudgetShare, makeBudget } from '../../../src/pager/budget.js';
import { overlaid } from '../../../src/pager/overlaid-source.js';
import { type BlockMemory, PagerServer } from '../../../src/pager/server.js';
import type { BlockStore, OpenSource, Target } from '../../../src/pager/source.js';
import { SourceError } from '../../../src/pager/source.js';
import {
  type Inject,
  type Outcome,
  type Program,
  Random,
  read,
  type SharedMemory,
  SimulatedKernel,
  Userfaultfd,
  write,
} from '../../../src/sim/index.js';
import { eventLoopTurn } from '../../../src/testing/event-loop-turn.js';

export interface PagerWorld {
  seed: number;
  /** Blocks of the data, pages of a block, blocks in memory at most. */
  blocks?: number;
  blockPages?: number;
  resident?: number;
  threads?: number;
  /** Actions of each thread. */
  actions?: number;
  writable?: boolean;
  /** Whether reads come in order, as of a file. */
  sequential?: boolean;
  /** Probabilities: of a read that fails, of a write that fails. */
  readFailure?: number;
  writeFailure?: number;
  /** Milliseconds until a block that cannot be read is poisoned; default: never. */
  deadlineMs?: number;
  /** Probability that a read that fails says that trying again is pointless. */
  permanent?: number;
  /** Probability that a read is never answered. */
  stall?: number;
  /** How many blocks the program asks for at the start, all at once. */
  storm?: number;
  /** Whether the source answers at once. */
  immediate?: boolean;
  /** Where changes go: to what the source reads, to an overlay of it, or to a sink that answers later. */
  to?: 'source' | 'overlay' | 'sink';
  inject?: Inject;
  /** Whether the limit is shared with another pager, which takes and gives memory at random. */
  budget?: boolean;
  /** Whether the program asks, pins, evicts and flushes. */
  commands?: boolean;
  /** Whether it only pins what was written to last, for long, and flushes. */
  pins?: boolean;
}

const PAGE = 4096;
/** Steps after which a world counts as stuck. */
const STEPS_MOST = 200_000;
/** Blocks of one ask of a storm. */
const STORM_BLOCKS = 50;
/** Milliseconds after which a pager that needs memory has its part of a budget: hundreds of looks. */
const EQUAL_MOST_MS = 500;

/** Runs one world. @throws Error that says what was wrong */
export async function runWorld(options: PagerWorld): Promise<{ faults: number; steps: number }> {
  const {
    blocks = 12,
    blockPages = 2,
    resident = 4,
    threads = 3,
    actions = 30,
    writable = false,
    sequential = false,
    readFailure = 0,
    writeFailure = 0,
    deadlineMs = Number.POSITIVE_INFINITY,
    permanent = 0,
    stall = 0,
    storm = 0,
    immediate = false,
    to = 'source',
    inject,
    commands = false,
    pins = false,
    budget = false,
  } = options;
  const random = new Random(options.seed);
  const kernel = new SimulatedKernel({ chooser: random, patienceMs: 120_000, ...(inject && { inject }) });
  // The last block is one page shorter than the others.
  const pages = blocks * blockPages - (blockPages > 1 ? 1 : 0);
  const size = pages * PAGE - 100;
  const blockSize = blockPages * PAGE;
  const object = kernel.memfd(pages);
  const address = kernel.mapShared(object, { protection: writable ? 3 : 1 });
  const disk = new Uint8Array(size);
  for (let at = 0; at < size; at++) disk[at] = 1 + ((at * 7 + (at >> 12) * 13) % 200);
  const original = disk.slice();
  const failures: string[] = [];
  const check = (good: boolean, what: string): void => {
    if (!good) failures.push(what);
  };

  const uffd = Userfaultfd.open({
    kernel,
    features: [
      'missing-shmem',
      'minor-shmem',
      'pagefault-flag-wp',
      'wp-hugetlbfs-shmem',
      'wp-unpopulated',
      'poison',
    ],
  });
  uffd.register(
    address,
    object.length,
    writable ? ['missing', 'minor', 'write-protect'] : ['missing', 'minor'],
  );
  const rival = budget ? await Rival.with(resident, blockSize, kernel, random) : undefined;
  const pagesMost = (): number => (rival ? rival.share.bytes / PAGE : resident * blockPages);
  const memory = new SimulatedMemory(kernel, object, address, uffd, pagesMost, writable, immediate, check);

  const lower: OpenSource = {
    size,
    parallel: immediate ? 1 : 3,
    immediate,
    read(offset, into, signal, arrived) {
      const fails = random.chance(readFailure);
      if (immediate) {
        if (fails) throw new SourceError('the disk has failed', random.chance(permanent));
        into.set(disk.subarray(offset, offset + into.length));
        return;
      }
      return new Promise((resolve, reject) => {
        if (random.chance(stall)) {
          signal.addEventListener('abort', () => reject(signal.reason));
          return;
        }
        let done = 0;
        const proceed = (): void => {
          if (signal.aborted) {
            reject(signal.reason);
            return;
          }
          if (fails && random.chance(0.5)) {
            reject(new SourceError('the connection was cut', random.chance(permanent)));
            return;
          }
          const some = Math.min(into.length - done, 1 + random.below(into.length));
          into.set(disk.subarray(offset + done, offset + done + some), done);
          done += some;
          arrived(done);
          if (done < into.length) kernel.after(0.001 * 4 ** random.below(7), proceed);
          else if (fails) reject(new Error('too late'));
          else resolve();
        };
        kernel.after(0.001 * 4 ** random.below(7), proceed);
      });
    },
    close() {},
  };
  /** The blocks of the overlay. */
  const held = new Map<number, Uint8Array>();
  const store: BlockStore = {
    holds: (block) => held.has(block),
    read(offset, into) {
      for (let at = 0; at < into.length; ) {
        const block = Math.floor((offset + at) / blockSize);
        const bytes = held.get(block);
        if (!bytes) throw new Error(`block ${block} was read from the overlay, which does not hold it`);
        const part = bytes.subarray(offset + at - block * blockSize).subarray(0, into.length - at);
        into.set(part, at);
        at += part.length;
      }
    },
  };
  memory.poisons = (offset) =>
    check(!held.has(offset / blockSize), `the block at ${offset} is poisoned, but the overlay holds it`);
  const source = to === 'overlay' ? overlaid(lower, store, blockSize) : lower;
  /** Blocks that the sink is writing. */
  const sinking = new Set<number>();
  const sink: Target = {
    bytesAtOnce: 2 * blockSize,
    write(parts) {
      const fails = random.chance(writeFailure);
      for (const { offset } of parts) {
        check(!sinking.has(offset), `the block at ${offset} is written twice at the same time`);
        sinking.add(offset);
      }
      check(sinking.size <= 2, `${sinking.size} blocks are under way to the sink`);
      return new Promise((resolve, reject) => {
        kernel.after(0.001 * 4 ** random.below(7), () => {
          for (const { offset, bytes } of parts) {
            sinking.delete(offset);
            if (!fails || random.chance(0.5)) disk.set(bytes, offset);
          }
          if (fails) reject(new Error('the sink has failed'));
          else resolve();
        });
      });
    },
    sync() {
      if (random.chance(0.5)) return;
      return new Promise((resolve) => void kernel.after(0.001 * 4 ** random.below(5), resolve));
    },
    close() {},
  };
  const file: Target = {
    write(parts) {
      if (random.chance(writeFailure)) throw new Error('no space is left');
      for (const { offset, bytes } of parts) {
        if (to === 'overlay') held.set(offset / blockSize, bytes.slice());
        else disk.set(bytes, offset);
      }
    },
    sync() {},
    close() {},
  };
  const target = writable ? (to === 'sink' ? sink : file) : undefined;
  /** What the data is now, without what is in memory. */
  const stored = (at: number): number | undefined => {
    const block = Math.floor(at / blockSize);
    return (held.get(block)?.[at - block * blockSize] ?? disk[at]) as number;
  };
  let timer: { close(): void } | undefined;
  let slicing: { close(): void } | undefined;
  const slice = (): void => {
    slicing = undefined;
    if (server.hasJobs) server.slice();
  };
  const server = new PagerServer({
    memory,
    source,
    target,
    blockSize,
    resident: resident * blockSize,
    share: rival?.share,
    readAhead: sequential ? 4 * blockSize : 2 * blockSize,
    deadlineMs,
    poisonsAtOnce: false,
    flushMs: writable && random.chance(0.5) ? 2 : 0,
    seed: options.seed,
    now: () => kernel.now,
    say: () => true,
    broken: (error) => kernel.halt(error as Error),
    settled() {
      timer?.close();
      const ms = server.untilDueMs;
      timer = ms < 0 ? undefined : kernel.after(ms, () => server.tick());
      if (server.hasJobs) slicing ??= kernel.after(0.001, slice);
    },
  });
  uffd.start(server.handler, { onError: (error) => kernel.halt(error as Error) });

  /** Whether a touch raised SIGBUS, which only poison does. */
  const isPoisoned = (outcome: Outcome, at: number): boolean => {
    if (outcome !== 'SIGBUS') return false;
    const block = Math.floor(at / blockSize);
    check(memory.poisoned.has(block * blockSize), `SIGBUS at ${at}, which was never poisoned`);
    return true;
  };
  // What each thread last wrote, by page.
  const written = new Map<number, number>();
  /** All values that were ever written to a byte. */
  const history = new Map<number, number[]>();
  let latest = 0;
  let finished = 0;
  function* program(thread: number): Program {
    let at = random.below(size);
    for (let action = 0; action < actions; action++) {
      at = sequential && random.chance(0.9) ? (at + PAGE) % size : random.below(size);
      const page = Math.floor(at / PAGE);
      const own = page * PAGE + thread;
      if (writable && random.chance(0.4)) {
        const value = 1 + random.below(255);
        latest = own;
        const values = history.get(own) ?? [original[own] as number];
        history.set(own, values);
        // Before the write: it may be flushed before this program goes on.
        values.push(value);
        if (!isPoisoned(yield write(address + BigInt(own), value), own)) written.set(own, value);
      } else if (random.chance(0.5)) {
        const value = yield read(address + BigInt(own));
        const expected = written.get(own) ?? original[own] ?? 0;
        check(
          isPoisoned(value, own) || value === expected,
          `thread ${thread} has read ${value} at ${own} instead of ${expected}`,
        );
      } else if (at % PAGE >= threads) {
        const value = yield read(address + BigInt(at));
        const expected = original[at] ?? 0;
        check(isPoisoned(value, at) || value === expected, `thread ${thread} has read ${value} at ${at}`);
      }
    }
    finished++;
  }
  for (let thread = 0; thread < threads; thread++) kernel.thread(program(thread));

  let answers = 0;
  let asked = 0;
  const command = (): void => {
    const offset = pins ? latest : random.below(size);
    const length = 1 + random.below(Math.min(size - offset, 2 * blockSize - 1));
    asked++;
    switch (pins ? 1 + 2 * random.below(2) : random.below(6)) {
      case 0:
        server.evict({ offset, length });
        answers++;
        break;
      case 5:
        // What is being written to now.
        server.evict({ offset: latest, length: 1 });
        answers++;
        break;
      case 1: {
        const before = [...written].map(([at, value]) => {
          const values = history.get(at) as number[];
          return { at, values, since: values.lastIndexOf(value) };
        });
        server.flush((error) => {
          answers++;
          if (error) return;
          for (const { at, values, since } of before)
            check(
              values.slice(since).includes(stored(at) as number),
              `after a flush the target has ${stored(at)} at ${at}, and not one of ${values.slice(since)}`,
            );
        });
        break;
      }
      case 2:
        server.ask({ offset, length }, false, false, () => answers++);
        break;
      default: {
        // At most one block, so that the threads have room.
        const part = { offset, length: 1 };
        server.ask(part, true, writable && (pins || random.chance(0.5)), (error) => {
          answers++;
          const block = Math.floor(offset / blockSize);
          if (error) return;
          check(memory.isMapped(block * blockPages), `pinned block ${block} is not mapped`);
          kernel.after(0.001 * 4 ** (pins ? 6 : random.below(7)), () => {
            check(memory.isMapped(block * blockPages), `block ${block} was evicted while it was pinned`);
            server.unpin(part);
          });
        });
      }
    }
    if (finished < threads) kernel.after(0.005 * 4 ** random.below(5), command);
  };
  if (commands) kernel.after(0.01, command);
  for (let block = 0; block < storm; block += STORM_BLOCKS) {
    asked++;
    const length = Math.min(STORM_BLOCKS, storm - block) * blockSize;
    server.ask({ offset: block * blockSize, length }, false, false, () => answers++);
  }

  const turn = async (): Promise<boolean> => {
    const { turns } = kernel;
    const stepped = kernel.step();
    if (kernel.turns !== turns || !stepped) await eventLoopTurn();
    return stepped || kernel.canStep();
  };
  const failed = (): string | undefined => failures[0];
  while ((finished < threads || answers < asked) && !failed()) {
    if (kernel.steps > STEPS_MOST) failures.push(`${STEPS_MOST} steps were not enough`);
    if (!(await turn())) {
      const asleep = kernel.threads.filter(({ done }) => !done).map((thread) => thread.describe());
      failures.push(
        `nothing will ever happen any more: ${asked - answers} commands have no answer; ${asleep.join('; ')}`,
      );
    }
  }
  if (rival && !failed()) {
    rival.stayBusy();
    const until = kernel.now + EQUAL_MOST_MS;
    while (!rival.hasItsPart && kernel.now < until) await turn();
    check(rival.hasItsPart, 'a pager that needs memory has not got its part of the budget');
  }
  if (writable && !failed()) {
    let flushed: unknown = 'not yet';
    const flush = (): void =>
      server.flush((error) => {
        flushed = error;
        if (error) kernel.after(1, flush);
      });
    flush();
    for (let steps = 0; flushed !== undefined && steps < STEPS_MOST; steps++) await turn();
    check(flushed === undefined, `the changes were not flushed: ${flushed}`);
    for (const [at, value] of written)
      check(stored(at) === value, `the target has ${stored(at)} at ${at} instead of ${value}`);
    if (to === 'overlay')
      check(
        disk.every((byte, at) => byte === original[at]),
        'the source of an overlay was written to',
      );
  }
  server.end();
  rival?.end();
  timer?.close();
  slicing?.close();
  const faults = server.counts[0] as number;
  uffd.close();
  if (failures.length > 0) throw new Error(`seed ${options.seed}: ${failures[0]}`);
  return { faults, steps: kernel.steps };
}

/** Another pager of the budget: it uses what it gets, and needs more, or is quiet, at random. */
class Rival {
  readonly share: BudgetShare;
  readonly #own: BudgetShare;
  readonly #kernel: SimulatedKernel;
  readonly #random: Random;
  readonly #usage = { reserved: 0, pinned: 0, faults: 0, fetched: 0, evicted: 0, waiting: 0 };
  /** Bytes of each one's equal part, in whole blocks. */
  readonly #part: number;
  #busy = true;
  #stays = false;
  #ended = false;

  private constructor(
    share: BudgetShare,
    own: BudgetShare,
    part: number,
    kernel: SimulatedKernel,
    random: Random,
  ) {
    this.share = share;
    this.#own = own;
    this.#part = part;
    this.#kernel = kernel;
    this.#random = random;
    this.#step();
  }

  static async with(resident: number, blockSize: number, kernel: SimulatedKernel, random: Random) {
    const blocks = resident + 16;
    const state = makeBudget(blocks * blockSize);
    const timing = { look: 0.5, lookAlone: 1, quiet: 3 };
    const join = (): Promise<BudgetShare> =>
      BudgetShare.join(state, blockSize, () => kernel.now, eventLoopTurn, timing);
    return new Rival(await join(), await join(), Math.floor(blocks / 2) * blockSize, kernel, random);
  }

  /** It needs memory from now on. */
  stayBusy(): void {
    this.#busy = this.#stays = true;
  }

  get hasItsPart(): boolean {
    return this.#own.bytes >= this.#part;
  }

  #step(): void {
    if (this.#ended) return;
    const usage = this.#usage;
    if (this.#random.chance(0.05) && !this.#stays) this.#busy = !this.#busy;
    if (this.#busy) {
      usage.faults++;
      usage.evicted++;
    }
    const limit = this.#own.look(usage);
    usage.reserved = this.#busy ? limit : Math.min(limit, usage.reserved);
    this.#own.attend(usage);
    this.#kernel.after(0.3, () => this.#step());
  }

  end(): void {
    this.#ended = true;
    this.#own.leave();
    this.share.leave();
  }
}

/** The memory of a pager on a simulated kernel. */
class SimulatedMemory implements BlockMemory {
  readonly pageSize = PAGE;
  readonly address: bigint;
  readonly uffd: Userfaultfd;
  readonly #kernel: SimulatedKernel;
  readonly #object: SharedMemory;
  readonly #limit: () => number;
  readonly #writable: boolean;
  readonly #immediate: boolean;
  readonly #check: (good: boolean, what: string) => void;
  /** Offsets of the blocks that were ever poisoned. */
  readonly poisoned = new Set<number>();
  /** Called before a block is poisoned. */
  poisons: (offset: number) => void = () => {};
  /** Rooms by their first byte: what the source writes to is copied when it is complete. */
  readonly #rooms: { offset: number; bytes: Uint8Array }[] = [];

  constructor(
    kernel: SimulatedKernel,
    object: SharedMemory,
    address: bigint,
    uffd: Userfaultfd,
    limit: () => number,
    writable: boolean,
    immediate: boolean,
    check: (good: boolean, what: string) => void,
  ) {
    this.#kernel = kernel;
    this.#object = object;
    this.address = address;
    this.uffd = uffd;
    this.#limit = limit;
    this.#writable = writable;
    this.#immediate = immediate;
    this.#check = check;
  }

  room(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.#rooms.push({ offset, bytes });
    // The room of a source that answers later is memory already.
    if (!this.#immediate) this.#write(offset, bytes);
    return bytes;
  }

  #write(offset: number, bytes: Uint8Array): void {
    this.#object.write(offset, bytes);
    this.#check(
      this.#object.resident <= this.#limit(),
      `${this.#object.resident} pages have memory, ${this.#limit()} may`,
    );
  }

  filled(offset: number, length: number): void {
    const room = this.#rooms.findLast(
      (one) => one.offset <= offset && offset + length <= one.offset + one.bytes.length,
    );
    if (!room) throw new Error('filled: there is no room there');
    this.#write(offset, room.bytes.subarray(offset - room.offset, offset - room.offset + length));
  }

  bytes(offset: number, length: number): Uint8Array {
    for (let page = offset / PAGE; page < (offset + length) / PAGE; page++)
      this.#check(this.#object.holds(page), `page ${page} was written to the target, but has no memory`);
    return this.#object.read(offset, length);
  }

  map(offset: number, length: number, writeProtect: boolean): boolean {
    if (!writeProtect && this.#writable && !this.protect(offset, length, false)) return false;
    return this.uffd.continue(this.#at(offset), length, { writeProtect }) === length;
  }

  protect(offset: number, length: number, on: boolean): boolean {
    return this.uffd.writeProtect(this.#at(offset), length, on) === length;
  }

  drop(offset: number, length: number): void {
    this.#kernel.dontNeed(this.#at(offset), length);
  }

  punch(offset: number, length: number): void {
    this.#object.punchHole(offset, length);
  }

  wake(offset: number, length: number): void {
    this.uffd.wake(this.#at(offset), length);
  }

  poison(offset: number, length: number): boolean {
    this.poisons(offset);
    this.poisoned.add(offset);
    return this.uffd.poison(this.#at(offset), length) === length;
  }

  isMapped(page: number): boolean {
    return this.#kernel.process.space.holds(Number(this.address) + page * PAGE);
  }

  #at(offset: number): bigint {
    return this.address + BigInt(offset);
  }
}
