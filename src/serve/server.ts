// Serves the snapshots of microVMs: listens where monitors connect, takes what they hand over, and answers their
// guests' page faults, each guest in a thread of its own.
//
// Rules:
//  - What one monitor does wrong ends its connection and nothing else.
//  - A monitor whose guest cannot be served any more is killed through a pidfd that was opened when it connected.
//  - A monitor is taken from the queue only where all descriptors that its guest needs find room: it can wait there, but a
//    descriptor that finds no room is lost, and its guest hangs.
//  - Nothing is left behind: sockets' paths, descriptors, threads.

import { closeDescriptor, descriptorsLeft } from '../../shim/descriptors.js';
import { openPidfd, SIGKILL, signalPidfd } from '../../shim/process.js';
import { linuxProcessors } from '../../shim/processors.js';
import { acceptUnix, type Peer, peerOf } from '../../shim/socket.js';
import { watchReadable } from '../../shim/watch.js';
import { checkInteger, checkOneOf, wrongType } from '../arguments.js';
import { UffdError, UnsupportedError } from '../errors.js';
import type { Watch } from '../kernel.js';
import { WAITS, type Wait } from '../loop.js';
import { checkWindow, type Window } from '../options.js';
import { checkPlacement, type Placement, usable } from '../placement.js';
import { Connection } from './connection.js';
import { ServerEmitter } from './events.js';
import { HandOffError, parseRegions } from './handoff.js';
import { type Mapping, MemoryFile, type SharedRuns, shared } from './memory-file.js';
import { Session, type SessionEnd } from './session.js';
import { type SessionTask, toldError } from './session-task.js';
import { ListeningSocket, SocketError } from './socket-path.js';
import { Threads } from './threads.js';
import { aboutSession, identify, type MemoryIdentity, workingSet } from './working-set.js';

/** A socket, and the memory that is served there. */
export interface Vm {
  /**
   * Path of the unix socket to listen at. A name that begins with '@' or a zero character is an abstract one, which is in no
   * file system: it has neither owner nor mode.
   */
  readonly socket: string;
  /** Path of the snapshot's memory file. */
  readonly memory: string;
}

export interface ServeOptions {
  /** What is served where. */
  vms: readonly Vm[];
  /** Pages to install for a fault; default 1. */
  window?: Window;
  /** Install what nobody has asked for yet, too, in the background; default false. */
  eager?: boolean;
  /** Traces of sessions with the same memory file: what they touched is installed first. */
  prefetch?: readonly string[];
  /** Take traces of other memory files, too. */
  force?: boolean;
  /** Write a trace of each session: the first to this file, the second to `FILE.2`, and so on. */
  record?: string;
  /** Something to find in those traces' descriptions, for whoever reads them. JSON. */
  about?: Record<string, unknown>;
  /** How a session's thread waits for faults; default 'adaptive', and 'block' where it is recorded: a trace tells every look. */
  wait?: Wait;
  /** Where a session's thread runs; default 'auto'. */
  placement?: Placement;
  /** End when the first session has ended. */
  once?: boolean;
  /** Users whose monitors are served; default: all that may connect. */
  allowUids?: readonly number[];
  /** What becomes of a monitor whose guest cannot be served any more; default 'kill'. */
  onError?: 'kill' | 'leave';
  /** How long a monitor may take for its hand-off, in milliseconds; default 5000. */
  handOffMs?: number;
  /** How long to wait for the first monitor, in milliseconds; default: for ever. */
  acceptMs?: number;
  /** Mode of the sockets, 0 to 0o777, and their owner. A socket has them from the moment that it has its name. */
  socketMode?: number;
  socketOwner?: { readonly uid: number; readonly gid: number };
}

/**
 * Descriptors of a guest, at most: its connection, its userfaultfd and a memfd, a trace, two pidfds, an eventfd; and those
 * of its thread, if that begins with it: eight, and the files that it loads, dozens at a time.
 */
const GUEST_DESCRIPTORS = 64;
/** Where so many are left they are counted once a second: that takes a part of what a guest waits for its first page. */
const DESCRIPTORS_PLENTY = 4096;
const COUNTED_MS = 1000;
/** No monitor can be taken for want of room: tried again after so long. */
const STARVED_MS = 100;
const EAGAIN = -11;

