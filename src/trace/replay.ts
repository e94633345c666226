// Runs a trace again: the core, and a handler if one is given, get the recorded results. Calls that the program made
// outside of its handler are repeated from the trace. Calls inside the handler come from the given handler, or from the
// trace if none is given.
//
// Rules:
//  - A replay depends only on the trace and the handler.
//  - It ends at the first call that differs, and reports the expected call, the call that was made, and the fault.
//  - Only the handler's own calls count as its answers. If a fault of the handler is answered only by a call from the
//    trace, that is a difference. Calls that the program made outside of its handler are made from the trace, and
//    counted.

import { Operation as Op, SourceKind } from '../bindings/core.js';
import { checkFunction, checkInteger, checkOptions, wrongType } from '../errors/arguments.js';
import { modeNames } from '../kernel/features.js';
import { Note } from '../kernel/port.js';
import { WAITS } from '../uffd/event-loop.js';
import type { Pagefault } from '../uffd/handler.js';
import { isPromise } from '../uffd/handler-errors.js';
import { fillOptions, sourceOptions } from '../uffd/options.js';
import { recordOf } from '../uffd/page-states.js';
import { type FaultHandler, Userfaultfd } from '../uffd/userfaultfd.js';
import { Kind, noteOf } from './codec.js';
import { HandlerRules } from './handler-rules.js';
import { decodeChunk, decodeRange, type OpenParameters, openParametersOf } from './open-parameters.js';
import { TraceError, type TraceMeta, TraceReader } from './reader.js';
import { type Difference, ReplayKernel, SOURCE_FIELD } from './replay-port.js';
import { UnresolvedFaults } from './unresolved-faults.js';

/** Makes the handler of a replay. */
export type HandlerFactory = (uffd: Userfaultfd, meta: TraceMeta) => FaultHandler;

export interface ReplayResult {
  /** Whether all calls were the same, to the end of the trace. */
  readonly identical: boolean;
  /** Number of records that were the same. */
  readonly records: number;
  readonly faults: number;
  /**
   * How many calls that resolve, wake or claim were made as the trace has them, because the program made them outside
   * of its handler. 0 without a handler of your own.
   */
  readonly performed: number;
  /** The first call that differs, with the fault that was being answered and what the handler threw, if it did. */
  readonly difference?: Difference & { readonly fault?: Pagefault; readonly error?: unknown };
  /** Why the trace ended early, if it was cut or damaged. */
  readonly damage?: string;
}

export interface ReplayOptions {
  /**
   * How long to wait for a handler that answers after it has returned, in milliseconds; default 100. It is a difference
   * if the trace answers a fault that the handler has not answered by then.
   */
  patienceMs?: number;
}

/**
 * Replays a trace, and closes its reader. The trace of a foreign handler (`recordHandler`) is not run again: each of its
 * calls is compared with what the kernel's rules allow.
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
 * @param factory makes the handler to replay with; by default, a handler repeats the recorded handler's calls
 * @throws TraceError if the trace does not say how its userfaultfd was opened, or is not of this library (`replayWithGuest`
 *   of `userfaultfd/testing`); what `factory` throws; TypeError
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
  if (reader.meta.guest !== undefined) {
    reader.close();
    throw new TraceError(
      'this trace is of a program that was checked with a simulated guest: replayWithGuest of userfaultfd/testing replays it',
    );
  }
  const playback = new ReplayKernel(reader);
  const origin = openParametersOf(reader.meta);
  if (origin?.how === 'handler') return replayForeign(playback, reader, origin, factory);
  const run = new Replay(playback, reader.meta, factory, patienceMs);
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

/** The replay of a foreign handler's trace: each call is compared with the kernel's rules. Closes the reader. */
function replayForeign(
  playback: ReplayKernel,
  reader: TraceReader,
  origin: OpenParameters,
  factory: HandlerFactory | undefined,
): ReplayResult {
  try {
    if (factory)
      throw new TraceError('this trace has the calls of a foreign handler; no other can make them again');
    const rules = new HandlerRules(playback, origin);
    rules.go();
    const { difference } = playback;
    return {
      ...{ identical: !difference, records: playback.used, faults: rules.faults, performed: 0 },
      ...(difference && { difference }),
      ...(reader.damage === undefined ? {} : { damage: reader.damage }),
    };
  } finally {
    reader.close();
  }
}

const PATIENCE_MS = 100;
const PATIENCE_MOST_MS = 2 ** 31 - 1;
/** Turns of the event loop that a handler has at least, once its time is up. */
const TURNS_LEAST = 20;
/** Operations that have a source. NO_OPTIONS is shared by all operations without options. */
const SOURCED: ReadonlySet<Op> = new Set([Op.COPY, Op.MOVE]);
const NO_OPTIONS = fillOptions(0);

