// Serves snapshots of microVMs: listens for monitors, takes their hand-offs, and answers their guests' page faults,
// with one thread for each guest.
//
// Rules:
//  - A mistake of one monitor ends its connection and nothing else.
//  - A guest that cannot be served never runs on: its monitor is killed (monitor.ts), and its userfaultfd is closed
//    only when its memory is gone (retained-uffds.ts), because closing it lets every waiter read zeros.
//  - A monitor is accepted only if there is room for all descriptors of its guest: in the queue a monitor can wait, but
//    a descriptor without room is lost, and its guest hangs.
//  - Descriptors from a peer are closed on another thread, because a close may block (shim/discard.ts).
//  - Nothing is left behind: socket paths, descriptors, threads.

import { descriptorsLeft, kindOf } from '../../shim/descriptors.js';
import { discard } from '../../shim/discard.js';
import { linuxProcessors } from '../../shim/processors.js';
import { acceptUnix, peerOf, stopListening } from '../../shim/socket.js';
import { watchReadable } from '../../shim/watch.js';
import { checkBoolean, checkInteger, checkOneOf, invalidValue, wrongType } from '../errors/arguments.js';
import { UffdError, UnsupportedError } from '../errors/errors.js';
import { warn } from '../errors/warning.js';
import type { Watch } from '../kernel/port.js';
import { checkPlacement, type Placement, usable } from '../scheduling/affinity.js';
import type { StoreOptions } from '../store/options.js';
import { WAITS, type Wait } from '../uffd/event-loop.js';
import { checkWindow, type Window } from '../uffd/options.js';
import { Connection } from './connection.js';
import { type RefusedGuest, ServerEmitter, type Vm } from './events.js';
import { type FileRange, type SharedRanges, shared } from './extents.js';
import { GuestSession, type SessionEnd, type Threads } from './guest-session.js';
import { HandOffError, memoryAnswerText, parseRegions, type Region } from './handoff-protocol.js';
import { MemoryFile, MemoryFileError } from './memory-file.js';
import { type KillResult, Monitor } from './monitor.js';
import { checkRecord, type ProtectedFile, protectedFile, recordPath } from './record-file.js';
import { NO_RETENTION, NoThreads, scratchHandOff } from './rehearsal.js';
import type { RemoteMemory, RemoteStorage, StorageCounts } from './remote-memory.js';
import { RetainedUffds, type Retention } from './retained-uffds.js';
import { SharedImages, type SharedPages, type SharingCounts, sharesPages } from './shared-pages.js';
import { ListeningSocket, SocketError } from './socket-path.js';
import { postableError, type SessionRecord, type SessionTask } from './worker-messages.js';
import { WorkerPool } from './worker-pool.js';
import { aboutSession, workingSet } from './working-set.js';

