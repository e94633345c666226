// Answers a handler's trapped calls from the simulated guest.
//
// Rules:
//  - The guest's threads run only within trapped calls, so a handler with one thread makes the same calls in every run.
//  - Calls on other descriptors are let through.
//  - A pipe stands for the userfaultfd. Before a wait is let through to the kernel, the pipe gets as many messages as
//    the userfaultfd has, so that the kernel's own poll, select and epoll see them.
//  - A time limit passes at once, in virtual time, if the wait is only for the userfaultfd and sockets: the supervisor
//    knows that it has sent nothing to them.

import { readSync, writeSync } from 'node:fs';
import { closeDescriptor, isNonBlocking } from '../../shim/descriptors.js';
import { makePipe } from '../../shim/seccomp.js';
import { E, MESSAGE_BYTES } from '../sim/abi.js';
import { Random } from '../sim/chooser.js';
import { kindOf, memory, ownLink, pidOf, threadCount, UFFD_LINK, vectorsOf } from './caller.js';
import { type Guest, MESSAGES_AT, MESSAGES_MOST } from './guest.js';
import type { Launcher } from './launcher.js';
import { type CallName, UFFD_TYPE } from './system-calls.js';
import { TrappedCall } from './trapped-call.js';
import { type Waiting, Waits } from './waits.js';

const RANDOM_BYTES_MOST = 4096;
const TIMER_ABSTIME = 1;
/** Reads in a row that find nothing, after which a handler that never waits counts as waiting. */
const EMPTY_READS = 64;
/** Most calls of one run. */
const CALLS_MOST = 50_000;

/** A read of a blocking descriptor that waits for a message. */
interface HeldRead {
  readonly id: bigint;
  readonly pid: number;
  readonly buffer: number;
  readonly length: number;
}

const PATH_MOST = 64;
const PAGE_BYTES = 4096;

function isRead(name: CallName): boolean {
  return name === 'read' || name === 'readv' || name === 'preadv2';
}

export class HandlerCalls {
  /** Whether the guest's threads are finished, and the handler waits. */
  over = false;
  /** Whether the handler waits, and nothing can happen unless another thread of it makes a call. */
  idle = false;
  /** How many calls the handler has made on the userfaultfd. */
  uses = 0;
  /** The thread that made the last call on the userfaultfd. */
  pid = 0;
  /** Whether the handler has sent a signal to the process that has connected. That process does not get it. */
  killsPeer = false;
  /** Whether the handler has tried to open a userfaultfd of its own. */
  ownUffd = false;
  /** Called when the handler has called listen(2). */
  listens: () => void = () => {};
  readonly #launcher: Launcher;
  readonly #call: TrappedCall;
  readonly #waits: Waits;
  #random = new Random(1);
  #guest: Guest | undefined;
  #ends: readonly [read: number, write: number] | undefined;
  #pipe = '';
  /** The pipe of the guest before. */
  #retired: { readonly ends: readonly [read: number, write: number]; readonly pipe: string } | undefined;
  /** Messages in the pipe, and in the userfaultfd when the pipe was filled last. */
  #inPipe = 0;
  #messages = 0;
  /** Whether a wait was let through, so that the pipe must have what the userfaultfd has. */
  #mirrors = false;
  #held: HeldRead[] = [];
  #emptyReads = 0;
  /** Descriptors that ioctls have used for the userfaultfd. */
  readonly #known = new Set<number>();
  /** Threads that have used the userfaultfd. Their sleeps take virtual time. */
  readonly #callers = new Set<number>();

  constructor(launcher: Launcher) {
    this.#launcher = launcher;
    this.#call = new TrappedCall(launcher.channel.notification);
    this.#waits = new Waits(this.#call);
  }

  /** Begins with a new process: its random bytes depend on the seed alone. */
  begin(seed: number): void {
    this.leave();
    this.#retire();
    this.#random = new Random(seed);
    this.ownUffd = false;
  }

