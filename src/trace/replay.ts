// Runs a trace again: the same core, and the same handler if there is one, against the recorded answers. The trace
// says what the program asked for from outside of its handler; inside, the handler decides, or where none is given,
// the trace.
//
// Rules:
//  - A replay depends on nothing but the trace and the handler.
//  - It ends at the first call that differs, and says what was expected, what came, and which fault it was about.
//  - A handler is compared by what it does itself. If the trace has to make a call that answers a fault in its place, that is a
//    difference; calls of the program's outside of its handler are made as the trace has them, and counted.

import { checkFunction, checkInteger, checkOptions, wrongType } from '../arguments.js';
import { Op } from '../core.js';
import { isPromise } from '../failures.js';
import { modeNames } from '../features.js';
import type { FaultHandler, Pagefault } from '../handler.js';
import { Note } from '../kernel.js';
import { WAITS } from '../loop.js';
import { fillOptions } from '../options.js';
import { recordOf } from '../page-record.js';
import { Userfaultfd } from '../userfaultfd.js';
import { Kind } from './codec.js';
import { chunkTold, originOf, rangeTold } from './origin.js';
import { Owed } from './owed.js';
import { TraceError, type TraceMeta, TraceReader } from './reader.js';
import { type Difference, Playback, SOURCE_FIELD } from './replaying.js';

/** Makes the handler of a replay: the one that was recorded, to see whether it does the same again. */
export type HandlerFactory = (uffd: Userfaultfd, meta: TraceMeta) => FaultHandler;

export interface ReplayResult {
  /** Everything was the same, to the end of the trace. */
  readonly identical: boolean;
  /** Records that were the same. */
  readonly records: number;
  readonly faults: number;
  /**
   * Calls that resolve, wake or claim, that the handler did not make, and that were made as the trace has them: those of
   * the program outside of its handler. 0 without a handler of one's own.
   */
  readonly performed: number;
  /** The first call that differs, the fault that was being answered then, and what the handler threw, if it did. */
  readonly difference?: Difference & { readonly fault?: Pagefault; readonly error?: unknown };
  /** Why the trace ends before its time, where it was cut or damaged. */
  readonly damage?: string;
}

export interface ReplayOptions {
  /**
   * How long a handler that answers after it has returned is waited for, in milliseconds; default 100. A fault that it
   * has not answered when the trace does is a difference.
   */
  patienceMs?: number;
}

/**
 * Replays a trace, and closes its reader.
 *
 * @example
 * ```ts
 * import { answerFromSource, simulate } from 'userfaultfd/testing';
 * import { replay, TraceReader, TraceWriter } from 'userfaultfd/trace';
 *
 * const record = TraceWriter.toFile('sim.trace');
 * await simulate({ seed: 7, record, handler: (world) => answerFromSource(world) });
 *
 * const { identical, difference } = await replay(TraceReader.fromFile('sim.trace'));
 * console.log(identical, difference);
 * ```
 *
 * @param factory makes the handler to replay with; default: one that does what the trace says
 * @throws TraceError where the trace does not say how its userfaultfd came to be; what `factory` throws; TypeError
 */
export async function replay(
  reader: TraceReader,
  factory?: HandlerFactory,
  options: ReplayOptions = {},
): Promise<ReplayResult> {
  if (!(reader instanceof TraceReader)) throw wrongType('reader', 'a TraceReader', reader);
  if (factory !== undefined) checkFunction(factory, 'factory');
  checkOptions(options, 'options');
  const { patienceMs = PATIENCE_MS } = options;
  checkInteger(patienceMs, 'patienceMs', 0, PATIENCE_MOST_MS);
  const playback = new Playback(reader);
  const run = new Run(playback, reader.meta, factory, patienceMs);
  try {
    await run.go();
  } finally {
    run.end();
    reader.close();
  }
  const { difference } = playback;
  return {
    identical: !difference,
    records: playback.used,
    faults: run.faults,
    performed: run.performed,
    ...(difference ? { difference: { ...difference, ...run.particulars() } } : {}),
    ...(reader.damage === undefined ? {} : { damage: reader.damage }),
  };
}