export interface ServeOptions {
  /** The sockets and their memory files. */
  vms: readonly Vm[];
  /** Pages to install for a fault; default 1. */
  window?: Window;
  /** Whether to install all other pages in the background, too; default false. */
  eager?: boolean;
  /** Traces of sessions with the same memory file: the pages that they touched are installed first. */
  prefetch?: readonly string[];
  /** Whether to accept traces of other memory files; default false. */
  force?: boolean;
  /**
   * Write a trace of each session: the first to this file, the second to `FILE.2`, and so on. A file that cannot be
   * written, or is a memory file or a trace of `prefetch`, is a RecordError at once. If a recording fails later, it
   * ends, `warned` is emitted, and the session's `recorded` has the reason.
   */
  record?: string;
  /** Notes, as JSON, for the descriptions of the traces that `record` writes. */
  about?: Record<string, unknown>;
  /**
   * Whether monitors may ask for memory that guests share (`requestSharedMemory`): one copy of a page for all guests of
   * a memory file. Nothing changes for monitors that do not ask. Default false.
   */
  sharePages?: boolean;
  /** How a session's thread waits for faults; default 'adaptive'. */
  wait?: Wait;
  /** Where a session's thread runs; default 'none'. 'awake' and 'auto' change how the whole machine sleeps. */
  placement?: Placement;
  /** End when the first session has ended. */
  once?: boolean;
  /** Users whose monitors are served; default: all users that may connect. */
  allowUids?: readonly number[];
  /** What happens to a monitor whose guest can no longer be served; default 'kill'. */
  onError?: 'kill' | 'leave';
  /**
   * What happens to a monitor whose hand-off is refused although it handed over a userfaultfd: its guest would wait
   * for ever. Default: as `onError`. Other refused connections are always closed.
   */
  onRefused?: 'kill' | 'leave';
  /**
   * What happens to a guest that has less memory than the memory file: 'warn' (default) serves it and emits `warned`,
   * 'refuse' refuses its hand-off. A file that is too short is always refused.
   */
  sizeMismatch?: 'warn' | 'refuse';
  /**
   * What happens to a guest that waits for a page for which there is no memory (an empty pool of huge pages): it waits
   * until there is memory, or is ended like a guest that cannot be served. Default 'wait'.
   */
  onStarved?: 'wait' | 'kill';
  /** The time limit of a monitor's hand-off, in milliseconds; default 5000. */
  handOffMs?: number;
  /** How long to wait for the first monitor, in milliseconds; default: for ever. */
  acceptMs?: number;
  /**
   * Mode of the sockets, 0 to 0o777, and their owner. A socket gets both before it gets its name. Another owner needs
   * CAP_CHOWN and CAP_FOWNER.
   */
  socketMode?: number;
  socketOwner?: { readonly uid: number; readonly gid: number };
  /** Where the chunks of memory files that are indexes (`.caibx`) are: a folder, or a URL: http:, https: or s3:. */
  store?: string;
  /** How the store, and memory files in zstd's seekable format (`.zst`: a path or such a URL), are reached. */
  storeOptions?: StoreOptions;
  /** The folder that keeps chunks on this machine. Servers may share it. Needed for indexes and `.zst` files. */
  cache?: string;
  /** Most bytes of the cache; default 20 GiB. */
  cacheBytes?: number;
  /**
   * Milliseconds for which a guest waits for a chunk that the store does not deliver, before it cannot be served.
   * Default: for ever.
   */
  storeDeadlineMs?: number;
}

/** The default of `cacheBytes`. */
export const CACHE_BYTES = 20 * 2 ** 30;
/** An index, or a file in zstd's seekable format, by its name. */
const INDEX_NAME = /\.caibx(\?|$)/;
const CHUNKS_NAME = /\.(caibx|zst)(\?|$)/;

/**
 * The most descriptors of a guest: its connection, its userfaultfd and a memfd, a trace, two pidfds, an eventfd; and
 * those of a new thread: eight, and the files that it loads, dozens at a time.
 */
const GUEST_DESCRIPTORS = 64;
/** If this many descriptors are free, they are counted only once a second: counting delays a guest's first page. */
const DESCRIPTORS_PLENTY = 4096;
const COUNTED_MS = 1000;
/** Milliseconds until the server retries to accept a monitor for which there was no room. */
const STARVED_MS = 100;
/** Monitors that are accepted in one turn of the event loop. */
const ACCEPTED_A_TURN = 16;
/** Guests that one connection may have at a time. */
const GUESTS_A_CONNECTION = 16;
/**
 * Milliseconds that a monitor may take to end, once killed or exited; after that it is a problem, and `close` stops
 * waiting.
 */
const LATE_MS = 2000;
const KILLED_MOST_MS = 10_000;
/** The most milliseconds that the scratch hand-off takes. */
const REHEARSED_MS = 200;
const EAGAIN = -11;
const USERFAULTFD = 'anon_inode:[userfaultfd]';
/** The most bytes of a trace's description. */
const ABOUT_MOST = 2 ** 20;

/**
 * Bun cannot post the histogram that guests' threads share with this one, and on Deno the tests of serving do not
 * complete.
 */
const OTHER_RUNTIME = (name: string): string =>
  `userfaultfd/serve runs on Node, and this is ${name}, whose worker threads are not up to it; run it, or ` +
  "uffd serve, with Node, or serve a userfaultfd that was handed over by Userfaultfd.wrap and start with { wait: 'block' } " +
  'in a worker';

/** A listening socket, and its memory file. */
interface Listener {
  readonly vm: Vm;
  readonly socket: ListeningSocket;
  readonly prefetch: SharedRanges;
  /** What is loaded before a guest asks for it. */
  readonly loaded: readonly FileRange[];
  readonly memory: MemoryFile | RemoteMemory;
  watch: Watch | undefined;
  /** The timer after which it accepts again; undefined unless monitors wait. */
  starved: NodeJS.Timeout | undefined;
}

