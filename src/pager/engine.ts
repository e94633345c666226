// The pager's state machine (assembly/pager/), and the loop that performs its actions. This file decides nothing, and
// makes no call: `effects` does.

import wasm from '#pager';
import { ExchangeView, type Exports, PagerAction, PagerOption, PagerOutcome } from '../bindings/pager.js';
import { WasmModule } from '../uffd/core.js';
import { COUNTS } from './counts.js';

export { PagerOutcome };

/** Blocks in memory: the block table of more would need more than the 4 GiB of a WebAssembly memory. */
const RESIDENT_MOST = 2 ** 25;

const module = new WasmModule<Exports>(wasm);

/** What the engine has done to memory, the source and the target. Blocks are numbered from 0. */
export interface Effects {
  /** Starts to read `count` blocks; `urgent`: a thread waits for one of them. Reports `arrived` and `fetched` later. */
  fetch(id: number, block: number, count: number, urgent: boolean): void;
  /** Ends a read. Its memory may not be written to after this returns, and nothing more is reported of it. */
  cancel(id: number): void;
  /** As `cancel`: the source has not answered by the deadline. The blocks are poisoned next. */
  expire(id: number, block: number, count: number): void;
  /** Maps blocks whose bytes are in memory, and wakes who waits for them. */
  map(block: number, count: number, writeProtect: boolean): void;
  /** Lifts or sets the write protection. Lifting it wakes the threads that wait to write. */
  protect(block: number, count: number, on: boolean): void;
  /** Drops page-table entries, and poison. */
  drop(block: number, count: number): void;
  /** Frees memory. */
  punch(block: number, count: number): void;
  /** Starts to write blocks to the target. Reports `written` of each block later. */
  write(block: number, count: number): void;
  poison(block: number, count: number): void;
  /** Lets the threads that wait for blocks touch them again. */
  wake(block: number, count: number): void;
}

export interface EngineOptions {
  blocks: number;
  /** Most blocks that have memory at a time: 16 or more. */
  resident: number;
  writable: boolean;
  /** Whether changes are written only when memory is short. */
  writesLate: boolean;
  /** Most blocks of one request, and most blocks that are read ahead for one reader. */
  requestBlocks: number;
  aheadBlocks: number;
  /** Requests under way at once. */
  parallel: number;
  /** Milliseconds until a block that cannot be read is poisoned; infinite: never. */
  deadlineMs: number;
  /** Whether a block is poisoned when it cannot be read for the first time. */
  poisonsAtOnce: boolean;
  /** Whether the source may never answer: then the deadline counts for a read that is under way, too. */
  mayStall: boolean;
  /** Of the jitter between attempts. */
  seed: number;
}

export class Engine {
  readonly #exports = module.instantiate();
  readonly #exchange = new ExchangeView(this.#exports.memory, this.#exports.exchange.value);
  readonly #effects: Effects;
  readonly #now: () => number;
  /** Inputs that came while actions were being performed. */
  readonly #later: (() => void)[] = [];
  #running = false;
  /** The counts, in the order of `COUNTS`. */
  readonly counts: Float64Array;

