// Serves the snapshots of microVMs: listens where monitors connect, takes what they hand over, and answers their
// guests' page faults, each guest in a thread of its own.
//
// Rules:
//  - What one monitor does wrong ends its connection and nothing else.
//  - A guest that cannot be served never runs on: its monitor is killed (monitor.ts), and its userfaultfd is closed only when
//    its memory is gone (custody.ts), since closing it lets every waiter read zeros.
//  - A monitor is taken from the queue only where all descriptors that its guest needs find room: it can wait there, but a
//    descriptor that finds no room is lost, and its guest hangs.
//  - Descriptors that a peer has sent are closed where that cannot block this thread (shim/discard.ts).
//  - Nothing is left behind: sockets' paths, descriptors, threads.

import { descriptorsLeft, kindOf } from '../../shim/descriptors.js';
import { discard } from '../../shim/discard.js';
import { linuxProcessors } from '../../shim/processors.js';
import { acceptUnix, peerOf, stopListening } from '../../shim/socket.js';
import { watchReadable } from '../../shim/watch.js';
import { checkInteger, checkOneOf, wrongType } from '../arguments.js';
import { UffdError, UnsupportedError } from '../errors.js';
import type { Watch } from '../kernel.js';
import { WAITS, type Wait } from '../loop.js';
import { checkWindow, type Window } from '../options.js';
import { checkPlacement, type Placement, usable } from '../placement.js';
import { warn } from '../warning.js';
import { Connection } from './connection.js';
import { Custody } from './custody.js';
import { type RefusedGuest, ServerEmitter } from './events.js';
import { HandOffError, parseRegions, type Region } from './handoff.js';
import { type Mapping, MemoryFile, type SharedRuns, shared } from './memory-file.js';
import { type Killing, Monitor } from './monitor.js';
import { checkRecord, type KeptFile, keptFile, recordPath } from './record-file.js';
import { Session, type SessionEnd } from './session.js';
import { type SessionRecord, type SessionTask, toldError } from './session-task.js';
import { ListeningSocket, SocketError } from './socket-path.js';
import { Threads } from './threads.js';
import { aboutSession, workingSet } from './working-set.js';

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
  /**
   * Write a trace of each session: the first to this file, the second to `FILE.2`, and so on. A file that cannot be written,
   * or is a memory file or a trace of `prefetch`, is a RecordError at once. What goes wrong with a recording later ends it,
   * emits `warned`, and is in the session's `recorded`.
   */
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
  /**
   * What becomes of a monitor whose hand-off is refused though it did hand over a userfaultfd: its guest would wait for ever.
   * Default: as `onError`. Other connections that are refused are closed, whatever this says.
   */
  onRefused?: 'kill' | 'leave';
  /**
   * What becomes of a guest that has less memory than the memory file: 'warn' serves it and emits `warned` (default), 'refuse'
   * refuses its hand-off. A file that is too short is always refused.
   */
  sizeMismatch?: 'warn' | 'refuse';
  /**
   * What becomes of a guest that waits for a page for which there is no memory (an empty pool of huge pages): it waits until
   * there is, or is ended like any that cannot be served. Default 'wait'.
   */
  onStarved?: 'wait' | 'kill';
  /** How long a monitor may take for its hand-off, in milliseconds; default 5000. */
  handOffMs?: number;
  /** How long to wait for the first monitor, in milliseconds; default: for ever. */
  acceptMs?: number;
  /**
   * Mode of the sockets, 0 to 0o777, and their owner. A socket has them from the moment that it has its name. Another owner
   * needs CAP_CHOWN and CAP_FOWNER.
   */
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
/** Monitors that are taken from the queue in a turn of the event loop. */
const ACCEPTED_A_TURN = 16;
/** Guests that one connection may have at a time. */
const GUESTS_A_CONNECTION = 16;
/** How long a monitor may take to end, once killed or exited, until that is a problem; and until `close` waits no longer. */
const LATE_MS = 2000;
const KILLED_MOST_MS = 10_000;
const EAGAIN = -11;
const USERFAULTFD = 'anon_inode:[userfaultfd]';
/** Of a trace's description. */
const ABOUT_MOST = 2 ** 20;

/** Bun cannot post the histogram that guests' threads share with this one, and on Deno the tests of serving do not end well. */
const OTHER_RUNTIME = (name: string): string =>
  `userfaultfd/serve runs on Node, and this is ${name}, whose worker threads are not up to it; run it, or ` +
  "uffd serve, with Node, or serve a userfaultfd that was handed over by Userfaultfd.wrap and start with { wait: 'block' } " +
  'in a worker';

/** One socket that is listened at. */
interface Listener {
  readonly vm: Vm;
  readonly socket: ListeningSocket;
  readonly prefetch: SharedRuns;
  readonly memory: MemoryFile;
  watch: Watch | undefined;
  /** Set where monitors wait: when it listens again. */
  starved: NodeJS.Timeout | undefined;
}