type TakenMemory = ReturnType<Listener['memory']['take']>;

/** What a connection was given that has asked for the memory that guests share. */
interface Lent {
  readonly mapping: TakenMemory;
  readonly pages: SharedPages;
}

/** What the server keeps for each session. */
interface Guest {
  readonly vm: Vm;
  readonly monitor: Monitor;
  /** The userfaultfd. */
  readonly fd: number;
  /** The result of killing the monitor; undefined if that was not tried. */
  killResult: KillResult | undefined;
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
  readonly sessions = new Set<GuestSession>();
  /**
   * Resolves when the server takes no more hand-offs and all sessions have ended; rejects if no monitor came in time.
   */
  readonly done: Promise<void>;
  readonly #options: ServeOptions;
  readonly #threads: Threads & Pick<WorkerPool, 'close'>;
  readonly #listeners: Listener[] = [];
  /** The store and the cache; undefined if all memory is in local files. */
  #storage: RemoteStorage | undefined;
  readonly #sharedImages = new SharedImages();
  readonly #connections = new Map<Connection, Monitor>();
  readonly #guests = new Map<GuestSession, Guest>();
  readonly #retained: Retention;
  readonly #conclude: (error?: Error) => void;
  #acceptLimit: NodeJS.Timeout | undefined;
  /** Free descriptors at the last count, minus those that guests may need that were accepted since then. */
  #descriptors = 0;
  #countedMs = 0;
  #begun = 0;
  #accepting = true;
  /** Whether the server ends at once, without waiting for the remaining monitors. */
  #closing = false;
  /** Called when a retained userfaultfd was closed. */
  #released = (): void => {};

