// `Pager`: more data than memory, filled when it is touched. The program's side of it: opens the pager's thread, and
// sends it what the program asks for.

import { tmpdir } from 'node:os';
import { isAbsolute, resolve } from 'node:path';
import { isMainThread, type Worker } from 'node:worker_threads';
import { closeDescriptor } from '../../shim/descriptors.js';
import { munmap } from '../../shim/memory.js';
import { makeEventfd, signalEventfd } from '../../shim/watch.js';
import {
  checkFunction,
  checkInteger,
  checkOptions,
  invalidState,
  outOfRange,
  wrongType,
} from '../errors/arguments.js';
import { UffdError } from '../errors/errors.js';
import { warn } from '../errors/warning.js';
import { UnsupportedError } from '../kernel/port.js';
import { SHARED_BYTES } from '../memory/address-space.js';
import { installExitHandling } from '../uffd/process-exit.js';
import { ENTRY } from '../workers/entry-file.js';
import { startThread } from '../workers/launcher.js';
import { BudgetPins, makeBudget, type PagerBudget } from './budget.js';
import { COUNTS } from './counts.js';
import { type CustomSource, PARALLEL } from './custom-source.js';
import { type Recovery, recover } from './journal.js';
import {
  Ending,
  type PagerCommand,
  type PagerPlan,
  type PagerReport,
  type PostedError,
  type SourcePlan,
  type WritablePlan,
} from './messages.js';
import {
  type AnonymousPagerOptions,
  BLOCK_SIZE,
  BLOCKS_MOST,
  bytesOf,
  checkAnonymousOptions,
  checkPagerOptions,
  FLUSH_MS,
  type OnReadError,
  type PagerOptions,
  type PagerSource,
  READ_AHEAD,
  type ReadFailure,
  type Writable,
} from './options.js';
import { PagerMemory, type SharedPager } from './pager-memory.js';
import type { Sink } from './sink.js';
import { SourceError } from './source.js';

/** A part of the data. */
export interface PagerRange {
  /** Bytes from the start. Default 0. */
  offset?: number;
  /** Bytes. Default: up to the end. */
  length?: number;
}

/** Options of `withPinned`. */
export interface PinOptions {
  /** Whether the system call writes into the memory (a read(2)). Default false. */
  write?: boolean;
}

/**
 * Counts since a pager was opened; those of memory as of now. Bytes are whole blocks, so the last block counts as a whole
 * one, too. The pager's thread publishes the counts a moment after each change.
 */
export interface PagerStats {
  /** Faults, `hits` and `writeFaults` included. A touch of memory that is mapped is no fault. */
  readonly faults: number;
  /** Faults of data that was in memory: read ahead, or unmapped to find out whether it is still used. */
  readonly hits: number;
  /** First writes to data that equals what was read or written last. */
  readonly writeFaults: number;
  /** Bytes read from the source, and how many of them ahead of a touch; of these, how many were touched later. */
  readonly fetchedBytes: number;
  readonly aheadBytes: number;
  readonly aheadUsedBytes: number;
  /** Bytes evicted, to make room or by `evict`. */
  readonly evictedBytes: number;
  /** Bytes written to the file, to the sink or to the swap file. */
  readonly writtenBytes: number;
  /** Reads that have failed. */
  readonly failures: number;
  /** Bytes that could not be read: a thread that touches them gets SIGBUS. */
  readonly poisonedBytes: number;
  /** Bytes in memory now, reads under way included. */
  readonly residentBytes: number;
  /** Bytes that were changed and are not written yet. */
  readonly dirtyBytes: number;
  /** Bytes that `withPinned` keeps in memory. */
  readonly pinnedBytes: number;
  /** Bytes that may be in memory now: with a budget, what this pager has of it. */
  readonly limitBytes: number;
  /** Faults that waited because all memory was pinned or being written. */
  readonly roomWaits: number;
  /** Whether system calls on missing memory give EFAULT instead of waiting. */
  readonly userModeOnly: boolean;
  /** Whether a swap file is compressed; 'none' also without a swap file. */
  readonly compression: 'zstd' | 'none';
}

/** Pagers whose threads must be told when this thread ends. */
const openPagers = new Set<Pager>();
let leaveAll: () => void;
let endsWithProcess = false;

/** Tells the threads of all pagers when this thread ends, and after all that the program does then. */
function endWithProcess(): void {
  if (endsWithProcess) return;
  endsWithProcess = true;
  process.on('exit', () => leaveAll());
}

