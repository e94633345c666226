// The address space of a mapping. It is freed when no view of it can be reached any more.
//
// Rules:
//  - Views are counted, on all threads. If the mapping was closed, the last view frees the address space.
//  - If the mapping was dropped without a close, the last view frees the address space and the pages. But they stay
//    while any userfaultfd watches them. They also stay if another thread may have the mapping (Mapping.share), because
//    this thread does not know the views of that thread. An address alone keeps nothing alive.

import { closeDescriptor } from '../../shim/descriptors.js';
import * as memory from '../../shim/memory.js';
import { forgetMemory, onRelease, uffdsWatching } from '../uffd/open-uffds.js';

/** Words of the memory that all threads with the mapping share. */
const USERS = 0;
const CLOSED = 1;
/** Set by the one user that frees the address space. */
const RETURNED = 2;
/** Bytes of these words. */
export const SHARED_BYTES = 12;

/**
 * Delay, in ms, until dropped spaces that a userfaultfd may still watch are checked again: the first, and the longest.
 */
const LOOK_MS = 1000;
const LOOK_MOST_MS = 60_000;

export class Space {
  readonly address: bigint;
  /** Bytes, in whole pages. */
  readonly mapped: number;
  readonly #users: Int32Array;
  /** The descriptor of its file, which the space owns; −1: none. */
  fd = -1;
  #shared = false;
  #dropped = false;

  constructor(address: bigint, mapped: number, users: SharedArrayBuffer) {
    this.address = address;
    this.mapped = mapped;
    this.#users = new Int32Array(users);
  }

  /** Whether its mapping was closed, on any thread. */
  get closed(): boolean {
    return Atomics.load(this.#users, CLOSED) !== 0;
  }

  /** The memory that another thread needs to attach. */
  share(): SharedArrayBuffer {
    this.#shared = true;
    return this.#users.buffer as SharedArrayBuffer;
  }

  /** Adds a user, until `leave`. */
  enter(): void {
    Atomics.add(this.#users, USERS, 1);
  }

  /**
   * Removes a user. The last one frees the address space if the mapping is closed. If the mapping was collected without
   * a close, `giveUp` frees it once no userfaultfd watches it.
   */
  leave(): void {
    if (Atomics.sub(this.#users, USERS, 1) !== 1) return;
    if (this.#dropped) giveUp(this);
    // A user that entered after the close may also be the last to leave.
    else if (this.closed && Atomics.compareExchange(this.#users, RETURNED, 0, 1) === 0)
      memory.munmap(this.address, this.mapped);
  }

  /** Closes the mapping: no user can enter any more. */
  close(): void {
    Atomics.store(this.#users, CLOSED, 1);
    this.closeDescriptor();
  }

  /** To call when the mapping object was collected without a close. */
  drop(): void {
    if (this.#shared) return;
    this.#dropped = true;
    if (Atomics.load(this.#users, USERS) === 0) giveUp(this);
  }

  /** Unmaps the whole address space. */
  free(): void {
    forgetMemory(this.address, this.mapped);
    memory.munmap(this.address, this.mapped);
    this.closeDescriptor();
  }

  closeDescriptor(): void {
    if (this.fd >= 0) closeDescriptor(this.fd);
    this.fd = -1;
  }
}

/** Removes a user when the buffer of a view is collected on this thread. */
export const views = new FinalizationRegistry<Space>((space) => space.leave());
/** Drops the space when a mapping that owns it is collected on this thread. */
export const mappings = new FinalizationRegistry<Space>((space) => space.drop());

// ---- dropped spaces without views --------------------------------------------------------------------------

const dropped = new Set<Space>();
let due: NodeJS.Timeout | undefined;
let waitMs = 0;

function giveUp(space: Space): void {
  dropped.add(space);
  lookSoon();
}

/** Checks in a later turn of the event loop, so that spaces dropped together are checked together. */
function lookSoon(): void {
  if (dropped.size === 0) return;
  clearTimeout(due);
  waitMs = 0;
  due = setTimeout(look, 0);
  due.unref();
}

onRelease(lookSoon);

/** Frees the spaces that no userfaultfd watches. */
function look(): void {
  const watched = memory.watchedAreas();
  for (const space of dropped) {
    const { address, mapped } = space;
    const end = address + BigInt(mapped);
    const isWatched = watched?.some((area) => area.start < end && address < area.end) ?? true;
    if (isWatched || uffdsWatching(address, mapped).length > 0) continue;
    dropped.delete(space);
    space.free();
  }
  if (dropped.size === 0) return;
  waitMs = Math.min(Math.max(LOOK_MS, waitMs * 2), LOOK_MOST_MS);
  due = setTimeout(look, waitMs);
  due.unref();
}