  static async listen(options: ServeOptions): Promise<Server> {
    checkOptions(options);
    const { once = false, window = 1, wait = 'adaptive' } = options;
    const threads = new WorkerPool(!once, { window, wait });
    const server = new Server(options, threads, new RetainedUffds());
    // The first thread starts while the files are opened.
    const prepared = threads.prepare();
    // It is awaited after other work, during which it may be rejected.
    prepared.catch(() => {});
    try {
      const { record } = options;
      if (record !== undefined) checkRecord(record, server.#protectedFiles());
      await server.#openStorage();
      for (const vm of options.vms) server.#listeners.push(await server.#listen(vm));
      await Server.#rehearse(server.#listeners[0] as Listener);
      await prepared;
      for (const { memory, prefetch } of server.#listeners) memory.mapAhead(threads, prefetch);
    } catch (error) {
      server.#stopAccepting();
      // The caller may end the process, and a thread that is ended while it loads koffi would abort it.
      await threads.close();
      await server.#storage?.close();
      throw error;
    }
    // Accept the first monitor only after the caller had a chance to listen for events.
    for (const listener of server.#listeners) {
      listener.watch = watchReadable(listener.socket.fd, () => server.#accept(listener));
    }
    if (options.acceptMs !== undefined) {
      server.#acceptLimit = setTimeout(() => server.#endUnlessConnected(), options.acceptMs);
    }
    return server;
  }

  /** Takes a scratch hand-off once (rehearsal.ts). */
  static async #rehearse(listener: Listener): Promise<void> {
    const fd = scratchHandOff();
    if (fd === undefined) return;
    const server = new Server({ vms: [listener.vm] }, new NoThreads(), NO_RETENTION);
    let limit: NodeJS.Timeout | undefined;
    const over = new Promise((resolve) => {
      server.once('ended', resolve).once('refused', resolve);
      // Whatever happens here, the server gets ready.
      limit = setTimeout(resolve, REHEARSED_MS);
    });
    server.#descriptorsLeft();
    server.#acceptMonitor(listener, fd);
    await over;
    clearTimeout(limit);
    await server.close();
  }

  private constructor(
    options: ServeOptions,
    threads: Threads & Pick<WorkerPool, 'close'>,
    retained: Retention,
  ) {
    super();
    this.#options = options;
    this.#threads = threads;
    this.#retained = retained;
    let settle = (_error?: Error): void => {};
    this.done = new Promise((resolve, reject) => {
      settle = (error) => (error ? reject(error) : resolve());
    });
    // Callers that ignore `done` must not crash on its rejection.
    this.done.catch(() => {});
    this.#conclude = (error) => {
      // Settle only after the threads have ended, because the process may end at once.
      void Promise.all([this.#threads.close(), this.#storage?.close()]).then(() => settle(error));
    };
  }

  /** What was loaded from the cache and the store; undefined if all memory is in local files. */
  get storage(): StorageCounts | undefined {
    return this.#storage?.counts;
  }

  /** What guests share; undefined if the server shares no pages. */
  get sharing(): SharingCounts | undefined {
    if (!this.#options.sharePages) return undefined;
    const guests = [...this.sessions].filter(({ regions }) => regions.some(({ shared }) => shared)).length;
    return { guests, memoryBytes: this.#sharedImages.memoryBytes };
  }

  /** Guests that were served since the start. */
  get served(): number {
    return this.#begun;
  }

  /**
   * Takes no more hand-offs; served guests continue. `done` resolves when the last guest has ended, and no monitor is
   * left whose guest cannot be served.
   */
  finish(): void {
    this.#stopAccepting();
    this.#concludeIfOver();
  }

  /**
   * Stops serving at once. Guests that still run hang at their next fault: this process keeps their userfaultfds open
   * as long as it lives. `kill` ends their monitors, and waits until they have ended.
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
    this.#retained.abandon();
    this.#concludeIfOver();
    await this.done.catch(() => {});
  }

  /** Resolves when the killed monitors have ended, or after a time limit. */
  #killedEnded(): Promise<void> {
    return new Promise((resolve) => {
      const limit = setTimeout(resolve, KILLED_MOST_MS);
      this.#released = () => {
        if (this.#retained.dying > 0) return;
        clearTimeout(limit);
        resolve();
      };
      this.#released();
    });
  }

  #concludeIfOver(): void {
    const kept = this.#closing ? 0 : this.#retained.size;
    if (!this.#accepting && this.sessions.size === 0 && kept === 0) this.#conclude();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  // ---- sockets -------------------------------------------------------------------------------------------

  /** Opens the store and the cache, if there is memory in them. */
  async #openStorage(): Promise<void> {
    const { vms, store, storeOptions, cache, cacheBytes = CACHE_BYTES } = this.#options;
    const remote = vms.find(({ memory }) => CHUNKS_NAME.test(memory));
    const index = vms.find(({ memory }) => INDEX_NAME.test(memory));
    if (index !== undefined && (store === undefined || cache === undefined)) {
      throw new MemoryFileError(
        `${index.memory} is an index, and ${store === undefined ? 'store' : 'cache'} says nothing about its chunks: give a store and a cache (--store, --cache)`,
      );
    }
    if (store === undefined && cache !== undefined && remote === undefined)
      throw new MemoryFileError(
        'there is a cache, and no memory for it: it must be an index (.caibx), with a store, or a file in the seekable format (.zst)',
      );
    if (cache === undefined) {
      if (remote === undefined) return;
      throw new MemoryFileError(
        `${remote.memory} is compressed (zstd), and its parts are kept in a cache: give its folder (--cache)`,
      );
    }
    // The clients of stores are loaded when they are needed.
    const { RemoteStorage } = await import('./remote-memory.js');
    this.#storage = await RemoteStorage.open({
      ...{ store, cache, cacheBytes, ...(storeOptions && { storeOptions }) },
      report: (trouble, reason) =>
        reason === undefined ? this.solveProblem(trouble) : this.reportProblem(trouble, reason),
    });
  }

  async #listen(vm: Vm): Promise<Listener> {
    const { prefetch = [], force = false, eager = false, socketMode, socketOwner } = this.#options;
    // Check this before a monitor connects.
    const memory =
      this.#storage && CHUNKS_NAME.test(vm.memory)
        ? await this.#storage.openMemory(vm.memory)
        : new MemoryFile(vm.memory, vm.layers);
    // The caller cannot listen for events yet.
    if ('notes' in memory) for (const note of memory.notes) warn(note);
    let socket: ListeningSocket | undefined;
    try {
      const beside = 'workingSet' in memory ? memory.workingSet : [];
      const { ranges, truncated } =
        prefetch.length > 0
          ? workingSet(prefetch, memory.identity, force)
          : { ranges: beside, truncated: undefined };
      if (truncated !== undefined) warn(truncated);
      socket = ListeningSocket.listen(vm.socket, { mode: socketMode, owner: socketOwner });
      const loaded =
        eager && 'workingSet' in memory ? [...ranges, { offset: 0, length: memory.bytes }] : ranges;
      memory.readAhead(loaded);
      const prefetched = shared(ranges);
      return { vm, socket, prefetch: prefetched, loaded, memory, watch: undefined, starved: undefined };
    } catch (error) {
      memory.close();
      socket?.close();
      throw error;
    }
  }

  /** Takes no more hand-offs. Idempotent. */
  #stopAccepting(): void {
    this.#accepting = false;
    void this.#threads.close();
    clearTimeout(this.#acceptLimit);
    for (const { socket, watch, starved, memory } of this.#listeners.splice(0)) {
      watch?.close();
      clearTimeout(starved);
      memory.close();
      // Connections in the queue may hold descriptors whose close blocks.
      for (const queued of stopListening(socket.fd)) discard(queued);
      socket.close();
    }
    for (const [connection, monitor] of this.#connections) {
      connection.close();
      monitor.release();
    }
    this.#connections.clear();
  }

  #endUnlessConnected(): void {
    const { acceptMs } = this.#options;
    this.#stopAccepting();
    this.#conclude(new SocketError(`no monitor has connected within ${acceptMs} ms`));
  }