class Replay {
  faults = 0;
  performed = 0;
  /** The fault that the handler is answering. */
  #fault: Pagefault | undefined;
  /** An error that the handler threw, or that its promise rejected with, if the trace does not have the same error. */
  #thrown: { readonly error: unknown; readonly fault: Pagefault | undefined } | undefined;
  /** Faults that the handler has not answered yet. */
  readonly #owed = new UnresolvedFaults();
  /** Whether the replay is making a call of the program. */
  #performing = false;
  readonly #playback: ReplayKernel;
  readonly #meta: TraceMeta;
  readonly #factory: HandlerFactory | undefined;
  readonly #patienceMs: number;
  #patienceLeftMs: number;
  #uffd: Userfaultfd | undefined;
  #handler: FaultHandler | undefined;
  /** Bytes to copy instead of the original ones; their contents do not matter. */
  #bytes = new Uint8Array();

  constructor(
    playback: ReplayKernel,
    meta: TraceMeta,
    factory: HandlerFactory | undefined,
    patienceMs: number,
  ) {
    this.#playback = playback;
    this.#meta = meta;
    this.#factory = factory;
    this.#patienceMs = patienceMs;
    this.#patienceLeftMs = patienceMs;
    playback.program = () => this.#perform();
    playback.noted = (code, first, second) => this.#noted(code, first, second);
  }