/** Bun cannot post the histogram that guests' threads share with this one, and on Deno the tests of serving do not end well. */
const OTHER_RUNTIME = (name: string): string =>
  `userfaultfd/serve runs on Node, and this is ${name}, whose worker threads are not up to it; run it, or ` +
  "uffd serve, with Node, or serve a userfaultfd that was handed over by Userfaultfd.wrap and start with { wait: 'block' } " +
  'in a worker';

/** One socket that is listened at. */
interface Listener {
  readonly vm: Vm;
  readonly socket: ListeningSocket;
  readonly identity: MemoryIdentity;
  readonly prefetch: SharedRuns;
  readonly memory: MemoryFile;
  watch: Watch | undefined;
  /** Set where monitors wait: when it listens again. */
  starved: NodeJS.Timeout | undefined;
}

/** A monitor that has connected, held against its PID being used again. */
interface Monitor {
  readonly peer: Peer;
  /** −1: it cannot be seen from here, or has exited. */
  readonly pidfd: number;
  /** Connections and sessions that need it. */
  uses: number;
  /** It has handed over. */
  served: boolean;
}

/**
 * Listens, and serves every monitor that connects.
 *
 * @example
 * ```ts
 * import { writeFileSync } from 'node:fs';
 * import { serve } from 'userfaultfd/serve';
 *
 * writeFileSync('snapshot.mem', new Uint8Array(16 * 4096));
 * const server = await serve({ vms: [{ socket: 'vm.sock', memory: 'snapshot.mem' }], window: 16 });
 * server.on('begun', (session, vm) => console.log(`${vm.memory}: guest ${session.id}`));
 * server.on('ended', (session, { how }) => console.log(how, session.tally.get('faults')));
 * await server.close();
 * ```
 *
 * @throws UnsupportedError on Deno and Bun; MemoryFileError, SocketError, TraceError, WorkingSetError; the errors of open(2); RangeError, TypeError
 */
export async function serve(options: ServeOptions): Promise<Server> {
  const { bun, deno } = process.versions;
  const other = bun ? `Bun ${bun}` : deno ? `Deno ${deno}` : undefined;
  if (other) throw new UnsupportedError(OTHER_RUNTIME(other));
  return Server.listen(options);
}

export class Server extends ServerEmitter implements AsyncDisposable {
  /** Guests that are served now. */
  readonly sessions = new Set<Session>();
  /** Resolves when it takes no hand-offs any more and all sessions have ended; rejects where nobody came in time. */
  readonly done: Promise<void>;
  readonly #options: ServeOptions;
  readonly #threads: Threads;
  readonly #listeners: Listener[] = [];
  readonly #connections = new Map<Connection, Monitor>();
  readonly #monitors = new Map<Session, Monitor>();
  readonly #conclude: (error?: Error) => void;
  #acceptLimit: NodeJS.Timeout | undefined;
  /** Descriptors that were left, at some time, less what guests since then may need. */
  #descriptors = 0;
  #countedMs = 0;
  #begun = 0;
  #accepting = true;

  static listen(options: ServeOptions): Server {
    checkOptions(options);
    const server = new Server(options);
    try {
      for (const vm of options.vms) server.#listeners.push(server.#listen(vm));
    } catch (error) {
      server.#deafen();
      throw error;
    }
    // Nobody hears of a monitor before its caller had a chance to listen for events.
    for (const listener of server.#listeners) {
      listener.watch = watchReadable(listener.socket.fd, () => server.#accept(listener));
    }
    server.#threads.prepare();
    if (options.acceptMs !== undefined) {
      server.#acceptLimit = setTimeout(() => server.#nobodyCame(), options.acceptMs);
    }
    return server;
  }

  private constructor(options: ServeOptions) {
    super();
    this.#options = options;
    this.#threads = new Threads(!options.once);
    const { promise, resolve, reject } = deferred();
    this.done = promise;
    // Whoever does not ask is not to be ended by it.
    this.done.catch(() => {});
    this.#conclude = (error) => {
      // Not before its threads are gone: the process may end at once.
      void this.#threads.close().then(() => (error ? reject(error) : resolve()));
    };
  }

  /** Guests that were served since it began. */
  get served(): number {
    return this.#begun;
  }

  /** Takes no hand-offs any more; guests that are served go on. `done` resolves when the last has ended. */
  finish(): void {
    this.#deafen();
    if (this.sessions.size === 0) this.#conclude();
  }