  /** Accepts as many monitors from the queue as there is room for. */
  #accept(listener: Listener): void {
    const left = this.#descriptorsLeft();
    const needed = GUEST_DESCRIPTORS * (1 + this.#beginning);
    if (left < needed) this.#pauseAccepting(listener, noRoom(left, needed));
    // Stop after the last monitor that fits: if the queue is not empty, this is called again.
    let room = left;
    for (let taken = 0; taken < ACCEPTED_A_TURN && room >= needed && this.#accepting; taken++) {
      room -= GUEST_DESCRIPTORS;
      const fd = acceptUnix(listener.socket.fd);
      if (fd === EAGAIN) return;
      if (fd < 0) {
        this.#pauseAccepting(listener, new UffdError(fd, 'accept4').message);
        return;
      }
      listener.starved = undefined;
      this.#descriptors -= GUEST_DESCRIPTORS;
      this.#acceptMonitor(listener, fd);
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

  /** Number of guests that may not have all of their descriptors yet. */
  get #beginning(): number {
    const connecting = [...this.#connections.values()].filter(({ served }) => !served);
    return connecting.length + [...this.sessions].filter(({ serving }) => !serving).length;
  }

  /** Pauses accepting, so that the same monitor is not reported again and again. */
  #pauseAccepting(listener: Listener, reason: string): void {
    if (!listener.starved) this.emit('starved', reason, listener.vm);
    listener.watch?.close();
    listener.watch = undefined;
    listener.starved = setTimeout(() => {
      listener.watch = watchReadable(listener.socket.fd, () => this.#accept(listener));
    }, STARVED_MS);
  }

  #acceptMonitor(listener: Listener, fd: number): void {
    const { vm } = listener;
    const { allowUids, handOffMs = 5000 } = this.#options;
    const peer = peerOf(fd);
    const refusal = peer
      ? allowUids && !allowUids.includes(peer.uid) && `user ${peer.uid} is not allowed`
      : 'its credentials are unavailable';
    if (!peer || refusal) {
      discard(fd);
      this.emit('refused', new HandOffError(refusal || ''), peer, vm, undefined);
      return;
    }
    clearTimeout(this.#acceptLimit);
    this.#threads.expect();
    const monitor = new Monitor(fd, peer);
    this.emit('connected', peer, vm);
    const guests = new Set<GuestSession>();
    let lent: Lent | undefined;
    let refused: RefusedGuest | undefined;
    const connection: Connection = new Connection(fd, handOffMs, {
      handedOver: (text, uffd) => {
        try {
          this.#begin(listener, monitor, text, uffd, guests, lent);
        } catch (error) {
          refused = this.#refuse(monitor, uffd, error as Error);
          throw error;
        }
      },
      memoryRequested: () => {
        try {
          lent ??= this.#lend(listener);
        } catch (error) {
          return { text: memoryAnswerText({ error: (error as Error).message }) };
        }
        return { text: memoryAnswerText({ size: lent.pages.bytes }), fd: lent.pages.fd };
      },
      closed: () => {
        if (lent) this.#takeBack(lent);
      },
      ended: (error) => {
        this.#connections.delete(connection);
        if (error) this.emit('refused', error, peer, vm, refused);
        monitor.release();
        if (refused && this.#options.once) this.finish();
      },
    });
    this.#connections.set(connection, monitor);
  }

  /** The memory that guests share, for a connection. @throws Error: why there is none */
  #lend(listener: Listener): Lent {
    if (!this.#options.sharePages)
      throw new HandOffError('it was started without --share-pages (sharePages)');
    listener.memory.refresh();
    const mapping = listener.memory.take(0);
    try {
      return { mapping, pages: this.#sharedImages.hold(mapping.file, mapping.file.bytes) };
    } catch (error) {
      mapping.release();
      throw error;
    }
  }

  #takeBack({ mapping }: Lent): void {
    this.#sharedImages.release(mapping.file);
    mapping.release();
  }

  // ---- sessions ------------------------------------------------------------------------------------------

  /**
   * Serves a userfaultfd that was handed over. Takes the descriptor, unless it throws.
   *
   * @param guests the guests of the same connection
   * @param lent what was lent to the connection
   */
  #begin(
    listener: Listener,
    monitor: Monitor,
    text: string,
    fd: number,
    guests: Set<GuestSession>,
    lent: Lent | undefined,
  ): void {
    const kind = kindOf(fd);
    if (kind !== undefined && kind !== USERFAULTFD) {
      throw new HandOffError(`what was handed over is no userfaultfd: ${kind.slice(0, 60)}`);
    }
    if (guests.size >= GUESTS_A_CONNECTION) {
      throw new HandOffError(`a connection may have ${GUESTS_A_CONNECTION} guests at a time; it has them`);
    }
    const { vm, prefetch } = listener;
    const { window = 1, record, wait = 'adaptive', placement = 'none' } = this.#options;
    const { eager = false, onStarved = 'wait' } = this.#options;
    let session: GuestSession;
    let mapping: TakenMemory | undefined;
    let pages: SharedPages | undefined;
    const release = (): void => {
      if (pages && mapping) this.#sharedImages.release(mapping.file);
      mapping?.release();
    };
    try {
      const regions = parseRegions(text, lent?.mapping.file.bytes ?? listener.memory.refresh());
      const sharing = sharesPages(regions, fd, lent !== undefined) ? lent : undefined;
      let memory: SessionTask['memory'];
      try {
        // Memory that was lent is that of the file at the time of the request.
        const held = sharing?.mapping;
        mapping = held && 'hold' in held ? held.hold() : listener.memory.take(endOf(regions));
        memory = mapping.file;
        if (sharing) pages = this.#sharedImages.hold(mapping.file, mapping.file.bytes);
      } catch (error) {
        // The userfaultfd was handed over already, so the guest gets a session, which fails.
        memory = postableError(error);
      }
      this.#checkSize(listener, regions);
      const image = mapping && 'join' in mapping ? mapping : undefined;
      const id = this.#begun + 1;
      session = new GuestSession(this.#threads, {
        ...{ id, fd, regions, window, wait, placement, eager, prefetch, memory, onStarved },
        shared: pages?.memory,
        deadlineMs: this.#options.storeDeadlineMs,
        wanted: (chunks) => image?.want(session, chunks),
        peer: monitor.peer,
        warned: (reason) => this.emit('warned', `vm ${id}: ${reason}`, vm),
        record: record !== undefined && mapping ? this.#recordOf(record, id, mapping, regions) : undefined,
        short: (reason) =>
          reason === undefined
            ? this.solveProblem(`vm ${id} memory`)
            : this.reportProblem(`vm ${id} memory`, reason),
      });
      image?.join(session);
    } catch (error) {
      release();
      throw error;
    }
    // What was given up since the start is loaded again.
    if ('workingSet' in listener.memory) listener.memory.readAhead(listener.loaded);
    this.#begun++;
    monitor.hold().served = true;
    guests.add(session);
    this.sessions.add(session);
    this.#guests.set(session, { vm, monitor, fd, killResult: undefined });
    this.emit('begun', session, vm);
    void session.ended.then((end) => {
      release();
      guests.delete(session);
      this.#sessionEnded(session, end);
    });
  }

  /** Warns about a memory file that is larger than its guest: it may belong to another snapshot. */
  #checkSize({ memory: { bytes }, vm }: Listener, regions: readonly Region[]): void {
    const end = endOf(regions);
    if (bytes <= end) return;
    const reason = `the memory file ${vm.memory} has ${bytes} bytes, and its guest only ${end}: is it of another snapshot?`;
    if (this.#options.sizeMismatch === 'refuse') throw new HandOffError(reason, { ofGuest: true });
    this.emit('warned', reason, vm);
  }

  #recordOf(
    record: string,
    id: number,
    { identity, file }: ReturnType<Listener['memory']['take']>,
    regions: readonly Region[],
  ): SessionRecord {
    const { about = {} } = this.#options;
    return {
      file: recordPath(record, id),
      about: { ...about, ...aboutSession(identity, regions) },
      protectedFiles: [
        ...this.#protectedFiles(),
        ('fd' in file && protectedFile(`/proc/self/fd/${file.fd}`, 'the memory file')) || [],
      ].flat(),
    };
  }