  /** Serves a guest. Returns the descriptor to hand over. */
  enter(guest: Guest): number {
    this.leave();
    this.#guest = guest;
    this.#ends = makePipe();
    this.#pipe = ownLink(this.#ends[0]);
    return this.#ends[0];
  }

  /**
   * Forgets the guest. Until the next but one, its userfaultfd answers like that of a process that has exited, because
   * the handler may still use it.
   */
  leave(): void {
    if (this.#ends) {
      this.#retire();
      this.#retired = { ends: this.#ends, pipe: this.#pipe };
    }
    this.#ends = undefined;
    this.#guest = undefined;
    this.#held = [];
    this.#known.clear();
    this.#callers.clear();
    this.over = false;
    this.idle = false;
    this.killsPeer = false;
    this.uses = 0;
    this.#mirrors = false;
    [this.#inPipe, this.#messages, this.#emptyReads] = [0, 0, 0];
  }

  /** Closes the pipe of the guest before. */
  #retire(): void {
    for (const fd of this.#retired?.ends ?? []) closeDescriptor(fd);
    this.#retired = undefined;
  }

  /** The bytes of the handler's memory that COPY reads. */
  readonly readCaller = (address: number, length: number): Uint8Array | undefined => {
    const bytes = new Uint8Array(length);
    return memory.read(this.pid, address, bytes) === 0 ? bytes : undefined;
  };

  // ---- the call that was received ------------------------------------------------------------------------

  /** Answers the call that was received last. */
  handle(): void {
    const { name, pid } = this.#call;
    const result = name === undefined ? undefined : this.#result(name, pid);
    if (result === undefined) this.#launcher.letThrough();
    else if (result !== 'held') this.#launcher.reply(result);
    if (this.#guest) this.#release();
  }

  /** The result of a call. Undefined: the kernel carries it out. 'held': the answer comes later. */
  #result(name: CallName, pid: number): number | 'held' | undefined {
    switch (name) {
      case 'userfaultfd':
        this.ownUffd = true;
        return E.PERM;
      case 'listen':
        this.listens();
        return undefined;
      case 'getrandom':
        return this.#fillRandom(pid);
      case 'kill':
        return this.#signal(this.#call.signed(0));
      case 'pidfd_send_signal':
        return this.#signal(pidOf(pid, this.#call.signed(0)));
      case 'ioctl':
        return this.#ioctl(pid);
    }
    const guest = this.#guest;
    if (isRead(name) && this.#isRetired(pid)) return E.AGAIN;
    if (!guest || guest.failure) return undefined;
    if (isRead(name)) return this.#read(guest, pid, name);
    if (name === 'readlink') return this.#readLink(pid, 0);
    if (name === 'readlinkat') return this.#readLink(pid, 1);
    if (name === 'nanosleep' || name === 'clock_nanosleep') return this.#sleep(guest, pid, name);
    const waiting = this.#waits.of(name, pid, this.#pipe);
    return waiting && this.#wait(guest, waiting);
  }

  /** A link of /proc that says what a descriptor is. `first`: index of the path among the arguments. */
  #readLink(pid: number, first: number): number | undefined {
    const path = Buffer.alloc(PATH_MOST);
    // The rest of the page is read, too, but not the next page, which need not be there.
    const address = this.#call.argument(first);
    const there = path.subarray(0, Math.min(PATH_MOST, PAGE_BYTES - (address % PAGE_BYTES)));
    if (memory.read(pid, address, there) < 0) return undefined;
    const fd = /^\/proc\/(?:self|thread-self|\d+)\/fd\/(\d+)\0/.exec(there.toString('latin1'))?.[1];
    if (fd === undefined || kindOf(pid, Number(fd), this.#pipe) !== 'uffd') return undefined;
    const link = Buffer.from(UFFD_LINK).subarray(0, this.#call.argument(first + 2));
    const errno = memory.write(pid, this.#call.argument(first + 1), link);
    return errno < 0 ? errno : link.length;
  }

  #isRetired(pid: number): boolean {
    return this.#retired !== undefined && kindOf(pid, this.#call.signed(0), this.#retired.pipe) === 'uffd';
  }

  #fillRandom(pid: number): number | undefined {
    const length = this.#call.argument(1);
    if (length > RANDOM_BYTES_MOST) return undefined;
    const bytes = Uint8Array.from({ length }, () => this.#random.below(256));
    const errno = memory.write(pid, this.#call.argument(0), bytes);
    return errno < 0 ? errno : length;
  }

  /** A signal to the process that has connected is noted, and answered as if it had arrived. */
  #signal(target: number | undefined): number | undefined {
    if (target === undefined || target !== this.#launcher.connectorPid || this.#call.signed(1) === 0)
      return undefined;
    this.killsPeer = true;
    return 0;
  }

  /** Notes a call on the userfaultfd. */
  #uses(pid: number): void {
    this.pid = pid;
    this.idle = false;
    this.#callers.add(pid);
    if (++this.uses > CALLS_MOST) this.#guest?.stuck('busy', `${CALLS_MOST} calls were not enough`);
  }

  // ---- ioctl ---------------------------------------------------------------------------------------------

  #ioctl(pid: number): number | undefined {
    const fd = this.#call.signed(0);
    const request = this.#call.unsigned(1);
    const guest = this.#guest;
    // A request that returns a new userfaultfd, of /dev/userfaultfd: its number is 0, and its size, too.
    if (request === UFFD_TYPE << 8) {
      this.ownUffd = true;
      return E.PERM;
    }
    if (!guest) return this.#isRetired(pid) ? E.SRCH : undefined;
    if (!this.#known.has(fd)) {
      if (this.#isRetired(pid)) return E.SRCH;
      if (kindOf(pid, fd, this.#pipe) !== 'uffd') return undefined;
      this.#known.add(fd);
    }
    this.#uses(pid);
    this.#emptyReads = 0;
    const bytes = new Uint8Array(guest.scratch.buffer, 0, (request >>> 16) & 0x3fff);
    const address = this.#call.argument(2);
    if (memory.read(pid, address, bytes) < 0) return E.FAULT;
    const result = guest.attempt(() => guest.port.ioctl(guest.fd, request, 0));
    if (result === undefined) return E.SRCH;
    return memory.write(pid, address, bytes) < 0 ? E.FAULT : result;
  }

  // ---- read ----------------------------------------------------------------------------------------------

  #read(guest: Guest, pid: number, name: CallName): number | 'held' | undefined {
    if (kindOf(pid, this.#call.signed(0), this.#pipe) !== 'uffd') return undefined;
    this.#uses(pid);
    if (name !== 'read') return this.#readVectors(guest, pid);
    const [buffer, length] = [this.#call.argument(1), this.#call.argument(2)];
    const result = this.#readInto(guest, pid, buffer, length);
    if (result !== E.AGAIN) {
      this.#emptyReads = 0;
      return result;
    }
    if (!isNonBlocking((this.#ends as readonly number[])[0] as number))
      return this.#block(guest, { id: this.#call.id, pid, buffer, length });
    if (++this.#emptyReads >= EMPTY_READS && guest.finished) this.over = true;
    return result;
  }

  #readInto(guest: Guest, pid: number, buffer: number, length: number): number {
    const most = Math.min(length, MESSAGES_MOST * MESSAGE_BYTES);
    const result = guest.attempt(() => guest.port.read(guest.fd, MESSAGES_AT, most)) ?? E.AGAIN;
    if (result <= 0) return result;
    const bytes = new Uint8Array(guest.scratch.buffer, MESSAGES_AT, result);
    return memory.write(pid, buffer, bytes) < 0 ? E.FAULT : result;
  }

  #readVectors(guest: Guest, pid: number): number {
    const vectors = vectorsOf(pid, this.#call.argument(1), this.#call.argument(2));
    if (!vectors) return E.FAULT;
    let done = 0;
    for (const { buffer, length } of vectors) {
      if (length === 0) continue;
      const result = this.#readInto(guest, pid, buffer, length);
      if (result < 0) return done > 0 ? done : result;
      done += result;
      if (result < length) break;
    }
    return done;
  }

  /** Lets a read of a blocking descriptor wait. */
  #block(guest: Guest, read: HeldRead): number | 'held' {
    const dry = guest.wait(-1);
    if (guest.readable && !guest.failure) return this.#readInto(guest, read.pid, read.buffer, read.length);
    this.#held.push(read);
    if (dry !== undefined) this.#rest(guest, read.pid, dry, true);
    return 'held';
  }

  /** Answers held reads if there are messages, and makes the pipe show what the userfaultfd has. */
  #release(): void {
    const guest = this.#guest as Guest;
    while (this.#held.length > 0 && guest.readable && !guest.failure) {
      const { id, pid, buffer, length } = this.#held.shift() as HeldRead;
      this.#launcher.reply(this.#readInto(guest, pid, buffer, length), id);
    }
    if (this.#mirrors && guest.messages !== this.#messages) this.#mirror(guest);
  }

  /** Makes the pipe show what the userfaultfd has: a message for each new one, so that EPOLLET works. */
  #mirror(guest: Guest): void {
    const [from, to] = this.#ends as readonly [number, number];
    const more = guest.messages - this.#messages;
    this.#messages = guest.messages;
    if (this.#messages === 0) {
      if (this.#inPipe > 0) readSync(from, Buffer.alloc(this.#inPipe * MESSAGE_BYTES));
      this.#inPipe = 0;
    }
    const added = Math.min(more, MESSAGES_MOST - this.#inPipe);
    if (added <= 0) return;
    writeSync(to, Buffer.alloc(added * MESSAGE_BYTES));
    this.#inPipe += added;
  }

  // ---- waits ---------------------------------------------------------------------------------------------

  /** Virtual time passes, if the thread has used the userfaultfd. Other threads sleep on the kernel. */
  #sleep(guest: Guest, pid: number, name: CallName): number | undefined {
    if (!this.#callers.has(pid)) return undefined;
    const [flags, at] = name === 'nanosleep' ? [0, 0] : [this.#call.signed(1), 2];
    if (flags & TIMER_ABSTIME) return undefined;
    const limitMs = this.#waits.milliseconds(pid, this.#call.argument(at));
    if (limitMs === undefined) return undefined;
    this.#uses(pid);
    guest.note(`handler: sleeps for ${limitMs} ms`);
    guest.pass(limitMs);
    return 0;
  }

  /** Lets threads of the guest run until the wait is over. Undefined: the kernel carries the wait out. */
  #wait(guest: Guest, { pid, known, limitMs, inVain }: Waiting): number | undefined {
    this.#uses(pid);
    this.#emptyReads = 0;
    const dry = guest.wait(limitMs);
    if (dry === undefined) return undefined;
    if (guest.readable) guest.note('handler: waits no more: there is a message');
    else {
      if (limitMs >= 0) guest.note(`handler: waits for ${limitMs} ms`);
      if (limitMs > 0 && known && !guest.finished) return inVain();
      if (limitMs < 0 || guest.finished) this.#rest(guest, pid, dry, known);
    }
    this.#mirrors = true;
    this.#mirror(guest);
    return undefined;
  }

  /**
   * The handler waits, and no thread of the guest can run. If the handler has one thread, and waits for nothing unknown,
   * this is its end. If not, another thread, or a timer, may still do something.
   */
  #rest(guest: Guest, pid: number, dry: boolean, known: boolean): void {
    if (known && threadCount(pid) <= 1) {
      if (guest.finished) this.over = true;
      else if (dry) guest.stuck('asleep', 'the handler waits, and nothing wakes it');
    } else this.idle = true;
  }
}
