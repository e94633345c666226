// What a pager reads from, once it is open in the pager's thread. A source of a program is described by a plain object,
// which is posted to that thread (src/pager/sources.ts).

/** Why a source could not be read. */
export class SourceError extends Error {
  override readonly name = 'SourceError';
  readonly code = 'ERR_UFFD_SOURCE';
  /** Whether trying again is pointless: the data has changed, is gone, or was never allowed. */
  readonly permanent: boolean;

  constructor(message: string, permanent: boolean, options?: ErrorOptions) {
    super(message, options);
    this.permanent = permanent;
  }
}

/** A source that is open. */
export interface OpenSource {
  /** Bytes; they never change. */
  readonly size: number;
  /** Most reads that may be under way at once. */
  readonly parallel: number;
  /** Whether `read` returns when it is done, and needs no event loop. */
  readonly immediate?: boolean;
  /**
   * What tells this version of the data from any other, also when it is opened again; undefined: nothing is known that
   * does.
   */
  readonly identity?: string | undefined;
  /** What a writable pager writes to, if the source takes changes itself. */
  readonly target?: Target | undefined;
  /**
   * Fills all of `into` with the bytes from `offset` on. A source that answers at once returns nothing; any other
   * returns a promise.
   *
   * @param into memory of the pager: it must not be written to after the promise has settled, or `signal` was aborted
   * @param arrived to call with how many bytes, from the start of `into`, are complete so far
   * @throws SourceError, also as a rejection
   */
  read(
    offset: number,
    into: Uint8Array,
    signal: AbortSignal,
    arrived: (bytes: number) => void,
  ): Promise<void> | void;
  /** Ends connections, and closes descriptors. Reads that are under way reject. */
  close(): void;
}

/** What a writable pager writes to. */
export interface Target {
  /**
   * Most bytes that may be under way at once, of a target whose calls return promises. It gets one run of blocks a call,
   * of one block at least, and copies of the bytes. Undefined: calls return when they are done, and get whole batches.
   */
  readonly bytesAtOnce?: number;
  /**
   * Writes parts of the data, one block each (the last one may be shorter). After a crash of the process at any moment
   * each part is as before or as after, unless the target is a sink.
   *
   * @param signal aborted when the pager ends
   * @throws Error, often with a `code` of the system (ENOSPC, EIO), also as a rejection; nothing is lost then: the parts
   *   may be written again
   */
  write(parts: readonly Part[], signal: AbortSignal): void | Promise<void>;
  /** Makes what was written durable, as far as the target's options say. Called at the end of a flush. */
  sync(): void | Promise<void>;
  close(): void;
}

/** What has some blocks of the data. */
export interface BlockStore {
  holds(block: number): boolean;
  /** Reads bytes of blocks that it holds. @throws SourceError */
  read(offset: number, into: Uint8Array): void;
}

/** A part of the data. */
export interface Part {
  readonly offset: number;
  readonly bytes: Uint8Array;
}