  /** The files that must not be recorded over. */
  #protectedFiles(): ProtectedFile[] {
    const { vms, prefetch = [] } = this.#options;
    const files = [
      ...vms.map(({ memory }) => [memory, 'the memory file'] as const),
      ...vms.flatMap(({ layers = [] }) => layers.map((layer) => [layer, 'the diff snapshot'] as const)),
      ...prefetch.map((trace) => [trace, 'the trace'] as const),
    ];
    return files.flatMap(([path, what]) => protectedFile(path, what) ?? []);
  }

  /**
   * Refuses a hand-off that cannot be served. Takes its descriptor. If that is a userfaultfd whose guest waits now, the
   * monitor is killed or left, as `onRefused` says; undefined if no guest waits.
   */
  #refuse(monitor: Monitor, fd: number, error: Error): RefusedGuest | undefined {
    const sound = !(error instanceof HandOffError) || error.ofGuest;
    if (!sound || kindOf(fd) !== USERFAULTFD) {
      discard(fd);
      return undefined;
    }
    const { onError = 'kill', onRefused = onError } = this.#options;
    const killResult = onRefused === 'kill' ? monitor.kill(undefined) : undefined;
    const why = `its hand-off was refused (${error.message})`;
    this.#retain(`monitor ${monitor.name}`, monitor, fd, killResult, why);
    return { killed: killResult?.is === 'killed' };
  }

  #sessionEnded(session: GuestSession, end: SessionEnd): void {
    const guest = this.#guests.get(session) as Guest;
    const { vm, monitor, fd } = guest;
    const failed = end.how === 'failed';
    if (failed && (this.#options.onError ?? 'kill') === 'kill') this.#kill(session);
    this.sessions.delete(session);
    this.#guests.delete(session);
    const why = failed ? `its guest cannot be served (${end.error.message})` : 'it is served no more';
    this.#retain(`vm ${session.id}`, monitor, fd, guest.killResult, why);
    // Another process that now holds the connection has nothing to hand over.
    if (monitor.exited) this.#closeConnections(monitor);
    monitor.release();
    this.emit('ended', session, end, vm);
    if (this.#options.once) this.#stopAccepting();
    this.#concludeIfOver();
  }

  /** Kills a session's monitor, once. */
  #kill(session: GuestSession): void {
    const guest = this.#guests.get(session) as Guest;
    if (guest.killResult) return;
    const watched = this.#retained.present(guest.fd) ? session.regions[0]?.start : undefined;
    guest.killResult = guest.monitor.kill(watched);
    if (guest.killResult.is === 'killed') this.emit('killed', session);
  }

  /** Retains a userfaultfd until no thread can wait for its memory, and reports what prevents that. */
  #retain(key: string, monitor: Monitor, fd: number, killResult: KillResult | undefined, why: string): void {
    const killed = killResult?.is === 'killed';
    const stays = 'its userfaultfd stays open until that memory is gone';
    if (killResult?.is === 'alive') {
      this.reportProblem(
        key,
        `${why}, and its monitor (${monitor.name}) was not killed: ${killResult.why}; ${stays}`,
      );
    }
    const kept = this.#retained.retain(fd, monitor, killed, LATE_MS, {
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
      monitor.release();
    }
  }
}