/** Milliseconds that a thread waits at its end until its pager is closed. */
const CLOSED_MOST_MS = 2000;
/** Part of the limit that may be pinned. */
const PINNED_PART = 0.5;

/**
 * Data in memory of which only a part is resident: the rest is read when it is touched, and evicted when memory
 * is short. Touch it from any thread of this process; each touch of missing data waits until it is read.
 *
 * @example
 * ```ts
 * import { fileSource, Pager } from 'userfaultfd/pager';
 *
 * const pager = await Pager.open({ source: fileSource(process.execPath), resident: 2 ** 20 });
 * console.log(String.fromCharCode(...pager.bytes.subarray(1, 4)));
 * await pager.close();
 * ```
 */
export class Pager extends PagerMemory implements AsyncDisposable {
  /** Bytes of a block. */
  readonly blockSize: number;
  /** Bytes that may be in memory; with a budget, of all its pagers together. */
  readonly resident: number;
  readonly #worker: Worker;
  /** Wakes the thread; closed when that has ended. */
  readonly #eventfd: number;
  readonly #counts: Float64Array;
  readonly #ending: Int32Array;
  readonly #userModeOnly: boolean;
  readonly #compression: 'zstd' | 'none';
  readonly #source: CustomSource | undefined;
  readonly #sink: Sink | undefined;
  readonly #onError: OnReadError;
  readonly #waiting = new Map<number, { resolve: () => void; reject: (error: unknown) => void }>();
  /** Calls of the program's source and sink that are under way. */
  readonly #calls = new Map<number, AbortController>();
  readonly #writable: boolean;
  /** Whether changes outlive the pager. */
  readonly #keeps: boolean;
  /** What may be pinned of a budget. */
  readonly #budgetPins: BudgetPins | undefined;
  #commands = 0;
  #pinned = 0;
  #broken: Error | undefined;
  #closing: Promise<void> | undefined;
  #discards = false;
  /** Whether the thread has ended. */
  #gone = false;