  /**
   * @param now monotonic milliseconds
   * @throws RangeError if the block table does not fit into memory
   */
  constructor(options: EngineOptions, effects: Effects, now: () => number) {
    this.#effects = effects;
    this.#now = now;
    const forever = options.deadlineMs === Number.POSITIVE_INFINITY;
    const bits =
      (options.writable ? PagerOption.WRITABLE : 0) |
      (forever ? PagerOption.RETRY_FOREVER : 0) |
      (options.writesLate ? PagerOption.WRITES_LATE : 0) |
      (options.poisonsAtOnce ? PagerOption.POISONS_AT_ONCE : 0) |
      (options.mayStall ? PagerOption.MAY_STALL : 0);
    const { blocks, resident, requestBlocks, aheadBlocks, parallel, seed } = options;
    const deadline = forever ? 0 : options.deadlineMs;
    if (
      resident > RESIDENT_MOST ||
      !this.#exports.pagerStart(blocks, resident, bits, requestBlocks, aheadBlocks, parallel, deadline, seed)
    )
      throw new RangeError(
        `${resident} blocks are more than the pager's block table can hold; use larger blocks`,
      );
    // The memory of the module grows at the start only.
    this.counts = new Float64Array(this.#exports.memory.buffer, this.#exports.counts.value, COUNTS.length);
  }

  // ---- inputs --------------------------------------------------------------------------------------------

  /** A thread waits for a block. False: it is to be given again later. */
  fault(block: number, write: boolean): boolean {
    return this.#answer(() => this.#exports.pagerFault(block, write) !== 0);
  }

  /** `blocks` more blocks of a request are in memory. */
  arrived(id: number, blocks: number): void {
    this.#input(() => this.#exports.pagerArrived(id, blocks));
  }

  /** A request has ended. */
  fetched(id: number, outcome: PagerOutcome): void {
    this.#input(() => this.#exports.pagerFetched(id, outcome));
  }

  written(block: number, outcome: PagerOutcome): void {
    this.#input(() => this.#exports.pagerWritten(block, outcome));
  }

  /** Poisons a block that cannot be read, if it is not there meanwhile. */
  giveUp(block: number): void {
    this.#input(() => this.#exports.pagerGiveUp(block));
  }

  flush(): void {
    this.#input(() => this.#exports.pagerFlush());
  }

  /**
   * Asks for blocks, and pins them if `pin` says so. Returns how many were asked for, from the first one on: the others
   * are to be asked for later.
   */
  ask(block: number, count: number, pin: boolean, write: boolean): number {
    return this.#answer(() => this.#exports.pagerAsk(block, count, pin, write));
  }

  /** Sets how many blocks have memory at a time: 16 or more, at most as many as at the start, at most 512 fewer than now. */
  limit(blocks: number): void {
    this.#input(() => this.#exports.pagerLimit(blocks));
  }

  unpin(block: number): void {
    this.#input(() => this.#exports.pagerUnpin(block));
  }

  evict(block: number, count: number): void {
    for (let slot = 1; slot !== 0; ) slot = this.#answer(() => this.#exports.pagerEvict(block, count, slot));
  }

  /** Does what is due. */
  tick(): void {
    this.#input(() => {});
  }

  // ---- state ---------------------------------------------------------------------------------------------

  /** Whether a block that was asked for is there: 1 yes, 0 not yet, −1 it failed or is poisoned. */
  isThere(block: number): number {
    return this.#exports.pagerIsThere(block);
  }

  /** Blocks that a flush waits for. */
  get flushing(): number {
    return this.#exports.pagerFlushing();
  }

  /** When `tick` is due, in milliseconds; infinite: never. */
  get due(): number {
    return this.#exchange.due;
  }

  // ---- actions -------------------------------------------------------------------------------------------

  #input(give: () => void): void {
    this.#later.push(give);
    if (this.#running) return;
    this.#running = true;
    try {
      for (let next = this.#later.shift(); next; next = this.#later.shift()) {
        this.#exports.pagerTime(this.#now());
        this.#perform();
        next();
        this.#perform();
      }
    } finally {
      this.#running = false;
    }
  }

  /** An input with a result. Actions give none of these. */
  #answer<T>(give: () => T): T {
    if (this.#running) throw new Error('the pager was asked while it performed actions');
    const result: T[] = [];
    this.#input(() => void result.push(give()));
    return result[0] as T;
  }

  #perform(): void {
    const effects = this.#effects;
    const exchange = this.#exchange;
    for (;;) {
      const action = this.#exports.pagerNext();
      if (action === PagerAction.DONE) return;
      const { block, count, id } = exchange;
      switch (action) {
        case PagerAction.FETCH:
          effects.fetch(id, block, count, exchange.urgent !== 0);
          break;
        case PagerAction.CANCEL:
          effects.cancel(id);
          break;
        case PagerAction.EXPIRE:
          effects.expire(id, block, count);
          break;
        case PagerAction.MAP:
          effects.map(block, count, false);
          break;
        case PagerAction.MAP_PROTECTED:
          effects.map(block, count, true);
          break;
        case PagerAction.PROTECT:
          effects.protect(block, count, true);
          break;
        case PagerAction.UNPROTECT:
          effects.protect(block, count, false);
          break;
        case PagerAction.DROP:
          effects.drop(block, count);
          break;
        case PagerAction.PUNCH:
          effects.punch(block, count);
          break;
        case PagerAction.WRITE:
          effects.write(block, count);
          break;
        case PagerAction.POISON:
          effects.poison(block, count);
          break;
        case PagerAction.WAKE:
          effects.wake(block, count);
          break;
        default:
          throw new Error(`the pager's core wants something unknown: ${action}`);
      }
    }
  }
}
