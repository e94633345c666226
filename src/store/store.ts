// A store: named objects, in a folder or on a server. Chunks are objects, and an index may be one.

/** Why a store could not do what it was asked for. */
export class StoreError extends Error {
  override readonly name = 'StoreError';
  readonly code = 'ERR_UFFD_STORE';
  /**
   * `missing`: there is no such object. `refused`: it is not allowed; many S3 servers also answer this for an object that
   * is not there. `failed`: everything else, after all attempts. `unable`: this store cannot do it at all.
   */
  readonly kind: 'missing' | 'refused' | 'failed' | 'unable';

  constructor(kind: StoreError['kind'], message: string, options?: ErrorOptions) {
    super(message, options);
    this.kind = kind;
  }
}

/** A part of an object. */
export interface ObjectRange {
  readonly bytes: Uint8Array;
  /** What tells this version of the object from others: pass it on to the next call. */
  readonly version: unknown;
  /** Bytes of the whole object. */
  readonly size: number;
  /** The same as a text, which other processes can compare. Undefined: the server sends nothing that tells versions apart. */
  readonly identity: string | undefined;
}

export interface ListedObject {
  readonly key: string;
  readonly bytes: number;
  /** When it was written: milliseconds since 1970. */
  readonly modifiedMs: number;
}

/** What a store can do besides reading whole objects. */
export interface Abilities {
  readonly range: boolean;
  readonly put: boolean;
  readonly list: boolean;
  readonly delete: boolean;
}

/** Makes memory for so many bytes. */
export type Room = (bytes: number) => Uint8Array;

/**
 * A store. Keys are relative paths of letters, digits and `-_./`. All calls may run at once; the store limits how many
 * do. Each rejects with a StoreError, or with the reason of `signal` if it was aborted.
 */
export interface Store {
  /** For messages: without anything that is secret. */
  readonly name: string;
  readonly can: Abilities;
  /** Most calls that are useful at once. */
  readonly parallel: number;
  /** Where to read what this store has only damaged. */
  readonly fallback?: Store;
  /**
   * The bytes of an object. One of more than `most` bytes is refused, and not read to its end. `room`: where the bytes
   * should go, if the store knows how many come before it reads them; it may be called for each attempt.
   */
  get(key: string, most: number, signal?: AbortSignal, room?: Room): Promise<Uint8Array>;
  /**
   * A part of an object. If `version` is that of another state of the object, the call fails: two versions are never
   * mixed.
   */
  range(
    key: string,
    offset: number,
    length: number,
    version?: unknown,
    signal?: AbortSignal,
  ): Promise<ObjectRange>;
  /** Whether there is such an object. False also if the server refuses to tell. */
  has(key: string, signal?: AbortSignal): Promise<boolean>;
  /**
   * When an object was written, in milliseconds since 1970; Infinity if the store does not say. Undefined if there is no
   * such object, or if the server refuses to tell.
   */
  writtenMs(key: string, signal?: AbortSignal): Promise<number | undefined>;
  /**
   * Makes an object as young as if it had just been written, without sending its bytes. False: the store cannot do that,
   * or there is no such object.
   */
  refresh(key: string, signal?: AbortSignal): Promise<boolean>;
  /** Writes an object: readers see all of it, or what was there before. */
  put(key: string, bytes: Uint8Array, signal?: AbortSignal): Promise<void>;
  /** All objects. */
  list(signal?: AbortSignal): AsyncIterable<ListedObject>;
  /** Removes an object; one that is not there is no error. */
  delete(key: string, signal?: AbortSignal): Promise<void>;
  /** Resolves when what was written survives a loss of power. A server decides that itself. */
  sync(): Promise<void>;
  /** Ends connections. Calls that are under way reject. */
  close(): void;
}

/** @throws StoreError */
export function checkKey(key: string): void {
  if (!/^[\w.-]+(\/[\w.-]+)*$/.test(key) || key.split('/').some((part) => /^\.+$/.test(part)))
    throw new StoreError('unable', `${JSON.stringify(key.slice(0, 100))} cannot be the name of an object`);
}

/** The default grace period of `prune`, in milliseconds: a day. */
export const GRACE_MS = 24 * 3600 * 1000;

/** The end of the names of files that are being written: by a process, or by one that was killed. */
export const PARTIAL_SUFFIX = '.uffd-partial';