  /** The fault and the error that belong to a difference. */
  particulars(): { fault?: Pagefault; error?: unknown } {
    const fault = this.#fault ?? this.#thrown?.fault ?? this.#owed.blamed;
    return { ...(fault ? { fault } : {}), ...(this.#thrown ? { error: this.#thrown.error } : {}) };
  }

  async go(): Promise<void> {
    const playback = this.#playback;
    try {
      this.#uffd = this.#origin();
    } catch (error) {
      // The call failed when it was recorded, too.
      if (playback.peek() < 0 || playback.difference) return;
      throw new TraceError(`the description of this trace cannot be replayed: ${(error as Error).message}`);
    }
    this.#handler = this.#factory ? this.#watched(this.#make(this.#uffd)) : this.#counted(this.#recorded());
    while (!playback.difference) {
      const kind = playback.peek();
      if (kind < 0 || playback.over) break;
      if (kind === Kind.READY || kind === Kind.DUE) this.#callBack(kind);
      else if (noteOf(kind) < 0) playback.differ('nothing: the program is at rest');
      else if (!(await this.#leftToProgram(noteOf(kind)))) this.#perform();
    }
    playback.difference ??= this.#owed.answeredInPlace();
  }

  #make(uffd: Userfaultfd): FaultHandler {
    const handler = this.#factory?.(uffd, this.#meta);
    if (typeof (handler as FaultHandler | undefined)?.pagefault === 'function')
      return handler as FaultHandler;
    throw wrongType('what factory(uffd, meta) returns', 'a handler with pagefault', handler);
  }

  /** Ends the replay: closes what is left, and compares no more calls. */
  end(): void {
    this.#playback.over = true;
    this.#uffd?.close();
  }

  #origin(): Userfaultfd {
    const origin = openParametersOf(this.#meta);
    if (!origin) throw new TypeError('it does not say how the userfaultfd came to be');
    const kernel = this.#playback.kernel();
    const { options, features } = origin;
    if (origin.how === 'open') {
      return Userfaultfd.open({ ...options, features, optional: origin.optional ?? [], kernel });
    }
    const ranges = (origin.ranges ?? []).map(decodeRange);
    const { pid } = options;
    const chunks = (origin.pages ?? []).flatMap((text) => decodeChunk(text) ?? []);
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
      // An error of the handler, which was an uncaught exception in the recorded run.
    }
  }

  /**
   * Waits for a handler that answers after it has returned. Returns whether the program, not the handler, makes the
   * next call.
   */
  async #leftToProgram(code: number): Promise<boolean> {
    if (!this.#factory || code > Note.CLAIM) return false;
    const { used } = this.#playback;
    const owed = this.#owed.covers(...this.#range());
    const until = performance.now() + (owed ? this.#patienceMs : this.#patienceLeftMs);
    let turns = 0;
    do {
      await new Promise((resolve) => (globalThis.setImmediate ?? setTimeout)(resolve));
      if (this.#playback.used === used) continue;
      this.#patienceLeftMs = this.#patienceMs;
      return true;
      // A busy machine may let the time pass without a turn in which the handler could have answered.
    } while (performance.now() < until || ++turns < TURNS_LEAST);
    // Calls of the program outside of its handler shorten the next wait.
    if (!owed) this.#patienceLeftMs /= 2;
    return false;
  }

  /** The range that the next record, a note, is about. */
  #range(): [start: bigint, length: number] {
    const { codec } = this.#playback;
    return [codec.words[0] as bigint, codec.integer(1)];
  }

  /** Makes the call that the next record holds. */
  #perform(): void {
    const { used, codec } = this.#playback;
    const code = noteOf(codec.kind);
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
      // The call threw when it was recorded, too.
    } finally {
      this.#performing = nested;
    }
    // A call that is refused before it reaches the port would be retried for ever.
    if (this.#playback.used === used) this.#playback.differ('nothing: such a call is refused');
  }

  #call(): void {
    const uffd = this.#uffd as Userfaultfd;
    const { codec } = this.#playback;
    const code = noteOf(codec.kind);
    const start = codec.words[0] as bigint;
    const length = codec.integer(1);
    if (code <= Op.WRITEPROTECT) this.#resolve(uffd, code as Op, start, length, codec.number(2));
    else if (code === Note.WAKE) uffd.wake(start, length);
    else if (code === Note.CLAIM) uffd.claim(start, length);
    else if (code === Note.REGISTER) this.#register(uffd, start, length);
    else if (code === Note.UNREGISTER) uffd.unregister(start, length);
    else if (code === Note.START)
      uffd.start(this.#handler as FaultHandler, { wait: WAITS[length] ?? 'poll' });
    else if (code === Note.POLL) uffd.poll(length === 1 ? this.#handler : undefined);
    else if (code === Note.STOP) uffd.stop();
    else if (code === Note.RELEASE) uffd.release();
    else if (code === Note.CLOSE) uffd.close();
    else if (code === Note.SOURCE) this.#source(uffd, start, length);
    else if (code === Note.WINDOW) uffd.window(start, sourceOptions(codec.number(2)).options.window ?? 1);
    else if (code === Note.AHEAD) uffd.fillAhead(start, length, fillOptions(codec.number(2)));
    else this.#playback.differ('nothing: no callback is under way');
  }

  #source(uffd: Userfaultfd, start: bigint, length: number): void {
    if (length === 0) {
      uffd.forgetSources();
      return;
    }
    const { codec } = this.#playback;
    const { kind, options } = sourceOptions(codec.number(2));
    const src = kind === SourceKind.ZEROS ? 'zeros' : (codec.words[SOURCE_FIELD] as bigint);
    uffd.answerFrom(start, length, src, options);
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
    if (op === Op.COPY) uffd.copy(start, source || this.#room(length), length, options);
    else if (op === Op.ZEROPAGE) uffd.zero(start, length, options);
    else if (op === Op.CONTINUE) uffd.continue(start, length, options);
    else if (op === Op.POISON) uffd.poison(start, length, options);
    else if (op === Op.MOVE) uffd.move(start, source, length, options);
    else uffd.writeProtect(start, length, options.writeProtect === true, options);
  }

  #room(length: number): Uint8Array {
    if (this.#bytes.length < length) this.#bytes = new Uint8Array(length);
    return this.#bytes;
  }

  // ---- handlers ------------------------------------------------------------------------------------------

  /** A handler that does what the recorded one did. */
  #recorded(): FaultHandler {
    const follow = (): number => {
      const playback = this.#playback;
      while (!playback.difference && noteOf(playback.peek()) >= 0) {
        if (noteOf(playback.codec.kind) === Note.ANSWER) {
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
      answered: told,
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
      answered: (...counts: Parameters<NonNullable<FaultHandler['answered']>>) => {
        this.faults += counts[0];
        handler.answered?.(...counts);
      },
    });
  }

  /** Wraps the handler to keep, for a difference, which faults it answers and what it throws. */
  #watched(handler: FaultHandler): FaultHandler {
    const counted = this.#counted(handler);
    const passed = Object.create(counted) as FaultHandler;
    for (const name of ['answered', 'removed', 'unmapped', 'remapped', 'forked', 'closed'] as const) {
      if (!counted[name]) continue;
      passed[name] = (...given: unknown[]) =>
        this.#heard(undefined, () => (counted[name] as (...all: unknown[]) => void).apply(counted, given));
    }
    passed.pagefault = (fault, uffd) => {
      const owed = this.#owed.begin(fault);
      const said = this.#heard(fault, () => this.#byHandler(() => counted.pagefault(fault, uffd)));
      this.#owed.returned(owed, said);
      return said;
    };
    return passed;
  }

  /**
   * Runs a callback of the handler. Its calls count as the handler's own, even if it runs during a call from the trace,
   * for example `start`.
   */
  #byHandler<T>(callback: () => T): T {
    const outside = this.#performing;
    this.#performing = false;
    try {
      return callback();
    } finally {
      this.#performing = outside;
    }
  }

  /** Runs a callback, and keeps the error that it throws or that its promise rejects with. */
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

  /** To call when a note matched the trace. */
  #noted(code: Note, first: bigint, second: number): void {
    if (code <= Note.WAKE || code === Note.UNREGISTER) {
      if (!this.#performing) this.#owed.answered(first, second);
    } else if (code === Note.ANSWER || code === Note.STOP) {
      // The trace has the same error.
      this.#fault = undefined;
      this.#thrown = undefined;
    }
  }
}
