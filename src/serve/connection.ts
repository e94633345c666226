// One monitor's connection: its credentials, and its hand-offs. The monitor decides how long it stays open, and sends
// any number of hand-offs.
//
// Rules:
//  - A received descriptor belongs to a hand-off that was reported, or is discarded. The connection's own descriptor is
//    discarded the same way, because its queue may hold descriptors whose close blocks.
//  - A turn of the event loop takes a bounded number of messages, however many the monitor sends.
//  - No callback throws: any failure ends this connection and reports the error.

import { discard } from '../../shim/discard.js';
import { receive, send } from '../../shim/socket.js';
import { watchReadable } from '../../shim/watch.js';
import type { Watch } from '../kernel/port.js';
import { type HandOff, HandOffError, HandOffReader, isMemoryRequest } from './handoff-protocol.js';

const EAGAIN = -11;
/** Buffer for received bytes. It holds Firecracker's text for about five hundred regions. */
const buffer = new Uint8Array(65_536);
/** A text waits for its descriptor this many times, and this long each time. */
const LATE_FD_TRIES = 5;
const LATE_FD_PAUSE_MS = 100;
/** Messages taken in one turn of the event loop. */
const MESSAGES_A_TURN = 4;

export interface ConnectionEvents {
  /** Called with a whole hand-off. `fd`, its userfaultfd, then belongs to this function, even if it throws. */
  handedOver(text: string, fd: number): void;
  /** The monitor asks for the memory that guests share. Returns the answer, and a descriptor that goes with it. */
  memoryRequested(): { readonly text: Uint8Array; readonly fd?: number };
  /** Called once, when the connection is closed, by either side. */
  closed(): void;
  /** Called once, last: the connection is closed, because it has ended or has sent something wrong. */
  ended(error?: Error): void;
}

export class Connection {
  readonly #fd: number;
  readonly #events: ConnectionEvents;
  readonly #watch: Watch;
  readonly #reader = new HandOffReader();
  readonly #limitMs: number;
  #limit: NodeJS.Timeout | undefined;
  /** A whole text that waits for its descriptor. */
  #waiting: { handOff: HandOff; timer: NodeJS.Timeout } | undefined;
  #closed = false;

  /**
   * The object then owns the descriptor. `limitMs`: the time until the first hand-off, and from the start of any
   * hand-off to its end.
   */
  constructor(fd: number, limitMs: number, events: ConnectionEvents) {
    this.#fd = fd;
    this.#events = events;
    this.#limitMs = limitMs;
    this.#watch = watchReadable(fd, () => this.#guarded(() => this.#receive()));
    this.#expect();
  }

  /** Closes without an error. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#limit);
    clearTimeout(this.#waiting?.timer);
    this.#watch.close();
    for (const fd of this.#reader.giveBack()) discard(fd);
    discard(this.#fd);
    this.#events.closed();
  }

  #end(error?: Error): void {
    if (this.#closed) return;
    this.close();
    this.#events.ended(error);
  }

  /** A hand-off must be complete in time. Sending small pieces does not extend the time. */
  #expect(): void {
    if (this.#limit) return;
    const limit = setTimeout(() => {
      // After a busy period, timers run before sockets are read. So read first: messages that have arrived are in time.
      this.#guarded(() => this.#receive());
      if (this.#limit !== limit) return;
      const what = this.#reader.begun ? 'a hand-off was not finished' : 'nothing was handed over';
      this.#end(new HandOffError(`${what} within ${this.#limitMs} ms`));
    }, this.#limitMs);
    this.#limit = limit;
  }

  #guarded(body: () => void): void {
    try {
      body();
    } catch (error) {
      this.#end(error as Error);
    }
  }

  #receive(): void {
    for (let messages = 0; messages < MESSAGES_A_TURN && !this.#closed; messages++) {
      const { result, fds, truncated } = receive(this.#fd, buffer);
      if (result === EAGAIN) return;
      this.#reader.push(buffer.subarray(0, Math.max(result, 0)), fds);
      if (truncated)
        throw new HandOffError('a descriptor was lost on the way: too many are open (ulimit -n)');
      if (result < 0) throw new HandOffError(`the connection failed: error ${-result}`);
      if (result === 0 && fds.length === 0) {
        this.#hungUp();
        return;
      }
      this.#read();
    }
  }

  #hungUp(): void {
    const half = this.#reader.begun || this.#waiting !== undefined;
    if (half) throw new HandOffError('the connection was closed in the middle of a hand-off');
    this.#end();
  }

  #read(): void {
    if (this.#waiting) this.#join();
    while (!this.#waiting && !this.#closed) {
      const handOff = this.#reader.next();
      if (!handOff) break;
      this.#take(handOff);
    }
    if (this.#reader.begun && !this.#waiting) this.#expect();
  }

  #take(handOff: HandOff): void {
    clearTimeout(this.#limit);
    this.#limit = undefined;
    const [fd, ...others] = handOff.fds;
    if (fd === undefined && isMemoryRequest(handOff.text)) {
      this.#answerRequest();
      return;
    }
    if (fd === undefined) {
      this.#await(handOff, 0);
      return;
    }
    // The second descriptor is a memfd of the guest's memory, which is not needed here.
    for (const other of others) discard(other);
    this.#events.handedOver(handOff.text, fd);
  }

  /** After the answer, the hand-off must come in time. */
  #answerRequest(): void {
    const { text, fd } = this.#events.memoryRequested();
    const sent = send(this.#fd, text, fd === undefined ? [] : [fd]);
    if (sent < text.length) throw new HandOffError('the answer to the monitor could not be sent');
    this.#expect();
  }

  /** Waits for the descriptor of a hand-off, which may follow in a separate message. */
  #await(handOff: HandOff, tries: number): void {
    const timer = setTimeout(() => {
      if (tries + 1 < LATE_FD_TRIES) this.#await(handOff, tries + 1);
      else this.#end(new HandOffError('a hand-off came without a descriptor'));
    }, LATE_FD_PAUSE_MS);
    this.#waiting = { handOff, timer };
  }

  /** Gives late descriptors to the text that waits for them. */
  #join(): void {
    const fds = this.#reader.giveBack();
    if (fds.length === 0 || !this.#waiting) return;
    const { handOff, timer } = this.#waiting;
    clearTimeout(timer);
    this.#waiting = undefined;
    this.#take({ text: handOff.text, fds });
  }
}
