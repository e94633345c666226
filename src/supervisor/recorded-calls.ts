// Answers the trapped calls of a handler that is recorded on the real kernel.
//
// Rules:
//  - Reads and ioctls of a userfaultfd are made for the handler, one after the other. All other calls are let through.
//  - A read of a blocking descriptor, or of a socket on which the hand-off is expected, waits without an answer.

import { closeDescriptor, isNonBlocking } from '../../shim/descriptors.js';
import { E } from '../sim/abi.js';
import { linkOf, type Vector, vectorsOf } from './caller.js';
import { type Begin, HandlerDescriptors, type Refused } from './handler-descriptors.js';
import type { Launcher } from './launcher.js';
import type { RecordedUffd } from './recorded-uffd.js';
import type { SeenHandOffs } from './seen-hand-offs.js';
import { type CallName, F_SETFL } from './system-calls.js';
import { TrappedCall } from './trapped-call.js';

const O_NONBLOCK = 0x800;
const RWF_NOWAIT = 8;
const CLOSE_RANGE_CLOEXEC = 4;
const FD_MOST = 2 ** 20;

/** A receiving call that waits for the hand-off. `socket`: a duplicate of the handler's. */
interface HeldReceive {
  readonly id: bigint;
  readonly socket: number;
}

export class RecordedCalls {
  readonly descriptors: HandlerDescriptors;
  readonly #launcher: Launcher;
  readonly #call: TrappedCall;
  readonly #handOffs: SeenHandOffs;
  #receives: HeldReceive[] = [];
  /** Threads whose last call was let through although it is one of a userfaultfd. */
  readonly #letThrough = new Map<number, RecordedUffd>();

  constructor(launcher: Launcher, handOffs: SeenHandOffs, begin: Begin, refused: Refused) {
    this.#launcher = launcher;
    this.#call = new TrappedCall(launcher.channel.notification);
    this.#handOffs = handOffs;
    this.descriptors = new HandlerDescriptors(begin, refused);
  }

  /** What held calls wait for. */
  get awaited(): number[] {
    return [
      ...this.descriptors.recorded.filter(({ held }) => held.length > 0).map(({ fd }) => fd),
      ...this.#receives.map(({ socket }) => socket),
    ];
  }

  /** Answers the call that was received last. Returns whether what held calls wait for may have changed. */
  handle(): boolean {
    const { name, pid } = this.#call;
    if (this.#letThrough.size > 0) this.#callsAgain(pid);
    const result = name === undefined ? undefined : this.#result(name, pid);
    if (result === 'held') return true;
    if (result === undefined) this.#launcher.letThrough();
    else this.#launcher.reply(result);
    return name !== 'read' && name !== 'ioctl';
  }

  #callsAgain(pid: number): void {
    this.#letThrough.get(pid)?.callsAgain(pid);
    this.#letThrough.delete(pid);
  }

  /** The result of a call. Undefined: the kernel carries it out. 'held': the answer comes later. */
  #result(name: CallName, pid: number): number | 'held' | undefined {
    const call = this.#call;
    const fd = call.signed(0);
    switch (name) {
      case 'read':
      case 'readv':
      case 'preadv2': {
        const uffd = this.descriptors.find(pid, fd);
        return uffd && this.#read(uffd, pid, name);
      }
      case 'ioctl': {
        const uffd = this.descriptors.find(pid, fd);
        const result = uffd?.ioctl(pid, call.unsigned(1), call.argument(2));
        if (uffd && result === undefined) this.#letThrough.set(pid, uffd);
        return result;
      }
      case 'fcntl':
        return this.#setFlags(pid, fd);
      case 'recvmsg':
        return this.#receive(pid, fd);
      case 'close':
        this.descriptors.closing(pid, fd);
        return undefined;
      case 'close_range':
        if (!(call.unsigned(2) & CLOSE_RANGE_CLOEXEC))
          this.descriptors.closing(pid, call.unsigned(0), Math.min(call.unsigned(1), FD_MOST));
        return undefined;
      case 'dup2':
      case 'dup3':
        if (fd !== call.signed(1)) this.descriptors.closing(pid, call.signed(1));
        return undefined;
      case 'execve':
      case 'execveat':
        this.descriptors.executing(pid);
        return undefined;
      default:
        return undefined;
    }
  }

  #read(uffd: RecordedUffd, pid: number, name: CallName): number | 'held' {
    const call = this.#call;
    const vectors: readonly Vector[] | undefined =
      name === 'read'
        ? [{ buffer: call.argument(1), length: call.argument(2) }]
        : vectorsOf(pid, call.argument(1), call.argument(2));
    if (!vectors) return E.FAULT;
    const waits = uffd.blocking && !(name === 'preadv2' && call.signed(5) & RWF_NOWAIT);
    // Reads of one descriptor are answered in their order.
    const result =
      waits && uffd.held.length > 0 ? E.AGAIN : uffd.read(this.#launcher.channel, call.id, pid, vectors);
    if (result !== E.AGAIN || !waits) return result;
    uffd.held.push({ id: call.id, pid, vectors });
    return 'held';
  }

  /** F_SETFL: the file's O_NONBLOCK stays set, and its reads wait if the handler wants that. */
  #setFlags(pid: number, fd: number): number | undefined {
    if (this.#call.signed(1) !== F_SETFL) return undefined;
    const uffd = this.descriptors.find(pid, fd);
    if (!uffd) return undefined;
    uffd.blocking = (this.#call.unsigned(2) & O_NONBLOCK) === 0;
    return uffd.blocking ? 0 : undefined;
  }

  /** Looks at the message that the handler is about to receive. */
  #receive(pid: number, fd: number): 'held' | undefined {
    if (!linkOf(pid, fd).startsWith('socket:')) return undefined;
    const socket = this.descriptors.duplicate(pid, fd);
    if (socket < 0) return undefined;
    if (this.#handOffs.look(socket, !isNonBlocking(socket))) {
      closeDescriptor(socket);
      return undefined;
    }
    this.#receives.push({ id: this.#call.id, socket });
    return 'held';
  }

  /** Answers the calls that wait, as far as there is something to read. */
  answerHeld(): void {
    const { channel } = this.#launcher;
    for (const uffd of this.descriptors.recorded)
      uffd.answerHeld(channel, (result, id) => this.#launcher.reply(result, id));
    this.#receives = this.#receives.filter(({ id, socket }) => {
      if (channel.isWaiting(id) && !this.#handOffs.look(socket, true)) return true;
      closeDescriptor(socket);
      this.#launcher.letThrough(id);
      return false;
    });
  }

  close(): void {
    for (const { socket } of this.#receives.splice(0)) closeDescriptor(socket);
    this.descriptors.close();
  }
}
