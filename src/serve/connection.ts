// One monitor's connection: who it is, and what it hands over. It stays open as long as the monitor likes, and brings
// any number of hand-offs.
//
// Rule: a descriptor that was received belongs to a hand-off that was told, or is closed.

import { closeDescriptor } from '../../shim/descriptors.js';
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

export interface ConnectionEvents {
  /** A whole hand-off. Its first descriptor, the only one, is the hearer's. */
  handedOver(text: string, fd: number): void;
  /** It has ended, or what it sent is wrong. Told once, last; the connection is closed. */
  ended(error?: HandOffError): void;
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
    this.#watch = watchReadable(fd, () => this.#receive());
    this.#expect();
  }

  /** Ends it without a word. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#limit);
    clearTimeout(this.#waiting?.timer);
    this.#watch.close();
    for (const fd of [...this.#reader.giveBack(), ...(this.#waiting?.handOff.fds ?? [])]) closeDescriptor(fd);
    closeDescriptor(this.#fd);
  }

  #end(error?: HandOffError): void {
    if (this.#closed) return;
    this.close();
    this.#events.ended(error);
  }

  /** A hand-off is to be whole in time. Whoever sends a little now and then gets no more of it. */
  #expect(): void {
    this.#limit ??= setTimeout(() => {
      const what = this.#reader.begun ? 'a hand-off was not finished' : 'nothing was handed over';
      this.#end(new HandOffError(`${what} within ${this.#limitMs} ms`));
    }, this.#limitMs);
  }

  #receive(): void {
    try {
      this.#receiveAll();
    } catch (error) {
      if (!(error instanceof HandOffError)) throw error;
      this.#end(error);
    }
  }

  #receiveAll(): void {
    while (!this.#closed) {
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
    for (const other of others) closeDescriptor(other);
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