  /** Stops serving at once. Guests that still run hang at their next fault; `kill` ends their monitors. */
  async close({ kill = false } = {}): Promise<void> {
    const ends = [...this.sessions].map((session) => {
      if (kill) this.#kill(session);
      session.stop();
      return session.ended;
    });
    this.finish();
    await Promise.all(ends);
    await this.done.catch(() => {});
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  // ---- sockets -------------------------------------------------------------------------------------------

  #listen(vm: Vm): Listener {
    const { prefetch = [], force = false, socketMode, socketOwner } = this.#options;
    // Checked before anybody connects.
    const memory = new MemoryFile(vm.memory);
    let socket: ListeningSocket | undefined;
    try {
      const identity = identify(vm.memory);
      const runs = prefetch.length > 0 ? workingSet(prefetch, identity, force) : [];
      socket = ListeningSocket.listen(vm.socket, { mode: socketMode, owner: socketOwner });
      memory.readAhead(runs);
      const prefetched = shared(runs);
      return { vm, socket, identity, prefetch: prefetched, memory, watch: undefined, starved: undefined };
    } catch (error) {
      memory.close();
      socket?.close();
      throw error;
    }
  }

  /** No hand-offs any more. Idempotent. */
  #deafen(): void {
    this.#accepting = false;
    void this.#threads.close();
    clearTimeout(this.#acceptLimit);
    for (const { socket, watch, starved, memory } of this.#listeners.splice(0)) {
      watch?.close();
      clearTimeout(starved);
      memory.close();
      socket.close();
    }
    for (const [connection, monitor] of this.#connections) {
      connection.close();
      this.#leave(monitor);
    }
    this.#connections.clear();
  }

  #nobodyCame(): void {
    const { acceptMs } = this.#options;
    this.#deafen();
    this.#conclude(new SocketError(`no monitor has connected within ${acceptMs} ms`));
  }

  /** Takes those from the queue that there is room for. */
  #accept(listener: Listener): void {
    const left = this.#descriptorsLeft();
    const needed = GUEST_DESCRIPTORS * (1 + this.#beginning);
    if (left < needed) this.#starve(listener, noRoom(left, needed));
    // Behind the last that there is room for there may be nobody: if there is, this is called again.
    for (let room = left; room >= needed && this.#accepting; room -= GUEST_DESCRIPTORS) {
      const fd = acceptUnix(listener.socket.fd);
      if (fd === EAGAIN) return;
      if (fd < 0) {
        this.#starve(listener, new UffdError(fd, 'accept4').message);
        return;
      }
      listener.starved = undefined;
      this.#descriptors -= GUEST_DESCRIPTORS;
      this.#welcome(listener, fd);
    }
  }

  #descriptorsLeft(): number {
    const now = performance.now();
    if (this.#descriptors < DESCRIPTORS_PLENTY || now - this.#countedMs > COUNTED_MS) {
      this.#descriptors = descriptorsLeft();
      this.#countedMs = now;
    }
    return this.#descriptors;
  }

  /** Guests that may not have all of their descriptors yet. */
  get #beginning(): number {
    const connecting = [...this.#connections.values()].filter(({ served }) => !served);
    return connecting.length + [...this.sessions].filter(({ serving }) => !serving).length;
  }

  /** Not to be told of the same again and again, it listens again in a while. */
  #starve(listener: Listener, reason: string): void {
    if (!listener.starved) this.emit('starved', reason, listener.vm);
    listener.watch?.close();
    listener.watch = undefined;
    listener.starved = setTimeout(() => {
      listener.watch = watchReadable(listener.socket.fd, () => this.#accept(listener));
    }, STARVED_MS);
  }

  #welcome(listener: Listener, fd: number): void {
    const { vm } = listener;
    const { allowUids, handOffMs = 5000 } = this.#options;
    const peer = peerOf(fd);
    const refusal = peer
      ? allowUids && !allowUids.includes(peer.uid) && `user ${peer.uid} is not allowed`
      : 'nobody knows who it is';
    if (!peer || refusal) {
      closeDescriptor(fd);
      this.emit('refused', new HandOffError(refusal || ''), peer, vm);
      return;
    }
    clearTimeout(this.#acceptLimit);
    const monitor: Monitor = {
      peer,
      pidfd: peer.pid > 0 ? Math.max(openPidfd(peer.pid), -1) : -1,
      uses: 1,
      served: false,
    };
    this.emit('connected', peer, vm);
    const connection: Connection = new Connection(fd, peer, handOffMs, {
      handedOver: (text, uffd) => this.#begin(listener, monitor, text, uffd),
      ended: (error) => {
        this.#connections.delete(connection);
        if (error) this.emit('refused', error, peer, vm);
        this.#leave(monitor);
      },
    });
    this.#connections.set(connection, monitor);
  }

  // ---- sessions ------------------------------------------------------------------------------------------

  /** Serves what was handed over. Takes the descriptor. */
  #begin(listener: Listener, monitor: Monitor, text: string, fd: number): void {
    const { vm, prefetch, identity } = listener;
    const {
      window = 1,
      record,
      wait = record === undefined ? 'adaptive' : 'block',
      placement = 'auto',
      eager = false,
      about = {},
    } = this.#options;
    let session: Session;
    let mapping: Mapping | undefined;
    try {
      const regions = parseRegions(text, listener.memory.bytes);
      let memory: SessionTask['memory'];
      try {
        mapping = listener.memory.take(Math.max(...regions.map(({ offset, length }) => offset + length)));
        memory = mapping.file;
      } catch (error) {
        // The guest's memory is here already: it has a session, which fails.
        memory = toldError(error);
      }
      const id = this.#begun + 1;
      const file = record === undefined ? undefined : id === 1 ? record : `${record}.${id}`;
      session = new Session(this.#threads, {
        ...{ id, fd, regions, window, wait, placement, eager, prefetch, peer: monitor.peer, memory },
        record:
          file === undefined ? undefined : { file, about: { ...about, ...aboutSession(identity, regions) } },
      });
    } catch (error) {
      mapping?.release();
      closeDescriptor(fd);
      throw error;
    }
    this.#begun++;
    monitor.uses++;
    monitor.served = true;
    this.sessions.add(session);
    this.#monitors.set(session, monitor);
    this.emit('begun', session, vm);
    session.ended.then((end) => {
      mapping?.release();
      this.#sessionEnded(session, end, vm, monitor);
    });
  }

  #sessionEnded(session: Session, end: SessionEnd, vm: Vm, monitor: Monitor): void {
    if (end.how === 'failed' && (this.#options.onError ?? 'kill') === 'kill') this.#kill(session);
    this.sessions.delete(session);
    this.#monitors.delete(session);
    this.#leave(monitor);
    this.emit('ended', session, end, vm);
    if (this.#options.once) this.#deafen();
    if (!this.#accepting && this.sessions.size === 0) this.#conclude();
  }

  #kill(session: Session): void {
    const pidfd = this.#monitors.get(session)?.pidfd ?? -1;
    if (pidfd >= 0 && signalPidfd(pidfd, SIGKILL) === 0) this.emit('killed', session);
  }

  #leave(monitor: Monitor): void {
    if (--monitor.uses === 0 && monitor.pidfd >= 0) closeDescriptor(monitor.pidfd);
  }
}

