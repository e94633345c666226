// Runs a trace again: the same core, and the same handler if there is one, against the recorded answers. The trace
// says what the program asked for from outside of its handler; inside, the handler decides, or where none is given,
// the trace.
//
// Rules:
//  - A replay depends on nothing but the trace and the handler.
//  - It ends at the first call that differs, and says what was expected, what came, and which fault it was about.

import { Op } from '../core.js';
import { modeNames } from '../features.js';
import type { FaultHandler, Pagefault } from '../handler.js';
import { Note } from '../kernel.js';
import { WAITS } from '../loop.js';
import { fillOptions } from '../options.js';
import { Userfaultfd } from '../userfaultfd.js';
import { Kind } from './codec.js';
import { originOf, rangeTold } from './origin.js';
import { TraceError, type TraceMeta, type TraceReader } from './reader.js';
import { type Difference, Playback, SOURCE_FIELD } from './replaying.js';

/** Makes the handler of a replay: the one that was recorded, to see whether it does the same again. */
export type HandlerFactory = (uffd: Userfaultfd, meta: TraceMeta) => FaultHandler;

export interface ReplayResult {
  /** Everything was the same, to the end of the trace. */
  readonly identical: boolean;
  /** Records that were the same. */
  readonly records: number;
  readonly faults: number;
  /** The first call that differs, and the fault that was being answered then. */
  readonly difference?: Difference & { readonly fault?: Pagefault };
  /** Why the trace ends before its time, where it was cut or damaged. */
  readonly damage?: string;
}

export interface ReplayOptions {
  /**
   * How long a handler that answers after it has returned is waited for, in milliseconds; default 100. What it has
   * not done by then is done in its place, as the trace has it.
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
 * @throws TraceError where the trace does not say how its userfaultfd came to be; what `factory` throws
 */
export async function replay(
  reader: TraceReader,
  factory?: HandlerFactory,
  options: ReplayOptions = {},
): Promise<ReplayResult> {
  const playback = new Playback(reader);
  const run = new Run(playback, reader.meta, factory, options.patienceMs ?? PATIENCE_MS);
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
    ...(difference ? { difference: { ...difference, ...(run.fault ? { fault: run.fault } : {}) } } : {}),
    ...(reader.damage === undefined ? {} : { damage: reader.damage }),
  };
}

const PATIENCE_MS = 100;
/** Operations that have a source, and the options of most. */
const SOURCED: ReadonlySet<Op> = new Set([Op.copy, Op.move]);
const NO_OPTIONS = fillOptions(0);

class Run {
  faults = 0;
  /** The fault that is with the handler. */
  fault: Pagefault | undefined;
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
    this.#handler = this.#watched(this.#factory?.(this.#uffd, this.#meta) ?? this.#recorded());
    while (!playback.difference) {
      const kind = playback.peek();
      if (kind < 0 || playback.over) return;
      if (kind === Kind.READY || kind === Kind.DUE) this.#callBack(kind);
      else if (kind < Kind.NOTE) playback.differ('nothing: the program is at rest');
      else if (!(await this.#leftToProgram(kind - Kind.NOTE))) this.#perform();
    }
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
    return Userfaultfd.wrap(origin.fd as number, { features, ranges, kernel, ...(pid ? { pid } : {}) });
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
    const until = performance.now() + this.#patienceLeftMs;
    do {
      await new Promise((resolve) => (globalThis.setImmediate ?? setTimeout)(resolve));
      if (this.#playback.used === used) continue;
      this.#patienceLeftMs = this.#patienceMs;
      return true;
    } while (performance.now() < until);
    // A program that calls from elsewhere is not waited for as long the next time.
    this.#patienceLeftMs /= 2;
    return false;
  }

  /** Makes the call that the next record tells. */
  #perform(): void {
    const { used } = this.#playback;
    try {
      this.#call();
    } catch {
      // It threw when it was recorded too.
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

  /** The handler, and beside it what is told of a difference. */
  #watched(handler: FaultHandler): FaultHandler {
    return Object.assign(Object.create(handler) as FaultHandler, {
      pagefault: (fault: Pagefault, uffd: Userfaultfd) => {
        this.faults++;
        this.fault = fault;
        const answer = handler.pagefault(fault, uffd);
        if (!this.#playback.difference) this.fault = undefined;
        return answer;
      },
    });
  }
}

function waitOf(index: number): (typeof WAITS)[number] {
  return WAITS[index] ?? 'poll';
}
