// The address space of a mapping, which goes back when nobody can reach it any more.
//
// Rules:
//  - Views are counted, on all threads. Space whose mapping was closed goes back with the last of them.
//  - So does space whose mapping was dropped without a close, pages and all; but not while a userfaultfd watches it,
//    whoever's that is, and not if another thread may have been told of it (Mapping.share), which nobody can see here.
//    An address alone keeps nothing.

import { closeDescriptor } from '../shim/descriptors.js';
import * as memory from '../shim/memory.js';
import { forgetMemory, onRelease, watchersOf } from './registry.js';

/** Words of the memory that all users of one mapping share. */
const USERS = 0;
const CLOSED = 1;
/** The address space went back: who sets this does it. */
const RETURNED = 2;
/** Bytes of these words. */
export const SHARED_BYTES = 12;

/** Where it is known that somebody may watch dropped space, when to look again: at first, and at last. */
const LOOK_MS = 1000;
const LOOK_MOST_MS = 60_000;

export class Space {
  readonly address: bigint;
  /** Bytes, in whole pages. */
  readonly mapped: number;
  readonly #users: Int32Array;
  /** The descriptor behind it, which belongs to it; −1: none. */
  fd = -1;
  #shared = false;
  #dropped = false;

  constructor(address: bigint, mapped: number, users: SharedArrayBuffer) {
    this.address = address;
    this.mapped = mapped;
    this.#users = new Int32Array(users);
  }

  /** Whether its mapping was closed, on whatever thread. */
  get closed(): boolean {
    return Atomics.load(this.#users, CLOSED) !== 0;
  }

  /** What another thread needs to join. */
  share(): SharedArrayBuffer {
    this.#shared = true;
    return this.#users.buffer as SharedArrayBuffer;
  }

  /** One user more, until `leave`. */
  enter(): void {
    Atomics.add(this.#users, USERS, 1);
  }

  /** One user less; the last one out returns the address space, if the mapping is closed or was dropped. */
  leave(): void {
    if (Atomics.sub(this.#users, USERS, 1) !== 1) return;
    if (this.#dropped) giveUp(this);
    // Somebody who came too late to be a user may leave last as well.
    else if (this.closed && Atomics.compareExchange(this.#users, RETURNED, 0, 1) === 0)
      memory.munmap(this.address, this.mapped);
  }

  /** Its mapping is closed: whoever comes now is too late. */
  close(): void {
    Atomics.store(this.#users, CLOSED, 1);
    this.closeDescriptor();
  }

  /** Nobody has its mapping any more. */
  drop(): void {
    if (this.#shared) return;
    this.#dropped = true;
    if (Atomics.load(this.#users, USERS) === 0) giveUp(this);
  }

  /** Gives all of it back. */
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

/** Calls back when the buffer of a view, on this thread, is collected. */
export const views = new FinalizationRegistry<Space>((space) => space.leave());
/** The same for mappings that own their space. */
export const mappings = new FinalizationRegistry<Space>((space) => space.drop());

// ---- what was dropped, and nobody has a view of ------------------------------------------------------------

const dropped = new Set<Space>();
let due: NodeJS.Timeout | undefined;
let waitMs = 0;

function giveUp(space: Space): void {
  dropped.add(space);
  lookSoon();
}

/** Looks in a turn of its own, so that those who come together are looked for together. */
function lookSoon(): void {
  if (dropped.size === 0) return;
  clearTimeout(due);
  waitMs = 0;
  due = setTimeout(look, 0);
  due.unref();
}

onRelease(lookSoon);

/** Frees what nobody watches. */
function look(): void {
  const watched = memory.watchedAreas();
  for (const space of dropped) {
    const { address, mapped } = space;
    const end = address + BigInt(mapped);
    const isWatched = watched?.some((area) => area.start < end && address < area.end) ?? true;
    if (isWatched || watchersOf(address, mapped).length > 0) continue;
    dropped.delete(space);
    space.free();
  }
  if (dropped.size === 0) return;
  waitMs = Math.min(Math.max(LOOK_MS, waitMs * 2), LOOK_MOST_MS);
  due = setTimeout(look, waitMs);
  due.unref();
}