function noRoom(left: number, needed: number): string {
  return `${left} descriptors are left, and ${needed} may be needed; close some, or raise the limit (ulimit -n)`;
}

function deferred(): { promise: Promise<void>; resolve: () => void; reject: (error: Error) => void } {
  let resolve = (): void => {};
  let reject = (_: Error): void => {};
  const promise = new Promise<void>((...settle) => {
    [resolve, reject] = settle;
  });
  return { promise, resolve, reject };
}

function checkOptions(options: ServeOptions): void {
  const { vms, window, wait, placement, onError, handOffMs, acceptMs, socketMode, socketOwner } = options;
  if (!Array.isArray(vms) || vms.length === 0) throw wrongType('vms', 'sockets with their memory', vms);
  if (window !== undefined) checkWindow(window, 'window');
  if (wait !== undefined) checkOneOf(wait, 'wait', WAITS);
  if (placement !== undefined) checkPlacement(placement);
  // A guest's thread would find that out too late.
  if (typeof placement === 'object') usable(placement, linuxProcessors.allowed());
  if (onError !== undefined) checkOneOf(onError, 'onError', ['kill', 'leave']);
  if (handOffMs !== undefined) checkInteger(handOffMs, 'handOffMs', 1, 2 ** 31 - 1);
  if (acceptMs !== undefined) checkInteger(acceptMs, 'acceptMs', 1, 2 ** 31 - 1);
  if (socketMode !== undefined) checkInteger(socketMode, 'socketMode', 0, 0o777);
  // The last of 32 bits says to the kernel: leave it.
  if (socketOwner) checkInteger(socketOwner.uid, 'socketOwner.uid', 0, 2 ** 32 - 2);
  if (socketOwner) checkInteger(socketOwner.gid, 'socketOwner.gid', 0, 2 ** 32 - 2);
}
