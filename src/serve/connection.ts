// One monitor's connection: who it is, and what it hands over. It stays open as long as the monitor likes, and brings
// any number of hand-offs.
//
// Rules:
//  - A descriptor that was received belongs to a hand-off that was told, or is discarded. So is the connection itself: what
//    lies in its queue may hold descriptors whose close blocks.
//  - A turn of the event loop takes a bounded number of messages, whatever the monitor sends meanwhile.
//  - No callback throws: whatever goes wrong ends this connection, with the error told.

import { discard } from '../../shim/discard.js';
import { type Peer, receive } from '../../shim/socket.js';
import { watchReadable } from '../../shim/watch.js';
import type { Watch } from '../kernel.js';
import { type HandOff, HandOffError, HandOffReader } from './handoff.js';

const EAGAIN = -11;
/** For what is received, until it was looked at: Firecracker's text for some five hundred regions. */
const room = new Uint8Array(65_536);
/** A text that came without its descriptor is followed by it, or is not. */
const LATE_FD_TRIES = 5;
const LATE_FD_PAUSE_MS = 100;
/** Messages that are taken in a turn of the event loop. */
const MESSAGES_A_TURN = 4;

export interface ConnectionEvents {
  /** A whole hand-off. Its first descriptor, the only one, is the hearer's, even if this throws. */
  handedOver(text: string, fd: number): void;
  /** It has ended, or what it sent is wrong. Told once, last; the connection is closed. */
  ended(error?: Error): void;
}

export class Connection {
  readonly peer: Peer;
  readonly #fd: number;
  readonly #events: ConnectionEvents;
  readonly #watch: Watch;
  readonly #reader = new HandOffReader();
  readonly #limitMs: number;
  #limit: NodeJS.Timeout | undefined;
  /** A whole text that waits for its descriptor. */
  #waiting: { handOff: HandOff; tries: number; timer: NodeJS.Timeout } | undefined;
  #closed = false;

  /** Takes the descriptor. `limitMs`: until the first hand-off, and from the begin of any until its end. */
  constructor(fd: number, peer: Peer, limitMs: number, events: ConnectionEvents) {
    this.#fd = fd;
    this.peer = peer;
    this.#events = events;
    this.#limitMs = limitMs;
    this.#watch = watchReadable(fd, () => this.#guarded(() => this.#receive()));
    this.#expect();
  }

  /** Ends it without a word. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#limit);
    clearTimeout(this.#waiting?.timer);
    this.#watch.close();
    for (const fd of this.#reader.giveBack()) discard(fd);
    discard(this.#fd);
  }

  #end(error?: Error): void {
    if (this.#closed) return;
    this.close();
    this.#events.ended(error);
  }

  /** A hand-off is to be whole in time. Whoever sends a little now and then gets no more of it. */
  #expect(): void {
    if (this.#limit) return;
    const limit = setTimeout(() => {
      // A server that was busy runs its timers before it looks at sockets again: what came meanwhile came in time.
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
      const { result, fds, truncated } = receive(this.#fd, room);
      if (result === EAGAIN) return;
      this.#reader.push(room.subarray(0, Math.max(result, 0)), fds);
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
    if (fd === undefined) {
      this.#await(handOff, 0);
      return;
    }
    // The second is a memfd of the guest's memory, which nobody needs here.
    for (const other of others) discard(other);
    this.#events.handedOver(handOff.text, fd);
  }

  /** Its descriptor may follow by itself. */
  #await(handOff: HandOff, tries: number): void {
    const timer = setTimeout(() => {
      if (tries + 1 < LATE_FD_TRIES) this.#await(handOff, tries + 1);
      else this.#end(new HandOffError('a hand-off came without a descriptor'));
    }, LATE_FD_PAUSE_MS);
    this.#waiting = { handOff, tries, timer };
  }

  /** Descriptors that came late belong to the text that waits for them. */
  #join(): void {
    const fds = this.#reader.giveBack();
    if (fds.length === 0 || !this.#waiting) return;
    const { handOff, timer } = this.#waiting;
    clearTimeout(timer);
    this.#waiting = undefined;
    this.#take({ text: handOff.text, fds });
  }
}