/** What a session has to do with, beside its thread. */
interface Guest {
  readonly vm: Vm;
  readonly monitor: Monitor;
  /** The userfaultfd. */
  readonly fd: number;
  /** What came of killing the monitor; undefined: that was not tried. */
  killing: Killing | undefined;
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
 * @throws UnsupportedError on Deno and Bun; MemoryFileError, RecordError, SocketError, TraceError, WorkingSetError; the errors of open(2); RangeError, TypeError
 */
export async function serve(options: ServeOptions): Promise<Server> {
  const { bun, deno } = process.versions;
  const other = bun ? `Bun ${bun}` : deno ? `Deno ${deno}` : undefined;
  if (other) throw new UnsupportedError(OTHER_RUNTIME(other));
  if (typeof options !== 'object' || options === null) throw wrongType('options', 'an object', options);
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
  readonly #guests = new Map<Session, Guest>();
  readonly #custody = new Custody();
  readonly #conclude: (error?: Error) => void;
  #acceptLimit: NodeJS.Timeout | undefined;
  /** Descriptors that were left, at some time, less what guests since then may need. */
  #descriptors = 0;
  #countedMs = 0;
  #begun = 0;
  #accepting = true;
  /** It ends at once: monitors that are left are not waited for. */
  #closing = false;
  /** Told when what is kept has become less. */
  #released = (): void => {};

  static listen(options: ServeOptions): Server {
    checkOptions(options);
    const server = new Server(options);
    try {
      const { record } = options;
      if (record !== undefined) checkRecord(record, server.#kept());
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

  /**
   * Takes no hand-offs any more; guests that are served go on. `done` resolves when the last has ended, and no guest is left
   * that cannot be served.
   */
  finish(): void {
    this.#deafen();
    this.#concludeIfOver();
  }

  /**
   * Stops serving at once. Guests that still run hang at their next fault: as long as this process lives it keeps their
   * userfaultfds open. `kill` ends their monitors, and waits until they have ended.
   */
  async close({ kill = false } = {}): Promise<void> {
    this.#closing = true;
    const ends = [...this.sessions].map((session) => {
      if (kill) this.#kill(session);
      session.stop();
      return session.ended;
    });
    this.finish();
    await Promise.all(ends);
    await this.#killedEnded();
    this.#custody.abandon();
    this.#concludeIfOver();
    await this.done.catch(() => {});
  }

  /** Resolves when the monitors that were killed have ended; or when that takes too long. */
  #killedEnded(): Promise<void> {
    return new Promise((resolve) => {
      const limit = setTimeout(resolve, KILLED_MOST_MS);
      this.#released = () => {
        if (this.#custody.dying > 0) return;
        clearTimeout(limit);
        resolve();
      };
      this.#released();
    });
  }

  #concludeIfOver(): void {
    const kept = this.#closing ? 0 : this.#custody.size;
    if (!this.#accepting && this.sessions.size === 0 && kept === 0) this.#conclude();
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
      const { runs, cut } =
        prefetch.length > 0 ? workingSet(prefetch, memory.identity, force) : { runs: [], cut: undefined };
      // Nobody listens for events yet.
      if (cut !== undefined) warn(cut);
      socket = ListeningSocket.listen(vm.socket, { mode: socketMode, owner: socketOwner });
      memory.readAhead(runs);
      const prefetched = shared(runs);
      return { vm, socket, prefetch: prefetched, memory, watch: undefined, starved: undefined };
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
      // What waits in the queue may hold descriptors whose close blocks.
      for (const queued of stopListening(socket.fd)) discard(queued);
      socket.close();
    }
    for (const [connection, monitor] of this.#connections) {
      connection.close();
      monitor.leave();
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
    let room = left;
    for (let taken = 0; taken < ACCEPTED_A_TURN && room >= needed && this.#accepting; taken++) {
      room -= GUEST_DESCRIPTORS;
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
      discard(fd);
      this.emit('refused', new HandOffError(refusal || ''), peer, vm, undefined);
      return;
    }
    clearTimeout(this.#acceptLimit);
    const monitor = new Monitor(fd, peer);
    this.emit('connected', peer, vm);
    const guests = new Set<Session>();
    let refused: RefusedGuest | undefined;
    const connection: Connection = new Connection(fd, peer, handOffMs, {
      handedOver: (text, uffd) => {
        try {
          this.#begin(listener, monitor, text, uffd, guests);
        } catch (error) {
          refused = this.#refuse(monitor, uffd, error as Error);
          throw error;
        }
      },
      ended: (error) => {
        this.#connections.delete(connection);
        if (error) this.emit('refused', error, peer, vm, refused);
        monitor.leave();
        if (refused && this.#options.once) this.finish();
      },
    });
    this.#connections.set(connection, monitor);
  }

  // ---- sessions ------------------------------------------------------------------------------------------

  /**
   * Serves what was handed over. Takes the descriptor, unless it throws.
   *
   * @param guests those of the same connection
   */
  #begin(listener: Listener, monitor: Monitor, text: string, fd: number, guests: Set<Session>): void {
    const kind = kindOf(fd);
    if (kind !== undefined && kind !== USERFAULTFD) {
      throw new HandOffError(`what was handed over is no userfaultfd: ${kind.slice(0, 60)}`);
    }
    if (guests.size >= GUESTS_A_CONNECTION) {
      throw new HandOffError(`a connection may have ${GUESTS_A_CONNECTION} guests at a time; it has them`);
    }
    const { vm, prefetch } = listener;
    const {
      window = 1,
      record,
      wait = record === undefined ? 'adaptive' : 'block',
      placement = 'auto',
      eager = false,
      onStarved = 'wait',
    } = this.#options;
    let session: Session;
    let mapping: Mapping | undefined;
    try {
      const regions = parseRegions(text, listener.memory.refresh());
      let memory: SessionTask['memory'];
      try {
        mapping = listener.memory.take(endOf(regions));
        memory = mapping.file;
      } catch (error) {
        // The guest's memory is here already: it has a session, which fails.
        memory = toldError(error);
      }
      this.#checkSize(listener, regions);
      const id = this.#begun + 1;
      session = new Session(this.#threads, {
        ...{
          id,
          fd,
          regions,
          window,
          wait,
          placement,
          eager,
          prefetch,
          peer: monitor.peer,
          memory,
          onStarved,
        },
        warned: (reason) => this.emit('warned', `vm ${id}: ${reason}`, vm),
        record: record !== undefined && mapping ? this.#recordOf(record, id, mapping, regions) : undefined,
        short: (reason) =>
          reason === undefined
            ? this.solveProblem(`vm ${id} memory`)
            : this.reportProblem(`vm ${id} memory`, reason),
      });
    } catch (error) {
      mapping?.release();
      throw error;
    }
    this.#begun++;
    monitor.use().served = true;
    guests.add(session);
    this.sessions.add(session);
    this.#guests.set(session, { vm, monitor, fd, killing: undefined });
    this.emit('begun', session, vm);
    void session.ended.then((end) => {
      mapping?.release();
      guests.delete(session);
      this.#sessionEnded(session, end);
    });
  }

  /** A memory file that is larger than its guest belongs to another snapshot, it may be. */
  #checkSize({ memory: { bytes }, vm }: Listener, regions: readonly Region[]): void {
    const end = endOf(regions);
    if (bytes <= end) return;
    const reason = `the memory file ${vm.memory} has ${bytes} bytes, and its guest only ${end}: is it of another snapshot?`;
    if (this.#options.sizeMismatch === 'refuse') throw new HandOffError(reason, { ofGuest: true });
    this.emit('warned', reason, vm);
  }

  #recordOf(record: string, id: number, mapping: Mapping, regions: readonly Region[]): SessionRecord {
    const { about = {} } = this.#options;
    const { identity, file } = mapping;
    return {
      file: recordPath(record, id),
      about: { ...about, ...aboutSession(identity, regions) },
      kept: [...this.#kept(), keptFile(`/proc/self/fd/${file.fd}`, 'the memory file') ?? []].flat(),
    };
  }

  /** What must not be recorded over. */
  #kept(): KeptFile[] {
    const { vms, prefetch = [] } = this.#options;
    const files = [
      ...vms.map(({ memory }) => [memory, 'the memory file'] as const),
      ...prefetch.map((trace) => [trace, 'the trace'] as const),
    ];
    return files.flatMap(([path, what]) => keptFile(path, what) ?? []);
  }

  /**
   * A hand-off cannot be served. Takes its descriptor. If that is a userfaultfd whose guest waits now, the monitor is killed or
   * left, as it is wanted; undefined: no guest waits.
   */
  #refuse(monitor: Monitor, fd: number, error: Error): RefusedGuest | undefined {
    const sound = !(error instanceof HandOffError) || error.ofGuest;
    if (!sound || kindOf(fd) !== USERFAULTFD) {
      discard(fd);
      return undefined;
    }
    const { onError = 'kill', onRefused = onError } = this.#options;
    const killing = onRefused === 'kill' ? monitor.kill(undefined) : undefined;
    const why = `its hand-off was refused (${error.message})`;
    this.#keep(`monitor ${monitor.name}`, monitor, fd, killing, why);
    return { killed: killing?.is === 'killed' };
  }

  #sessionEnded(session: Session, end: SessionEnd): void {
    const guest = this.#guests.get(session) as Guest;
    const { vm, monitor, fd } = guest;
    const failed = end.how === 'failed';
    if (failed && (this.#options.onError ?? 'kill') === 'kill') this.#kill(session);
    this.sessions.delete(session);
    this.#guests.delete(session);
    const why = failed ? `its guest cannot be served (${end.error.message})` : 'it is served no more';
    this.#keep(`vm ${session.id}`, monitor, fd, guest.killing, why);
    // Whoever it has left the connection to has nothing to hand over.
    if (monitor.exited) this.#closeConnections(monitor);
    monitor.leave();
    this.emit('ended', session, end, vm);
    if (this.#options.once) this.#deafen();
    this.#concludeIfOver();
  }

  /** Kills a session's monitor, once. */
  #kill(session: Session): void {
    const guest = this.#guests.get(session) as Guest;
    if (guest.killing) return;
    const watched = this.#custody.present(guest.fd) ? session.regions[0]?.start : undefined;
    guest.killing = guest.monitor.kill(watched);
    if (guest.killing.is === 'killed') this.emit('killed', session);
  }

  /** Keeps a userfaultfd until nobody can wait for its memory any more, and tells of what stands in the way. */
  #keep(key: string, monitor: Monitor, fd: number, killing: Killing | undefined, why: string): void {
    const killed = killing?.is === 'killed';
    const stays = 'its userfaultfd stays open until that memory is gone';
    if (killing?.is === 'alive') {
      this.reportProblem(
        key,
        `${why}, and its monitor (${monitor.name}) was not killed: ${killing.why}; ${stays}`,
      );
    }
    const kept = this.#custody.keep(fd, monitor, killed, LATE_MS, {
      closed: () => {
        this.solveProblem(key);
        this.#released();
        this.#concludeIfOver();
      },
      late: () => {
        if (killed)
          this.reportProblem(key, `${why}; its monitor (${monitor.name}) was killed, and has not ended yet`);
        else if (monitor.exited) {
          this.reportProblem(
            key,
            `its monitor (${monitor.name}) has exited, and another process has its memory; ${stays}`,
          );
        }
      },
    });
    if (!kept)
      this.reportProblem(key, `${why}; too many userfaultfds of ${monitor.name} are kept, so it was closed`);
  }

  #closeConnections(monitor: Monitor): void {
    for (const [connection, its] of this.#connections) {
      if (its !== monitor) continue;
      this.#connections.delete(connection);
      connection.close();
      monitor.leave();
    }
  }
}

