// The server's events, and its list of current problems.
//
// Rule: an error of a listener does not reach the server. Events are emitted from socket callbacks and while a
// session ends: an exception there would end the process, and with it every guest. The error becomes a warning, and
// the other listeners are called.

import { EventEmitter } from 'node:events';
import type { Peer } from '../../shim/socket.js';
import { warn } from '../errors/warning.js';
import type { GuestSession, SessionEnd } from './guest-session.js';

/** A socket, and the memory that is served there. */
export interface Vm {
  /**
   * Path of the unix socket to listen at. A name that begins with '@' or a zero character is abstract: no file system
   * contains it, and it has neither owner nor mode.
   */
  readonly socket: string;
  /** Path of the snapshot's memory file. */
  readonly memory: string;
  /**
   * Paths of Firecracker's diff snapshots on top of it, the oldest first: files of the same size, whose holes mean "as
   * below". Default: none. Not for an index.
   */
  readonly layers?: readonly string[];
}

/** What happened to a guest whose hand-off was refused. */
export interface RefusedGuest {
  /** Whether its monitor was killed. */
  readonly killed: boolean;
}

/** The events of a server. */
export interface ServerEvents {
  /** A monitor has connected. */
  connected: [peer: Peer, vm: Vm];
  /**
   * A monitor was turned away, or has sent a hand-off that cannot be served. `guest` is set if the monitor handed over
   * a real userfaultfd, so that its guest hangs. It says whether the monitor was killed (`onRefused`).
   */
  refused: [error: Error, peer: Peer | undefined, vm: Vm, guest: RefusedGuest | undefined];
  /** Monitors wait in the queue, for this reason. Emitted once, and not again until the next monitor is accepted. */
  starved: [reason: string, vm: Vm];
  /** A guest is served from now on. */
  begun: [session: GuestSession, vm: Vm];
  ended: [session: GuestSession, end: SessionEnd, vm: Vm];
  /** A monitor was killed, because its guest could not be served. */
  killed: [session: GuestSession];
  /**
   * A notice for the operator about an event that harms no guest: a recording has ended, a memory file has another
   * size.
   */
  warned: [reason: string, vm: Vm];
  /** A problem has begun: `key` is new in `problems`, or has another reason. */
  problem: [key: string, reason: string];
  /** A problem is over: `key` has left `problems`. */
  solved: [key: string];
}

export class ServerEmitter extends EventEmitter<ServerEvents> {
  readonly #problems = new Map<string, string>();

  /**
   * The current problems, by subject: a guest ('vm 3'), or a part of the server. Empty if all is well. A problem stays
   * here until it is solved. The events `problem` and `solved` report its beginning and its end.
   */
  get problems(): ReadonlyMap<string, string> {
    return this.#problems;
  }

  /** Adds a problem, or updates its reason. */
  protected reportProblem(key: string, reason: string): void {
    if (this.#problems.get(key) === reason) return;
    this.#problems.set(key, reason);
    this.emit('problem', key, reason);
  }

  /** Removes a problem, if there was one. */
  protected solveProblem(key: string): void {
    if (this.#problems.delete(key)) this.emit('solved', key);
  }

  override emit<Name extends keyof ServerEvents>(name: Name, ...args: ServerEvents[Name]): boolean {
    const listeners = this.rawListeners(name) as ((...args: unknown[]) => unknown)[];
    for (const listener of listeners) this.#call(listener, args, String(name));
    return listeners.length > 0;
  }

  #call(listener: (...args: unknown[]) => unknown, args: readonly unknown[], event: string): void {
    const reportError = (error: unknown): void => {
      const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
      warn(`a listener of the server's event '${event}' has failed: ${text}`);
    };
    try {
      const result = Reflect.apply(listener, this, args);
      if (result instanceof Promise) result.catch(reportError);
    } catch (error) {
      reportError(error);
    }
  }
}