  private constructor(
    shared: SharedPager,
    worker: Worker,
    opened: PagerReport & { is: 'opened' },
    setup: Setup,
  ) {
    super(shared);
    this.#worker = worker;
    this.#eventfd = setup.plan.eventfd;
    this.#userModeOnly = opened.userModeOnly;
    this.#compression = opened.compression;
    this.blockSize = setup.plan.blockSize;
    this.resident = setup.plan.resident;
    this.#counts = new Float64Array(setup.plan.counts);
    this.#ending = new Int32Array(setup.plan.ending);
    this.#source = setup.source;
    this.#sink = setup.sink;
    this.#onError = setup.onError;
    this.#writable = setup.plan.writable !== undefined;
    this.#keeps = setup.plan.source.kind !== 'swap';
    this.#budgetPins = setup.plan.budget && new BudgetPins(setup.plan.budget);
    openPagers.add(this);
    endWithProcess();
    worker.on('message', (report: PagerReport) => this.#receive(report));
    worker.on('error', (error) => this.#breaks(error));
    worker.on('exit', () => {
      this.#gone = true;
      this.#breaks(
        this.closed ? invalidState('the pager was closed') : new Error("the pager's thread has ended"),
      );
    });
    // After the listeners, which refer to the thread again.
    worker.unref();
    if (this.#userModeOnly) {
      warn(
        'a pager without privileges: system calls on bytes that are not in memory give EFAULT; use withPinned ' +
          'around them (docs/guides/pager.md)',
      );
    }
  }

  /**
   * Opens a pager. Its thread does not keep the process alive.
   *
   * @throws RangeError, TypeError; UnsupportedError (no userfaultfd, or a kernel before Linux 5.14; 6.4 to write);
   *   UffdError; SourceError; JournalError and OverlayError (the file that changes go to cannot be used); Node's errors;
   *   the reason of `signal`
   */
  static open(options: PagerOptions): Promise<Pager> {
    checkPagerOptions(options);
    const { source, onError = 'retry', deadlineMs, writable = false, readAhead = READ_AHEAD } = options;
    const wants = writable === true ? {} : writable;
    return Pager.#start(options, {
      source: planOf(source),
      readAhead,
      // 0: at the first failure, and a read that is under way has no limit.
      deadlineMs: deadlineMs || Number.POSITIVE_INFINITY,
      poisonsAtOnce: onError === 'poison' || deadlineMs === 0,
      asks: typeof onError === 'function',
      writable: wants === false ? undefined : writablePlan(wants),
    });
  }

  /**
   * Memory of `length` bytes, zero at first, of which `resident` bytes are in memory: the rest is in a swap file.
   *
   * @throws as `open`; UnsupportedError also if `compress` is 'zstd', and there is no zstd
   */
  static anonymous(length: number, options: AnonymousPagerOptions): Promise<Pager> {
    checkAnonymousOptions(length, options);
    const { swap = tmpdir(), compress = 'auto', encrypt = false } = options;
    return Pager.#start(options, {
      source: { kind: 'swap', size: length, folder: resolve(swap), compress, encrypt },
      readAhead: READ_AHEAD,
      deadlineMs: Number.POSITIVE_INFINITY,
      poisonsAtOnce: false,
      asks: false,
      writable: writablePlan({ flushMs: 0 }),
    });
  }

  /**
   * Finishes what a pager has left undone that was killed while it wrote to a file: to call before the file is used by
   * anything else than a pager. (`open` with `writable` does the same.) It may itself be killed, and called again.
   *
   * @param path the file, or the overlay (`writable.to`)
   * @param options `journal`: as in `writable`, if the pager had one
   * @throws JournalError, Node's errors
   */
  static recover(path: string, options: { journal?: string } = {}): Recovery {
    if (typeof path !== 'string') throw wrongType('path', 'the path of a file', path);
    checkOptions(options, 'options');
    const { journal } = options;
    if (journal !== undefined && typeof journal !== 'string') throw wrongType('journal', 'a path', journal);
    return recover(path, options);
  }

  /**
   * A limit for several pagers, of any thread of the process: pass it to them as `resident`. What one of them does not
   * need, the others may use; if all need more, each gets the same part.
   *
   * @param bytes at most 8 TiB; each pager needs 16 of its blocks at least
   * @throws RangeError, TypeError
   */
  static budget(bytes: number): PagerBudget {
    return makeBudget(bytes);
  }

  static async #start(
    options: PagerOptions | AnonymousPagerOptions,
    wanted: Pick<PagerPlan, 'source' | 'readAhead' | 'deadlineMs' | 'poisonsAtOnce' | 'asks' | 'writable'>,
  ): Promise<Pager> {
    const { blockSize = BLOCK_SIZE, resident, userModeOnly = 'auto', record, signal } = options;
    signal?.throwIfAborted();
    checkRuntime(wanted.source.kind);
    const size = 'size' in wanted.source ? wanted.source.size : 0;
    if (size / blockSize > BLOCKS_MOST) throw outOfRange('blockSize', `larger, for ${size} bytes`, blockSize);
    const planned = {
      ...wanted,
      blockSize,
      resident: bytesOf(resident),
      budget: typeof resident === 'object' ? resident : undefined,
      userModeOnly,
      record: record === undefined || isAbsolute(record) ? record : resolve(record),
      ending: new SharedArrayBuffer(4),
      counts: new SharedArrayBuffer(8 * COUNTS.length),
    };
    installExitHandling();
    const eventfd = makeEventfd();
    if (eventfd < 0) throw new UffdError(eventfd, 'eventfd');
    const plan: PagerPlan = { ...planned, eventfd };
    let worker: Worker;
    try {
      worker = startThread('pager', { name: 'pager', stdin: false }, ENTRY);
    } catch (error) {
      closeDescriptor(eventfd);
      throw error;
    }
    const onError = 'onError' in options ? (options.onError ?? 'retry') : 'retry';
    const source = 'source' in options && !('kind' in options.source) ? options.source : undefined;
    const sink = 'writable' in options ? sinkOf(options.writable) : undefined;
    // Node delivers the last messages of a thread and its end at once, so it may have ended when `opened` is here.
    let hasEnded = false;
    const ended = new Promise<void>((resolve) => {
      worker.once('exit', () => {
        hasEnded = true;
        resolve();
      });
    });
    // Not by the thread: this side may write to it until then, and its number could be another file's.
    void ended.then(() => closeDescriptor(eventfd));
    const opened = await handshake(worker, plan, signal);
    if (signal?.aborted || hasEnded) {
      if (!hasEnded) {
        worker.postMessage({ is: 'close', id: 0 } satisfies PagerCommand);
        signalEventfd(eventfd);
      }
      await ended;
      munmap(opened.address, opened.length);
      throw signal?.aborted ? signal.reason : new Error("the pager's thread has ended while it was opened");
    }
    const users = new SharedArrayBuffer(SHARED_BYTES);
    const { address, length } = opened;
    const shared = { address, size: opened.size, mapped: length, users };
    return new Pager(shared, worker, opened, { plan, source, sink, onError });
  }

  /**
   * Reads a range ahead of any touch. Resolves when it is in memory, or as much of it as could be read.
   *
   * @throws RangeError if it is more than may be in memory
   */
  async prefetch(range: PagerRange = {}): Promise<void> {
    const { offset, length } = this.#checked(range);
    if (this.#blocksOf(offset, length) * this.blockSize > this.resident)
      throw outOfRange('length', `at most ${this.resident}, what may be in memory`, length);
    if (length > 0) await this.#ask({ is: 'ask', id: 0, offset, length, pin: false, write: false });
  }

  /**
   * Evicts a range: the next touch reads it again. Blocks that were changed are evicted when they have been written, which
   * may be after this has resolved.
   */
  async evict(range: PagerRange = {}): Promise<void> {
    const { offset, length } = this.#checked(range);
    if (length > 0) await this.#ask({ is: 'evict', id: 0, offset, length });
  }

  /**
   * Calls `use` while a range is in memory, and is not evicted: for system calls that may not fault (those of a pager
   * without privileges, O_DIRECT, io_uring). At most half of the resident limit can be pinned at a time.
   *
   * @param use gets the bytes; the range is unpinned when what it returns has settled
   * @throws RangeError; an Error if the range cannot be read, and then nothing is pinned: what was read stays in memory
   *   until it is evicted; what `use` throws
   */
  async withPinned<T>(
    range: PagerRange,
    use: (bytes: Uint8Array) => T | Promise<T>,
    options: PinOptions = {},
  ): Promise<T> {
    checkOptions(options, 'options');
    const { write = false } = options;
    const { offset, length } = this.#checked(range);
    checkFunction(use, 'use');
    if (write && !this.#writable)
      throw outOfRange('write', 'false: the pager was opened to read only', write);
    const blocks = this.#blocksOf(offset, length);
    const own = this.#pinned * this.blockSize;
    const room = this.#budgetPins?.room(own) ?? this.resident * PINNED_PART - own;
    if (blocks * this.blockSize > room)
      throw outOfRange(
        'length',
        `at most ${Math.floor(room / this.blockSize) * this.blockSize}, what may be pinned now`,
        length,
      );
    if (blocks === 0) return use(this.view(offset, length));
    this.#pinned += blocks;
    this.#budgetPins?.add(blocks * this.blockSize);
    try {
      await this.#ask({ is: 'ask', id: 0, offset, length, pin: true, write });
      try {
        return await use(this.view(offset, length));
      } finally {
        if (!this.closed) this.#send({ is: 'unpin', offset, length });
      }
    } finally {
      this.#pinned -= blocks;
      this.#budgetPins?.add(-blocks * this.blockSize);
    }
  }

  /**
   * Writes all changes made so far. When it resolves, they survive what `durability` says.
   *
   * @throws the error of the write: nothing is lost, and `flush` may be called again
   */
  async flush(): Promise<void> {
    if (this.#writable) await this.#ask({ is: 'flush', id: 0 });
  }

  /** Counts, of which those of memory are as of now. */
  get stats(): PagerStats {
    const count = (name: (typeof COUNTS)[number]): number => this.#counts[COUNTS.indexOf(name)] as number;
    const bytes = (name: (typeof COUNTS)[number]): number => count(name) * this.blockSize;
    return {
      faults: count('faults'),
      hits: count('hits'),
      writeFaults: count('writeFaults'),
      fetchedBytes: bytes('fetched'),
      aheadBytes: bytes('ahead'),
      aheadUsedBytes: bytes('aheadUsed'),
      evictedBytes: bytes('evicted'),
      writtenBytes: bytes('written'),
      failures: count('failures'),
      poisonedBytes: bytes('poisoned'),
      residentBytes: bytes('reserved'),
      dirtyBytes: bytes('dirty'),
      pinnedBytes: bytes('pinned'),
      limitBytes: bytes('limit'),
      roomWaits: count('roomWaits'),
      userModeOnly: this.#userModeOnly,
      compression: this.#compression,
    };
  }

  /**
   * Writes what has changed, and ends the pager. From then on the memory cannot be read: a thread that touches it, or
   * waits for it, gets SIGSEGV, which ends the process. So let no thread use it any more. Idempotent.
   *
   * @throws the error of `flush`, and the pager stays open; with `discard` changes that were not flushed are lost
   */
  close(options: { discard?: boolean } = {}): Promise<void> {
    checkOptions(options, 'options');
    const { discard = false } = options;
    // A call with `discard` does not wait for the writes of one without.
    if (this.#closing && (!discard || this.#discards)) return this.#closing;
    this.#discards = discard;
    const closing = this.#close(discard).catch((error) => {
      if (this.#closing === closing) this.#closing = undefined;
      throw error;
    });
    this.#closing = closing;
    return closing;
  }

  async #close(discard: boolean): Promise<void> {
    if (this.closed) return;
    // What is in a swap file is gone with the pager.
    if (!discard && this.#keeps) await this.flush();
    // Another call may have closed it meanwhile.
    if (this.closed) return;
    // As a user, so that the last view that is collected leaves the address space to this call.
    this.space.enter();
    openPagers.delete(this);
    await this.#ask({ is: 'close', id: 0 });
    this.space.close();
    await this.#worker.terminate();
    this.space.leave();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  // ---- messages ------------------------------------------------------------------------------------------

  #checked(range: PagerRange): { offset: number; length: number } {
    checkOptions(range, 'range');
    // Everything is meant by no range, and by no other mistake.
    if (Array.isArray(range) || Object.keys(range).some((name) => name !== 'offset' && name !== 'length'))
      throw wrongType('range', 'an object with offset and length', range);
    const { offset = 0 } = range;
    checkInteger(offset, 'offset', 0, this.size);
    const { length = this.size - offset } = range;
    checkInteger(length, 'length', 0, this.size - offset);
    return { offset, length };
  }

  #blocksOf(offset: number, length: number): number {
    if (length === 0) return 0;
    return Math.ceil((offset + length) / this.blockSize) - Math.floor(offset / this.blockSize);
  }

  #send(command: PagerCommand): void {
    if (this.#gone) return;
    this.#worker.postMessage(command);
    signalEventfd(this.#eventfd);
  }

  /** Sends a command, and resolves when the thread has answered. */
  #ask(command: Extract<PagerCommand, { id: number }>): Promise<void> {
    if (this.#broken) return Promise.reject(this.#broken);
    if (this.closed) return Promise.reject(invalidState('the pager is closed'));
    const id = ++this.#commands;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.ref();
      this.#send({ ...command, id });
    });
  }

  #receive(report: PagerReport): void {
    switch (report.is) {
      case 'done': {
        const waiting = this.#waiting.get(report.id);
        this.#waiting.delete(report.id);
        if (this.#waiting.size === 0) this.#worker.unref();
        if (report.error === undefined) waiting?.resolve();
        else waiting?.reject(receivedError(report.error));
        break;
      }
      case 'failing':
        this.#decide(report);
        break;
      case 'read':
        void this.#serve(report.id, async (signal) => {
          const bytes = new Uint8Array(report.length);
          await this.#source?.read(report.offset, bytes, signal);
          return bytes;
        });
        break;
      case 'write':
        void this.#serve(report.id, (signal) => this.#sink?.write(report.offset, report.bytes, signal));
        break;
      case 'sync':
        void this.#serve(report.id, () => this.#sink?.sync?.());
        break;
      case 'cancel':
        this.#calls.get(report.id)?.abort(new Error('not needed any more'));
        break;
      case 'broken':
        this.#breaks(receivedError(report.error));
        break;
      default:
    }
  }

  #decide({ offset, length, message }: ReadFailure): void {
    if (typeof this.#onError !== 'function') return;
    const decision: unknown = this.#onError({ offset, length, message });
    if (decision !== 'retry' && decision !== 'poison')
      throw wrongType('what onError returns', "'retry' or 'poison', and no promise", decision);
    if (!this.closed) this.#send({ is: 'decided', offset, length, poison: decision === 'poison' });
  }

  /** Calls the program's own source or sink, and answers. */
  async #serve(id: number, call: (signal: AbortSignal) => unknown): Promise<void> {
    const aborted = new AbortController();
    const { signal } = aborted;
    this.#calls.set(id, aborted);
    try {
      const bytes = await call(signal);
      if (!signal.aborted) this.#send({ is: 'answer', id, ...(bytes instanceof Uint8Array && { bytes }) });
    } catch (error) {
      if (!signal.aborted) this.#send({ is: 'answer', id, error: answerOf(error) });
    } finally {
      this.#calls.delete(id);
    }
  }

  /** This thread ends. If the process does, the pager's thread must not sleep any more, or the process would wait. */
  #leave(): void {
    if (this.#gone) return;
    if (!isMainThread) {
      // The process goes on, and other threads may wait for this memory: it is closed, as by `close`.
      this.#send({ is: 'close', id: 0 });
      Atomics.wait(this.#ending, 0, 0, CLOSED_MOST_MS);
      return;
    }
    Atomics.store(this.#ending, 0, Ending.PROCESS);
    signalEventfd(this.#eventfd);
  }

  static #leaveAll(): void {
    for (const pager of openPagers) pager.#leave();
  }

  static {
    leaveAll = () => Pager.#leaveAll();
  }

  /** The thread has ended, or failed. */
  #breaks(error: unknown): void {
    openPagers.delete(this);
    this.#broken ??= error as Error;
    if (!this.closed) this.space.close();
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }
}