const PATIENCE_MS = 100;
const PATIENCE_MOST_MS = 2 ** 31 - 1;
/** Operations that have a source, and the options of most. */
const SOURCED: ReadonlySet<Op> = new Set([Op.copy, Op.move]);
const NO_OPTIONS = fillOptions(0);

class Run {
  faults = 0;
  performed = 0;
  /** The fault that is with the handler. */
  #fault: Pagefault | undefined;
  /** What the handler has thrown, or a promise of its rejected with, and the trace does not have. */
  #thrown: { readonly error: unknown; readonly fault: Pagefault | undefined } | undefined;
  /** Faults that the handler owes an answer. */
  readonly #owed = new Owed();
  /** A call of the program's is made as the trace has it. */
  #performing = false;
  readonly #playback: Playback;
  readonly #meta: TraceMeta;
  readonly #factory: HandlerFactory | undefined;
  readonly #patienceMs: number;
  #patienceLeftMs: number;
  #uffd: Userfaultfd | undefined;
  #handler: FaultHandler | undefined;
  /** Bytes to copy in place of those that were copied; their contents do not matter. */
  #bytes = new Uint8Array();

  constructor(playback: Playback, meta: TraceMeta, factory: HandlerFactory | undefined, patienceMs: number) {
    this.#playback = playback;
    this.#meta = meta;
    this.#factory = factory;
    this.#patienceMs = patienceMs;
    this.#patienceLeftMs = patienceMs;
    playback.program = () => this.#perform();
    playback.noted = (code, first, second) => this.#noted(code, first, second);
  }

