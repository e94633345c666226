// One userfaultfd of a handler that is recorded: makes the handler's calls on a duplicate of the descriptor, and records
// them.
//
// Rules:
//  - The handler gets what the kernel has returned, and nothing else. Its structs are written back if they have changed.
//  - COPY reads the supervisor's memory, so the bytes are fetched first. The trace has the handler's addresses.
//  - Calls that only the handler's own process can make are let through. Their results are in the handler's structs at
//    the thread's next call, and are recorded then.

import { closeDescriptor, isNonBlocking, setNonBlocking } from '../../shim/descriptors.js';
import { linuxKernel } from '../../shim/linux.js';
import type { NotificationChannel } from '../../shim/seccomp.js';
import { PAYLOAD_MOST } from '../bindings/trace.js';
import type { Kernel, KernelPort } from '../kernel/port.js';
import { E, MESSAGE_BYTES, REQUEST } from '../sim/abi.js';
import { recordingKernel } from '../trace/recording-port.js';
import type { TraceWriter } from '../trace/writer.js';
import { memory, type Vector } from './caller.js';

/** Where structs and messages lie in the recorder's memory. */
const STRUCT_AT = 0;
const STRUCT_BYTES_MOST = 96;
const MESSAGES_AT = 128;
/** Most bytes of one recorded read. A longer read is recorded as several. */
const READ_MOST = PAYLOAD_MOST;
/** The words of UFFDIO_COPY's struct. */
const SOURCE = 1;
const LENGTH = 2;
/** Most bytes of a COPY that are fetched. A longer one is let through. */
const COPY_MOST = 2 ** 26;
const COPY_BUFFER = 2 ** 21;
const EVENT_FORK = 0x13;
const FORK_FD_AT = 8;
/** Stands for the result of a call that was let through, and never seen. */
const UNSEEN = -61;

/** A read of a blocking descriptor that waits for a message. */
interface HeldRead {
  readonly id: bigint;
  readonly pid: number;
  readonly vectors: readonly Vector[];
}

/** A call that was let through, whose result is not known yet. */
interface LetThrough {
  readonly request: number;
  readonly address: number;
  readonly given: Uint8Array<ArrayBuffer>;
}

export class RecordedUffd {
  readonly fd: number;
  readonly writer: TraceWriter;
  /** Whether the handler's reads wait for messages. The descriptor itself never does while it is recorded. */
  blocking: boolean;
  /** Calls that were let through and whose results could not be recorded. */
  unseen = 0;
  readonly held: HeldRead[] = [];
  /** Called when a call is let through. */
  onLetThrough: (name: 'MOVE' | 'a COPY without readable bytes, or of more than 64 MiB') => void = () => {};
  readonly #port: KernelPort;
  readonly #bytes = new Uint8Array(MESSAGES_AT + READ_MOST);
  readonly #words = new BigUint64Array(this.#bytes.buffer);
  readonly #before = new BigUint64Array(STRUCT_BYTES_MOST / 8);
  readonly #letThrough = new Map<number, LetThrough>();
  #copied = new Uint8Array(COPY_BUFFER);
  /** The buffer whose address is known. */
  #addressed: Uint8Array | undefined;
  #address = 0n;
  /** The result of a call that the handler itself has made, and its struct. */
  #made: { readonly after: Uint8Array; readonly result: number } | undefined;

  /** `fd`: a duplicate of the handler's descriptor, which this object owns. */
  constructor(fd: number, writer: TraceWriter, meta: Record<string, unknown>) {
    this.fd = fd;
    this.writer = writer;
    this.blocking = !isNonBlocking(fd);
    if (this.blocking) setNonBlocking(fd);
    this.#port = recordingKernel(this.#kernel(), writer, meta, true).attach(this.#bytes);
  }