/** The offset at which the part of the memory file ends that these regions cover. */
function endOf(regions: readonly Region[]): number {
  return Math.max(...regions.map(({ offset, length }) => offset + length));
}

function noRoom(left: number, needed: number): string {
  return `${left} descriptors are left, and ${needed} may be needed; close some, or raise the limit (ulimit -n)`;
}

function checkOptions(options: ServeOptions): void {
  const { vms, window, wait, placement, onError, onRefused, onStarved } = options;
  const { handOffMs, acceptMs, socketMode, socketOwner, cacheBytes, storeDeadlineMs } = options;
  if (!Array.isArray(vms) || vms.length === 0) throw wrongType('vms', 'sockets with their memory', vms);
  for (const vm of vms) checkLayers(vm);
  if (window !== undefined) checkWindow(window, 'window');
  if (wait !== undefined) checkOneOf(wait, 'wait', WAITS);
  if (placement !== undefined) checkPlacement(placement);
  // Check this now, because a guest's thread would find the mistake too late.
  if (typeof placement === 'object') usable(placement, linuxProcessors.allowed());
  if (options.sizeMismatch !== undefined)
    checkOneOf(options.sizeMismatch, 'sizeMismatch', ['warn', 'refuse']);
  checkAbout(options.about);
  if (options.sharePages !== undefined) checkBoolean(options.sharePages, 'sharePages');
  if (onError !== undefined) checkOneOf(onError, 'onError', ['kill', 'leave']);
  if (onRefused !== undefined) checkOneOf(onRefused, 'onRefused', ['kill', 'leave']);
  if (onStarved !== undefined) checkOneOf(onStarved, 'onStarved', ['wait', 'kill']);
  if (handOffMs !== undefined) checkInteger(handOffMs, 'handOffMs', 1, 2 ** 31 - 1);
  if (acceptMs !== undefined) checkInteger(acceptMs, 'acceptMs', 1, 2 ** 31 - 1);
  if (socketMode !== undefined) checkInteger(socketMode, 'socketMode', 0, 0o777);
  for (const name of ['store', 'cache'] as const) {
    const value = options[name];
    if (value !== undefined && (typeof value !== 'string' || value === ''))
      throw wrongType(name, 'a text that is not empty', value);
  }
  if (options.store !== undefined && options.cache === undefined)
    throw invalidValue('store must be given with cache');
  if (cacheBytes !== undefined) checkInteger(cacheBytes, 'cacheBytes', 1, Number.MAX_SAFE_INTEGER);
  if (storeDeadlineMs !== undefined) checkInteger(storeDeadlineMs, 'storeDeadlineMs', 1, 2 ** 31 - 1);
  // The kernel takes the highest 32-bit number as "do not change".
  if (socketOwner) checkInteger(socketOwner.uid, 'socketOwner.uid', 0, 2 ** 32 - 2);
  if (socketOwner) checkInteger(socketOwner.gid, 'socketOwner.gid', 0, 2 ** 32 - 2);
}

function checkLayers({ memory, layers = [] }: Vm): void {
  const texts = Array.isArray(layers) && layers.every((layer) => typeof layer === 'string' && layer !== '');
  if (!texts) throw wrongType('layers', 'paths of diff snapshots', layers);
  if (layers.length > 0 && CHUNKS_NAME.test(memory))
    throw invalidValue(
      `${memory} is ${INDEX_NAME.test(memory) ? 'an index' : 'compressed'}, on which no diff can lie; pack the diffs with the memory (uffd pack --layer)`,
    );
}

/** Checks the notes for the traces: notes that cannot be written would end each recording. */
function checkAbout(about: unknown): void {
  if (about === undefined) return;
  const text: unknown = JSON.stringify(about);
  if (typeof about !== 'object' || about === null || typeof text !== 'string') {
    throw wrongType('about', 'an object that can be JSON', about);
  }
  if (text.length > ABOUT_MOST) throw new RangeError(`about has more than ${ABOUT_MOST} characters of JSON`);
}