/** Where the part of the memory file ends that these regions take. */
function endOf(regions: readonly Region[]): number {
  return Math.max(...regions.map(({ offset, length }) => offset + length));
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
  const { vms, window, wait, placement, onError, onRefused, onStarved } = options;
  const { handOffMs, acceptMs, socketMode, socketOwner } = options;
  if (!Array.isArray(vms) || vms.length === 0) throw wrongType('vms', 'sockets with their memory', vms);
  if (window !== undefined) checkWindow(window, 'window');
  if (wait !== undefined) checkOneOf(wait, 'wait', WAITS);
  if (placement !== undefined) checkPlacement(placement);
  // A guest's thread would find that out too late.
  if (typeof placement === 'object') usable(placement, linuxProcessors.allowed());
  if (options.sizeMismatch !== undefined)
    checkOneOf(options.sizeMismatch, 'sizeMismatch', ['warn', 'refuse']);
  checkAbout(options.about);
  if (onError !== undefined) checkOneOf(onError, 'onError', ['kill', 'leave']);
  if (onRefused !== undefined) checkOneOf(onRefused, 'onRefused', ['kill', 'leave']);
  if (onStarved !== undefined) checkOneOf(onStarved, 'onStarved', ['wait', 'kill']);
  if (handOffMs !== undefined) checkInteger(handOffMs, 'handOffMs', 1, 2 ** 31 - 1);
  if (acceptMs !== undefined) checkInteger(acceptMs, 'acceptMs', 1, 2 ** 31 - 1);
  if (socketMode !== undefined) checkInteger(socketMode, 'socketMode', 0, 0o777);
  // The last of 32 bits says to the kernel: leave it.
  if (socketOwner) checkInteger(socketOwner.uid, 'socketOwner.uid', 0, 2 ** 32 - 2);
  if (socketOwner) checkInteger(socketOwner.gid, 'socketOwner.gid', 0, 2 ** 32 - 2);
}

/** It goes into each trace. What cannot be written there would end each recording. */
function checkAbout(about: unknown): void {
  if (about === undefined) return;
  const text: unknown = JSON.stringify(about);
  if (typeof about !== 'object' || about === null || typeof text !== 'string') {
    throw wrongType('about', 'an object that can be JSON', about);
  }
  if (text.length > ABOUT_MOST) throw new RangeError(`about has more than ${ABOUT_MOST} characters of JSON`);
}