  /** Linux, but COPY takes the bytes that were fetched, and calls that the handler has made are not made again. */
  #kernel(): Kernel {
    const linux = linuxKernel();
    return {
      pageSize: linux.pageSize,
      attach: (linear) => {
        const port = linux.attach(linear);
        const ioctl = port.ioctl.bind(port);
        port.ioctl = (fd, request, at) => {
          if (this.#made) {
            this.#bytes.set(this.#made.after, STRUCT_AT);
            return this.#made.result;
          }
          if (request !== REQUEST.COPY) return ioctl(fd, request, at);
          const source = this.#words[SOURCE] as bigint;
          this.#words[SOURCE] = this.#copiedAt(port);
          const result = ioctl(fd, request, at);
          this.#words[SOURCE] = source;
          return result;
        };
        return port;
      },
    };
  }

  /** The address of the fetched bytes. */
  #copiedAt(port: KernelPort): bigint {
    if (this.#addressed !== this.#copied) {
      this.#addressed = this.#copied;
      this.#address = port.addressOf(this.#copied);
    }
    return this.#address;
  }

  // ---- ioctl -----------------------------------------------------------------------------------------------

  /** Makes an ioctl of a thread. Undefined: it is to be let through. */
  ioctl(pid: number, request: number, address: number): number | undefined {
    const size = (request >>> 16) & 0x3fff;
    if (size === 0 || size > STRUCT_BYTES_MOST) return undefined;
    const struct = this.#bytes.subarray(STRUCT_AT, size);
    // The kernel gives the error.
    if (memory.read(pid, address, struct) < 0) return undefined;
    const moves = request === REQUEST.MOVE;
    if (moves || (request === REQUEST.COPY && !this.#fetch(pid))) {
      this.onLetThrough(moves ? 'MOVE' : 'a COPY without readable bytes, or of more than 64 MiB');
      this.#letThrough.set(pid, { request, address, given: struct.slice() });
      return undefined;
    }
    const words = size >>> 3;
    for (let word = 0; word < words; word++) this.#before[word] = this.#words[word] as bigint;
    const result = this.#port.ioctl(this.fd, request, STRUCT_AT);
    let changed = false;
    for (let word = 0; word < words; word++) changed ||= this.#before[word] !== this.#words[word];
    return changed && memory.write(pid, address, struct) < 0 ? E.FAULT : result;
  }

  /** Fetches the bytes that COPY is to install. False: the kernel has to say what is wrong with them. */
  #fetch(pid: number): boolean {
    const [source, length] = [Number(this.#words[SOURCE]), Number(this.#words[LENGTH])];
    if (length === 0 || length > COPY_MOST) return false;
    if (length > this.#copied.length) this.#copied = new Uint8Array(length);
    return memory.read(pid, source, this.#copied.subarray(0, length)) === 0;
  }

  /** A thread makes another call: records its call that was let through. */
  callsAgain(pid: number): void {
    const call = this.#letThrough.get(pid);
    if (!call) return;
    this.#letThrough.delete(pid);
    const after = new Uint8Array(call.given.length);
    // The last word is the output, which the kernel has written.
    const same = after.length - 8;
    const known =
      memory.read(pid, call.address, after) === 0 &&
      Buffer.compare(after.subarray(0, same), call.given.subarray(0, same)) === 0;
    this.#record(call, known ? after : call.given, known ? resultOf(after) : UNSEEN);
  }

  #record({ request, given }: LetThrough, after: Uint8Array, result: number): void {
    if (result === UNSEEN) this.unseen++;
    this.#bytes.set(given, STRUCT_AT);
    this.#made = { after, result };
    this.#port.ioctl(this.fd, request, STRUCT_AT);
    this.#made = undefined;
  }

  // ---- read ------------------------------------------------------------------------------------------------

  /** Reads messages into a thread's memory. −EAGAIN: there is none. `id`: the call. */
  read(channel: NotificationChannel, id: bigint, pid: number, vectors: readonly Vector[]): number {
    const total = vectors.reduce((sum, { length }) => sum + length, 0);
    let done = 0;
    for (;;) {
      const most = Math.min(total - done, READ_MOST);
      if (done > 0 && most < MESSAGE_BYTES) return done;
      const result = this.#port.read(this.fd, MESSAGES_AT, most);
      if (result <= 0) return done > 0 ? done : result;
      const messages = this.#bytes.subarray(MESSAGES_AT, MESSAGES_AT + result);
      for (let at = 0; at < result; at += MESSAGE_BYTES)
        if (messages[at] === EVENT_FORK) giveChild(channel, id, messages.subarray(at));
      if (!scatter(pid, vectors, done, messages)) return E.FAULT;
      done += result;
      if (result + MESSAGE_BYTES <= most) return done;
    }
  }

  /** Answers the reads that wait, as far as there are messages. */
  answerHeld(channel: NotificationChannel, reply: (result: number, id: bigint) => void): void {
    for (let first = this.held[0]; first; first = this.held[0]) {
      const { id, pid, vectors } = first;
      // A thread that was killed must not take messages with it.
      const result = channel.isWaiting(id) ? this.read(channel, id, pid, vectors) : undefined;
      if (result === E.AGAIN) return;
      this.held.shift();
      if (result !== undefined) reply(result, id);
    }
  }

  /** The handler has closed it: ends the trace. */
  close(): void {
    for (const call of this.#letThrough.values()) this.#record(call, call.given, UNSEEN);
    this.#letThrough.clear();
    this.#port.close(this.fd);
    this.writer.close();
  }
}

/** The result of a call, from the output in its struct: the bytes that were done, or −errno. */
function resultOf(struct: Uint8Array<ArrayBuffer>): number {
  const words = new BigInt64Array(struct.buffer);
  const done = Number(words.at(-1));
  if (done < 0) return done;
  return done === Number(words[LENGTH]) ? 0 : E.AGAIN;
}

/** A fork's message names a descriptor of this process. The handler gets it instead. */
function giveChild(channel: NotificationChannel, id: bigint, message: Uint8Array): void {
  const view = new DataView(message.buffer, message.byteOffset);
  const fd = view.getUint32(FORK_FD_AT, true);
  view.setUint32(FORK_FD_AT, channel.giveDescriptor(id, fd), true);
  closeDescriptor(fd);
}

/** Writes bytes to a thread's vectors, which hold `done` bytes already. */
function scatter(pid: number, vectors: readonly Vector[], done: number, bytes: Uint8Array): boolean {
  let [skip, at] = [done, 0];
  for (const { buffer, length } of vectors) {
    if (skip >= length) {
      skip -= length;
      continue;
    }
    const some = bytes.subarray(at, at + length - skip);
    if (memory.write(pid, buffer + skip, some) < 0) return false;
    at += some.length;
    skip = 0;
    if (at === bytes.length) return true;
  }
  return true;
}
