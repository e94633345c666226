// Replays the trace of a handler that was checked in a simulated kernel: makes an equal guest, and makes the recorded
// calls of the handler again. It needs neither the handler nor Linux.

import { wrongType } from '../errors/arguments.js';
import { MESSAGE_BYTES } from '../sim/abi.js';
import { Noted, Script } from '../sim/chooser.js';
import { INJECTIONS } from '../sim/injection.js';
import type { Failure } from '../testing/failure.js';
import { Kind, noteOf } from '../trace/codec.js';
import { TraceError, TraceReader } from '../trace/reader.js';
import { type Call, describe, numberOf } from '../trace/record-format.js';
import type { ReplayResult } from '../trace/replay.js';
import type { Difference } from '../trace/replay-port.js';
import { Guest, type GuestOptions, MESSAGES_AT, MESSAGES_MOST } from './guest.js';

/** What a replay with an equal guest comes to. */
export interface GuestReplay extends ReplayResult {
  /** What the guest found broken, as in the recorded run. Undefined: its trace does not have what ended that run. */
  readonly failure?: Failure;
}

/** How many calls before a difference are reported. */
const BEFORE_KEPT = 8;
/** Most bytes of memory, and most of anything else, that a description may ask for. */
const BYTES_MOST = 2 ** 26;
const COUNT_MOST = 100_000;
/** The first of the fields of an ioctl's record that hold its struct, and of those of a poll that hold descriptors. */
const STRUCT_FIELD = 3;
const POLLFD_FIELD = 3;
const POLLFDS_MOST = 3;
const EAGAIN = -11;

/** Whether a trace is of a handler that was checked in a simulated kernel: `replayWithGuest` replays it. */
export function isOfGuest({ meta }: TraceReader): boolean {
  return meta.guest !== undefined;
}

/**
 * Replays the trace that a failure of `checkHandler({ simulated: true, evidence })` has left: makes an equal guest, and
 * the recorded calls of the handler again, and closes the reader. It needs neither the handler nor Linux.
 *
 * @throws TraceError if the trace is not of such a check; TypeError
 */
export function replayWithGuest(reader: TraceReader): GuestReplay {
  if (!(reader instanceof TraceReader)) throw wrongType('reader', 'a TraceReader', reader);
  try {
    return new GuestReplayer(reader).go();
  } finally {
    reader.close();
  }
}

class GuestReplayer {
  readonly #reader: TraceReader;
  readonly #guest: Guest;
  /** Bytes that the next calls of COPY read, in their order. */
  readonly #sources: Uint8Array[] = [];

  constructor(reader: TraceReader) {
    this.#reader = reader;
    const { choices, ...options } = makingOf(reader.meta.guest);
    this.#guest = new Guest(options, new Noted(new Script(choices)), () => this.#sources.shift());
  }

  go(): GuestReplay {
    const guest = this.#guest;
    const before: string[] = [];
    let difference: Difference | undefined;
    let records = 0;
    while (!difference && this.#reader.next()) {
      const { call } = this.#reader;
      const expected = describe(call);
      const came = guest.failure ? 'nothing: the run is over' : this.#make(call);
      if (came === undefined) records++;
      else difference = { index: records, expected, came, before };
      if (difference) break;
      before.push(expected);
      if (before.length > BEFORE_KEPT) before.shift();
    }
    const { damage } = this.#reader;
    if (!difference && damage === undefined) guest.conclude();
    const { failure, faults } = guest;
    return {
      ...{ identical: !difference, records, faults, performed: 0 },
      ...(difference && { difference }),
      ...(damage !== undefined && { damage }),
      ...(failure && !difference && { failure }),
    };
  }

