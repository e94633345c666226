// Shared memory objects of both kernels, for random programs: the calls that a handler makes with the descriptor of a
// memfd, and MADV_DONTNEED that it calls itself. None of them may sleep.

import { strict as assert } from 'node:assert';
import { closeSync, readSync, writeSync } from 'node:fs';
import { libc, orErrno } from '../../../shim/libc.js';
import {
  MAP_PRIVATE,
  MAP_SHARED,
  madvise,
  memfdCreate,
  mmap,
  PROT_READ,
  PROT_WRITE,
} from '../../../shim/memory.js';
import type { SharedMemory } from '../../../src/sim/index.js';
import { SimulatedWorld } from '../../semantics/simulated.js';
import type { World } from '../../semantics/world.js';

const P = 4096;
const MAP_FIXED_NOREPLACE = 0x100000;
const MADV_DONTNEED = 4;
const SEEK_DATA = 3;
const PUNCH_HOLE_KEEP_SIZE = 3;

/** A shared memory object of a world. */
export interface SharedObject {
  /** Maps the object at free addresses, which end with the world. The mapping may go beyond the end of the object. */
  map(firstPage: number, pages: number, isPrivate: boolean): bigint;
  write(offset: number, bytes: Uint8Array): void;
  read(offset: number, length: number): Uint8Array;
  punchHole(offset: number, length: number): void;
  /** Whether a page is in the page cache. */
  holds(page: number): boolean;
}

/** Makes an object in a world. */
export function makeObject(world: World, pages: number): SharedObject {
  return world instanceof SimulatedWorld ? new SimulatedObject(world, pages) : new RealObject(world, pages);
}

/** MADV_DONTNEED, called by the handler: 0 or −errno. */
export function dontNeed(world: World, address: bigint, length: number): number {
  return world instanceof SimulatedWorld
    ? world.kernel.dontNeed(address, length)
    : madvise(address, length, MADV_DONTNEED);
}

class SimulatedObject implements SharedObject {
  readonly #world: SimulatedWorld;
  readonly #object: SharedMemory;

  constructor(world: SimulatedWorld, pages: number) {
    this.#world = world;
    this.#object = world.kernel.memfd(pages);
  }

  map(firstPage: number, pages: number, isPrivate: boolean): bigint {
    return this.#world.kernel.mapShared(this.#object, { firstPage, pages, private: isPrivate });
  }

  write(offset: number, bytes: Uint8Array): void {
    this.#object.write(offset, bytes);
  }

  read(offset: number, length: number): Uint8Array {
    return this.#object.read(offset, length);
  }

  punchHole(offset: number, length: number): void {
    this.#object.punchHole(offset, length);
  }

  holds(page: number): boolean {
    return this.#object.holds(page);
  }
}

interface FileCalls {
  lseek(fd: number, offset: number, whence: number): number;
  fallocate(fd: number, mode: number, offset: number, length: number): number;
}
let loaded: FileCalls | undefined;

function fileCalls(): FileCalls {
  if (!loaded) {
    const library = libc().koffi.load(null);
    loaded = {
      lseek: library.func('lseek64', 'int64_t', ['int', 'int64_t', 'int']),
      fallocate: library.func('fallocate64', 'int', ['int', 'int', 'int64_t', 'int64_t']),
    };
  }
  return loaded;
}

class RealObject implements SharedObject {
  readonly #world: World;
  readonly #fd: number;

  constructor(world: World, pages: number) {
    this.#world = world;
    this.#fd = memfdCreate('shared', pages * P);
    assert.ok(this.#fd >= 0, `memfd_create: errno ${-this.#fd}`);
    world.defer(() => closeSync(this.#fd));
  }

  map(firstPage: number, pages: number, isPrivate: boolean): bigint {
    const wanted = this.#world.vacant(pages);
    const flags = (isPrivate ? MAP_PRIVATE : MAP_SHARED) | MAP_FIXED_NOREPLACE;
    const address = mmap(wanted, pages * P, PROT_READ | PROT_WRITE, flags, this.#fd, firstPage * P);
    assert.equal(address, wanted, 'mmap of an object');
    return address;
  }

  write(offset: number, bytes: Uint8Array): void {
    assert.equal(writeSync(this.#fd, bytes, 0, bytes.length, offset), bytes.length);
  }

  read(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    readSync(this.#fd, bytes, 0, length, offset);
    return bytes;
  }

  punchHole(offset: number, length: number): void {
    assert.equal(orErrno(fileCalls().fallocate(this.#fd, PUNCH_HOLE_KEEP_SIZE, offset, length)), 0);
  }

  holds(page: number): boolean {
    return fileCalls().lseek(this.#fd, page * P, SEEK_DATA) === page * P;
  }
}