/** What a program's source or sink has thrown, which may be anything, in a form that can be posted. */
function answerOf(error: unknown): NonNullable<(PagerCommand & { is: 'answer' })['error']> {
  const { message, permanent, code } = (error ?? {}) as Record<string, unknown>;
  return {
    message: typeof message === 'string' ? message : describe(error),
    permanent: permanent === true,
    code: typeof code === 'string' ? code : undefined,
  };
}

function describe(error: unknown): string {
  try {
    return String(error);
  } catch {
    return 'it has thrown something that has no text';
  }
}

interface Setup {
  readonly plan: PagerPlan;
  readonly source: CustomSource | undefined;
  readonly sink: Sink | undefined;
  readonly onError: OnReadError;
}

function planOf(source: PagerSource): SourcePlan {
  if ('kind' in source) return source;
  const { size, parallel = PARALLEL, identity } = source;
  return { kind: 'program', size, parallel, identity };
}

function writablePlan({ to, durability = 'process', flushMs = FLUSH_MS, journal }: Writable): WritablePlan {
  const plan = { durability, flushMs, journal: journal === undefined ? undefined : resolve(journal) };
  if (typeof to === 'string') return { ...plan, to: { kind: 'overlay', path: resolve(to) } };
  return { ...plan, to: { kind: to === undefined ? 'source' : 'program' } };
}

