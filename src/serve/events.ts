// What a server tells: events as they happen, and problems for as long as they last.
//
// Rule: a listener's error stays the listener's. Events are emitted from callbacks of sockets and in the middle of ending a
// session: an exception there would end the process, and with it every guest. The error is printed as a warning, and the
// other listeners are called.

import { EventEmitter } from 'node:events';
import type { Peer } from '../../shim/socket.js';
import { warn } from '../warning.js';
import type { Vm } from './server.js';
import type { Session, SessionEnd } from './session.js';

/** What became of a guest whose hand-off was refused. */
export interface RefusedGuest {
  /** Its monitor was killed. */
  readonly killed: boolean;
}

/** What a server tells. */
export interface ServerEvents {
  /** A monitor has connected. */
  connected: [peer: Peer, vm: Vm];
  /**
   * A monitor was turned away, or has sent what cannot be served. `guest`: it had handed over a real userfaultfd, so its guest
   * waits for a handler in vain; and whether it was killed therefore (`onRefused`).
   */
  refused: [error: Error, peer: Peer | undefined, vm: Vm, guest: RefusedGuest | undefined];
  /** Monitors wait to be taken from the queue, and why. Told once, until the next is taken. */
  starved: [reason: string, vm: Vm];
  /** A guest is served from now on. */
  begun: [session: Session, vm: Vm];
  ended: [session: Session, end: SessionEnd, vm: Vm];
  /** A monitor was killed, because its guest could not be served. */
  killed: [session: Session];
  /** What the operator should hear of, and no guest suffers from: a recording that has ended, a memory file of another size. */
  warned: [reason: string, vm: Vm];
  /** Something is wrong until further notice: `key` is new in `problems`, or has another reason. */
  problem: [key: string, reason: string];
  /** It is over: `key` has left `problems`. */
  solved: [key: string];
}

export class ServerEmitter extends EventEmitter<ServerEvents> {
  readonly #problems = new Map<string, string>();

  /**
   * What is wrong now, by what it is about: a guest ('vm 3'), or a part of the server. Empty: everything is well. A reason
   * stays here until it is solved; the events `problem` and `solved` say when.
   */
  get problems(): ReadonlyMap<string, string> {
    return this.#problems;
  }

  /** Notes a problem, or another reason for one that is known. */
  protected reportProblem(key: string, reason: string): void {
    if (this.#problems.get(key) === reason) return;
    this.#problems.set(key, reason);
    this.emit('problem', key, reason);
  }

  /** The problem is over, if there was one. */
  protected solveProblem(key: string): void {
    if (this.#problems.delete(key)) this.emit('solved', key);
  }

  override emit<Name extends keyof ServerEvents>(name: Name, ...args: ServerEvents[Name]): boolean {
    const listeners = this.rawListeners(name) as ((...args: unknown[]) => unknown)[];
    for (const listener of listeners) this.#call(listener, args, String(name));
    return listeners.length > 0;
  }

  #call(listener: (...args: unknown[]) => unknown, args: readonly unknown[], event: string): void {
    const complain = (error: unknown): void => {
      const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
      warn(`a listener of the server's event '${event}' has failed: ${text}`);
    };
    try {
      const result = Reflect.apply(listener, this, args);
      if (result instanceof Promise) result.catch(complain);
    } catch (error) {
      complain(error);
    }
  }
}