  /** Makes a call again. Returns what came, as text, if it differs. */
  #make(call: Call): string | undefined {
    const { kind } = call;
    if (kind === Kind.ADDRESS_OF) this.#sources.push(new Uint8Array());
    else if (kind === Kind.CONTENT) this.#addContent(this.#reader.payload);
    else if (kind === Kind.AFTER) this.#guest.port.after(numberOf(call.words[0] ?? 0n), () => {});
    else if (kind === Kind.POLL) return this.#poll(call);
    else if (kind === Kind.READ || kind === Kind.READ_EMPTY) return this.#read(call);
    else if (kind >= Kind.IOCTL && noteOf(kind) < 0) return this.#ioctl(call);
    else return 'nothing: no handler of a simulated guest makes such a call';
    return undefined;
  }

  #addContent(payload: Uint8Array): void {
    const before = this.#sources.pop() ?? new Uint8Array();
    const bytes = new Uint8Array(before.length + payload.length);
    bytes.set(before);
    bytes.set(payload, before.length);
    this.#sources.push(bytes);
  }

  #ioctl(call: Call): string | undefined {
    const count = (call.words.length - STRUCT_FIELD) / 2;
    const struct = new BigUint64Array(this.#guest.scratch.buffer, 0, count);
    struct.set(call.words.slice(STRUCT_FIELD, STRUCT_FIELD + count));
    const [fd, request] = [integer(call, 0), Number(BigInt.asUintN(32, call.words[1] ?? 0n))];
    const result = this.#call(() => this.#guest.port.ioctl(fd, request, 0));
    this.#sources.length = 0;
    const words = [...call.words.slice(0, STRUCT_FIELD + count), ...struct];
    words[2] = BigInt.asUintN(64, BigInt(result));
    return differing(call, words);
  }

  #read(call: Call): string | undefined {
    const [fd, length] = [integer(call, 0), Math.min(integer(call, 1), MESSAGES_MOST * MESSAGE_BYTES)];
    const result = this.#call(() => this.#guest.port.read(fd, MESSAGES_AT, length));
    const recorded = call.kind === Kind.READ_EMPTY ? EAGAIN : integer(call, 2);
    const { payload } = this.#reader;
    const bytes = new Uint8Array(this.#guest.scratch.buffer, MESSAGES_AT, Math.max(result, 0));
    const same = result === recorded && bytes.every((byte, at) => byte === payload[at]);
    return same
      ? undefined
      : `read(${fd}, ${length}) = ${result}${result === recorded ? ', other messages' : ''}`;
  }

  #poll(call: Call): string | undefined {
    const { scratch, port } = this.#guest;
    const view = new DataView(scratch.buffer);
    const count = Math.min(integer(call, 0), POLLFDS_MOST);
    const halves = count * 2;
    // A descriptor, and what is wanted of it; what happened is cleared.
    for (let half = 0; half < halves; half++)
      view.setInt32(half * 4, integer(call, POLLFD_FIELD + half) & (half % 2 === 0 ? -1 : 0xffff), true);
    const result = this.#call(() => port.poll(0, count, integer(call, 1)));
    const words = call.words.map((word, field) =>
      field >= POLLFD_FIELD && field < POLLFD_FIELD + halves
        ? BigInt.asUintN(64, BigInt(view.getInt32((field - POLLFD_FIELD) * 4, true)))
        : word,
    );
    words[2] = BigInt.asUintN(64, BigInt(result));
    return differing(call, words);
  }

  /** Makes a call on the guest, which may end its run. */
  #call(act: () => number): number {
    let result = 0;
    this.#guest.attempt(() => {
      result = act();
    });
    return result;
  }
}

function integer({ words }: Call, field: number): number {
  return Number(BigInt.asIntN(32, words[field] ?? 0n));
}

/** What came, as text, if these fields differ from the recorded ones. */
function differing(call: Call, words: readonly bigint[]): string | undefined {
  if (words.every((word, field) => word === call.words[field])) return undefined;
  const [came, recorded] = [describe({ ...call, words }), describe(call)];
  return came === recorded ? `${came}, with another struct afterwards` : came;
}

// ---- the description ---------------------------------------------------------------------------------------

function isCount(value: unknown): value is number {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) <= COUNT_MOST;
}

/** Whether these are probabilities, or scripts, of known injections. */
function areInjections(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false;
  return Object.entries(value).every(
    ([name, rule]) =>
      (INJECTIONS as readonly string[]).includes(name) &&
      (typeof rule === 'number' || (Array.isArray(rule) && rule.every(isCount))),
  );
}

/** What an equal guest is made from. */
function makingOf(value: unknown): GuestOptions & { choices: readonly number[] } {
  const making = (typeof value === 'object' && value !== null ? value : {}) as Record<string, unknown>;
  const { pageSize, pages, inject, regions, threads, actions, steps, choices } = making;
  const sound =
    (pageSize === 4096 || pageSize === 2 ** 21) &&
    [pages, regions, threads, actions, steps].every((count) => isCount(count) && count > 0) &&
    pageSize * (pages as number) <= BYTES_MOST &&
    areInjections(inject) &&
    Array.isArray(choices) &&
    choices.every((choice) => Number.isInteger(choice) && choice >= 0);
  if (!sound) throw new TraceError('the description of this trace has no guest that can be made again');
  return making as unknown as GuestOptions & { choices: readonly number[] };
}