function sinkOf(writable: boolean | Writable | undefined): Sink | undefined {
  const to = typeof writable === 'object' ? writable.to : undefined;
  return typeof to === 'object' ? to : undefined;
}

/** @throws UnsupportedError where a pager's thread does not work: on Deno, and on Bun with a remote file */
function checkRuntime(kind: SourcePlan['kind']): void {
  const { bun, deno } = process.versions;
  const other = deno
    ? `Deno ${deno}`
    : bun && (kind === 'http' || kind === 'chunks')
      ? `Bun ${bun}`
      : undefined;
  if (other === undefined) return;
  throw new UnsupportedError(
    `a pager${deno ? '' : ' of a remote file'} runs on Node, and this is ${other} (docs/runtimes.md)`,
  );
}

/** The error that a pager's thread has posted. */
function receivedError({ name, message, code, stack }: PostedError): Error {
  const error = name === 'SourceError' ? new SourceError(message, true) : new Error(message);
  return Object.assign(error, { name, ...(code && { code }), ...(stack && { stack }) });
}

/** Waits until a pager's thread has opened. @throws what the opening throws */
async function handshake(
  worker: Worker,
  plan: PagerPlan,
  signal: AbortSignal | undefined,
): Promise<PagerReport & { is: 'opened' }> {
  const abort = (): void => worker.postMessage({ is: 'close', id: 0 } satisfies PagerCommand);
  signal?.addEventListener('abort', abort);
  try {
    return await new Promise((resolve, reject) => {
      worker.once('error', reject);
      worker.once('exit', () => reject(new Error("the pager's thread has ended while it was opened")));
      worker.once('message', (report: PagerReport) => {
        if (report.is === 'opened') resolve(report);
        else reject(report.is === 'refused' ? receivedError(report.error) : new Error(report.is));
      });
      worker.postMessage({ is: 'open', plan } satisfies PagerCommand);
    });
  } catch (error) {
    throw signal?.aborted ? signal.reason : error;
  } finally {
    signal?.removeEventListener('abort', abort);
  }
}