  /** What is known of a difference besides. */
  particulars(): { fault?: Pagefault; error?: unknown } {
    const fault = this.#fault ?? this.#thrown?.fault ?? this.#owed.blamed;
    return { ...(fault ? { fault } : {}), ...(this.#thrown ? { error: this.#thrown.error } : {}) };
  }

  async go(): Promise<void> {
    const playback = this.#playback;
    try {
      this.#uffd = this.#origin();
    } catch (error) {
      // It failed when it was recorded too.
      if (playback.peek() < 0 || playback.difference) return;
      throw new TraceError(`the description of this trace cannot be replayed: ${(error as Error).message}`);
    }
    this.#handler = this.#factory ? this.#watched(this.#make(this.#uffd)) : this.#counted(this.#recorded());
    while (!playback.difference) {
      const kind = playback.peek();
      if (kind < 0 || playback.over) break;
      if (kind === Kind.READY || kind === Kind.DUE) this.#callBack(kind);
      else if (kind < Kind.NOTE) playback.differ('nothing: the program is at rest');
      else if (!(await this.#leftToProgram(kind - Kind.NOTE))) this.#perform();
    }
    playback.difference ??= this.#owed.left();
  }

  #make(uffd: Userfaultfd): FaultHandler {
    const handler = this.#factory?.(uffd, this.#meta);
    if (typeof (handler as FaultHandler | undefined)?.pagefault === 'function')
      return handler as FaultHandler;
    throw wrongType('what factory(uffd, meta) returns', 'a handler with pagefault', handler);
  }

  /** Lets go of what is left; nothing is compared any more. */
  end(): void {
    this.#playback.over = true;
    this.#uffd?.close();
  }

  #origin(): Userfaultfd {
    const origin = originOf(this.#meta);
    if (!origin) throw new TypeError('it does not say how the userfaultfd came to be');
    const kernel = this.#playback.kernel();
    const { options, features } = origin;
    if (origin.how === 'open') {
      return Userfaultfd.open({ ...options, features, optional: origin.optional ?? [], kernel });
    }
    const ranges = (origin.ranges ?? []).map(rangeTold);
    const { pid } = options;
    const chunks = (origin.pages ?? []).flatMap((text) => chunkTold(text) ?? []);
    const pages = recordOf(chunks);
    return Userfaultfd.wrap(origin.fd as number, {
      features,
      ranges: ranges.map((range) => ({ ...range, pages })),
      kernel,
      ...(pid ? { pid } : {}),
    });
  }

  #callBack(kind: number): void {
    const playback = this.#playback;
    const id = playback.codec.number(0);
    const callback = playback.callbacks.get(id);
    if (!callback) {
      playback.differ('nothing: there is no such callback');
      return;
    }
    playback.take();
    if (kind === Kind.DUE) playback.callbacks.delete(id);
    try {
      callback();
    } catch {
      // An error of the handler's, which was an uncaught exception when it was recorded.
    }
  }

  /** Whether the program makes the next call by itself: a handler may answer after it has returned. */
  async #leftToProgram(code: number): Promise<boolean> {
    if (!this.#factory || code > Note.CLAIM) return false;
    const { used } = this.#playback;
    const owed = this.#owed.covers(...this.#range());
    const until = performance.now() + (owed ? this.#patienceMs : this.#patienceLeftMs);
    do {
      await new Promise((resolve) => (globalThis.setImmediate ?? setTimeout)(resolve));
      if (this.#playback.used === used) continue;
      this.#patienceLeftMs = this.#patienceMs;
      return true;
    } while (performance.now() < until);
    // A program that calls from elsewhere is not waited for as long the next time.
    if (!owed) this.#patienceLeftMs /= 2;
    return false;
  }

  /** What the next record, a note, is about: where, and how many bytes. */
  #range(): [start: bigint, length: number] {
    const { codec } = this.#playback;
    return [codec.words[0] as bigint, codec.integer(1)];
  }

  /** Makes the call that the next record tells. */
  #perform(): void {
    const { used, codec } = this.#playback;
    const code = codec.kind - Kind.NOTE;
    if (this.#factory && code <= Note.CLAIM) {
      if (code !== Note.CLAIM && !this.#owed.answerInPlace(...this.#range(), this.#playback.nextCall())) {
        this.#playback.differ('nothing: the handler has not answered this fault');
        return;
      }
      this.performed++;
    }
    const nested = this.#performing;
    this.#performing = true;
    try {
      this.#call();
    } catch {
      // It threw when it was recorded too.
    } finally {
      this.#performing = nested;
    }
    // A call that is refused before it is told to the port would be tried for ever.
    if (this.#playback.used === used) this.#playback.differ('nothing: such a call is refused');
  }

  #call(): void {
    const uffd = this.#uffd as Userfaultfd;
    const { codec } = this.#playback;
    const code = codec.kind - Kind.NOTE;
    const start = codec.words[0] as bigint;
    const length = codec.integer(1);
    if (code <= Op.writeProtect) this.#resolve(uffd, code as Op, start, length, codec.number(2));
    else if (code === Note.WAKE) uffd.wake(start, length);
    else if (code === Note.CLAIM) uffd.claim(start, length);
    else if (code === Note.REGISTER) this.#register(uffd, start, length);
    else if (code === Note.UNREGISTER) uffd.unregister(start, length);
    else if (code === Note.START) uffd.start(this.#handler as FaultHandler, { wait: waitOf(length) });
    else if (code === Note.POLL) uffd.poll(length === 1 ? this.#handler : undefined);
    else if (code === Note.STOP) uffd.stop();
    else if (code === Note.RELEASE) uffd.release();
    else if (code === Note.CLOSE) uffd.close();
    else this.#playback.differ('nothing: no callback is under way');
  }

  #register(uffd: Userfaultfd, start: bigint, length: number): void {
    if (this.#playback.codec.number(2) === 0) {
      uffd.forget(start, length);
      return;
    }
    const { codec } = this.#playback;
    const pageSize = codec.integer(3);
    uffd.register(start, length, [...modeNames(codec.number(2))], pageSize ? { pageSize } : {});
  }

  #resolve(uffd: Userfaultfd, op: Op, start: bigint, length: number, bits: number): void {
    const options = bits === 0 ? NO_OPTIONS : fillOptions(bits);
    const source = SOURCED.has(op) ? (this.#playback.codec.words[SOURCE_FIELD] as bigint) : 0n;
    if (op === Op.copy) uffd.copy(start, source || this.#room(length), length, options);
    else if (op === Op.zero) uffd.zero(start, length, options);
    else if (op === Op.continue) uffd.continue(start, length, options);
    else if (op === Op.poison) uffd.poison(start, length, options);
    else if (op === Op.move) uffd.move(start, source, length, options);
    else uffd.writeProtect(start, length, options.writeProtect === true, options);
  }

  #room(length: number): Uint8Array {
    if (this.#bytes.length < length) this.#bytes = new Uint8Array(length);
    return this.#bytes;
  }

  // ---- handlers ------------------------------------------------------------------------------------------

  /** A handler that does what the trace says. */
  #recorded(): FaultHandler {
    const follow = (): number => {
      const playback = this.#playback;
      while (!playback.difference && playback.peek() >= Kind.NOTE) {
        if (playback.codec.kind === Kind.NOTE + Note.ANSWER) {
          const answer = playback.codec.number(0);
          if (answer === 3) throw new Error('the handler threw when it was recorded');
          return answer;
        }
        this.#perform();
      }
      return 0;
    };
    const told = (): void => void follow();
    return {
      pagefault: () => follow() === 1,
      removed: told,
      unmapped: told,
      remapped: told,
      forked: told,
      closed: told,
    };
  }

  #counted(handler: FaultHandler): FaultHandler {
    return Object.assign(Object.create(handler) as FaultHandler, {
      pagefault: (fault: Pagefault, uffd: Userfaultfd) => {
        this.faults++;
        this.#fault = fault;
        return handler.pagefault(fault, uffd);
      },
    });
  }

  /** The handler, and beside it what is told of a difference: who answers which fault, and what is thrown. */
  #watched(handler: FaultHandler): FaultHandler {
    const counted = this.#counted(handler);
    const passed = Object.create(handler) as FaultHandler;
    for (const name of ['answered', 'removed', 'unmapped', 'remapped', 'forked', 'closed'] as const) {
      if (!handler[name]) continue;
      passed[name] = (...given: unknown[]) =>
        this.#heard(undefined, () => (handler[name] as (...all: unknown[]) => void).apply(handler, given));
    }
    passed.pagefault = (fault, uffd) => {
      const owed = this.#owed.begin(fault);
      const said = this.#heard(fault, () => this.#byHandler(() => counted.pagefault(fault, uffd)));
      this.#owed.said(owed, said);
      return said;
    };
    return passed;
  }

  /** Calls of the handler's own, also inside of a call that the trace has made: `start`, for one. */
  #byHandler<T>(callback: () => T): T {
    const outside = this.#performing;
    this.#performing = false;
    try {
      return callback();
    } finally {
      this.#performing = outside;
    }
  }

  /** Makes a callback, and keeps what it throws, at once or later. */
  #heard<T>(fault: Pagefault | undefined, callback: () => T): T {
    try {
      const said = callback();
      if (isPromise(said)) said.then(undefined, (error) => this.#threw(error, fault));
      return said;
    } catch (error) {
      this.#threw(error, fault);
      throw error;
    }
  }

  #threw(error: unknown, fault: Pagefault | undefined): void {
    if (this.#factory && !this.#playback.done) this.#thrown ??= { error, fault };
  }

  /** A note came as the trace has it. */
  #noted(code: Note, first: bigint, second: number): void {
    if (code <= Note.WAKE || code === Note.UNREGISTER) {
      if (!this.#performing) this.#owed.answered(first, second);
    } else if (code === Note.ANSWER || code === Note.STOP) {
      // What was thrown, the trace has as well.
      this.#fault = undefined;
      this.#thrown = undefined;
    }
  }
}

function waitOf(index: number): (typeof WAITS)[number] {
  return WAITS[index] ?? 'poll';
}
