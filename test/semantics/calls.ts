// Raw kernel calls for tests: each call writes its struct word by word into the world's memory, issues the call through
// the port (or an actor), and reads the struct back. Nothing is retried or decided here.
//
// An answer is `[result, out]`: 'ok' or the name of the errno, and the struct's signed output field. The field holds a
// pattern before the call, so that 'untouched' differs from every other result.

import { strict as assert } from 'node:assert';
import { errnoName } from '../../src/errors/errors.js';
import type { KernelPort } from '../../src/kernel/port.js';
import type { Actor, Outcome, World } from './world.js';

export const Flag = { cloexec: 0x80000, nonblock: 0x800, userModeOnly: 1 } as const;
export const Feature = {
  flagWp: 1n << 0n,
  eventFork: 1n << 1n,
  eventRemap: 1n << 2n,
  eventRemove: 1n << 3n,
  missingHugetlb: 1n << 4n,
  missingShmem: 1n << 5n,
  eventUnmap: 1n << 6n,
  sigbus: 1n << 7n,
  threadId: 1n << 8n,
  minorHugetlb: 1n << 9n,
  minorShmem: 1n << 10n,
  exactAddress: 1n << 11n,
  wpHugetlbShmem: 1n << 12n,
  wpUnpopulated: 1n << 13n,
  poison: 1n << 14n,
  wpAsync: 1n << 15n,
  move: 1n << 16n,
} as const;
export const MISSING = 1n;
export const WP = 2n;
export const MINOR = 4n;

/** Mode bits of the operations. WRITEPROTECT has its mode bit and its DONTWAKE in reverse order. */
export const DONTWAKE = 1n;
export const WITH_WP = 2n;
export const ALLOW_HOLES = 2n;
export const PROTECT = 1n;
export const PROTECT_DONTWAKE = 2n;

/** ioctls: the request code, and the number of words in the struct (docs/kernel.md). */
export const REQUESTS = {
  api: [0xc018aa3f, 3],
  register: [0xc020aa00, 4],
  unregister: [0x8010aa01, 2],
  wake: [0x8010aa02, 2],
  copy: [0xc028aa03, 5],
  zeropage: [0xc020aa04, 4],
  move: [0xc028aa05, 5],
  writeprotect: [0xc018aa06, 3],
  continue: [0xc020aa07, 4],
  poison: [0xc020aa08, 4],
} as const;
export type Request = keyof typeof REQUESTS;

/** Content of an output field before a call: a number that no kernel returns. */
export const PATTERN = 0x5a5a5a5a5a5a5a5an;
const STRUCT_AT = 0;
const POLLFD_AT = 512;
const MESSAGES_AT = 1024;
const MESSAGE_BYTES = 32;
const MESSAGES_MOST = 64;

/**
 * End of the world's memory: the kernel can neither read nor write beyond it. If only the final output field of a
 * struct lies beyond the end, the kernel can still read the struct.
 */
export const END = 65536;

/** An offset outside of the memory: the kernel can neither read nor write there. */
export const OUTSIDE = 2 * END;

export type Answer = readonly [result: string, out: number | 'untouched'];

/** A message, with the fields of the kernel's struct. */
export type Message =
  | { event: 'pagefault'; flags: number; address: bigint; ptid: number }
  | { event: 'fork'; fd: number }
  | { event: 'remap'; from: bigint; to: bigint; length: number }
  | { event: 'remove' | 'unmap'; start: bigint; end: bigint };

/** The port or an actor: each can issue an ioctl. */
type Caller = { ioctl(fd: number, request: number, at: number): Outcome };

const resultOf = (outcome: Outcome): string =>
  typeof outcome === 'string'
    ? outcome
    : outcome < 0
      ? errnoName(-outcome)
      : outcome === 0
        ? 'ok'
        : `${outcome}`;

/** A userfaultfd of a world, with raw calls only. */
export class Uffd {
  readonly fd: number;
  readonly port: KernelPort;
  readonly #world: World;
  readonly #caller: Caller;

  constructor(world: World, port: KernelPort, fd: number, caller: Caller = port) {
    this.#world = world;
    this.port = port;
    this.fd = fd;
    this.#caller = caller;
  }

  /** The same descriptor; the actor issues its ioctls. */
  by(actor: Actor): Uffd {
    return new Uffd(this.#world, this.port, this.fd, actor);
  }

  /** Issues any ioctl with these words at this offset, except words outside the memory. 'ok' or an errno's name. */
  raw(request: Request, words: readonly bigint[], at = STRUCT_AT): string {
    const view = new DataView(this.#world.memory.buffer);
    words.forEach((word, index) => {
      const place = at + index * 8;
      if (place + 8 <= view.byteLength) view.setBigUint64(place, BigInt.asUintN(64, word), true);
    });
    return resultOf(this.#caller.ioctl(this.fd, REQUESTS[request][0], at));
  }

  /** A word of the struct at an offset, after the last call. */
  word(index: number, at = STRUCT_AT): bigint {
    return new DataView(this.#world.memory.buffer).getBigUint64(at + index * 8, true);
  }

  /** Issues an ioctl whose last word is its signed output. */
  #fill(request: Request, words: readonly bigint[]): Answer {
    const result = this.raw(request, [...words, PATTERN]);
    const out = this.word(words.length);
    return [result, out === PATTERN ? 'untouched' : Number(BigInt.asIntN(64, out))];
  }

  /** The handshake (UFFDIO_API): 'ok' or an errno's name, then the words `features` and `ioctls`. */
  api(features = 0n, api = 0xaan): readonly [result: string, features: bigint, ioctls: bigint] {
    const result = this.raw('api', [api, features, PATTERN]);
    return [result, this.word(1), this.word(2)];
  }

  /** 'ok' or an errno's name, and the operations that the kernel allows on the range. */
  register(start: bigint, length: number | bigint, mode: bigint): readonly [string, bigint | 'untouched'] {
    const result = this.raw('register', [start, BigInt(length), mode, PATTERN]);
    const ioctls = this.word(3);
    return [result, ioctls === PATTERN ? 'untouched' : ioctls];
  }

  unregister(start: bigint, length: number | bigint): string {
    return this.raw('unregister', [start, BigInt(length)]);
  }

  wake(start: bigint, length: number | bigint): string {
    return this.raw('wake', [start, BigInt(length)]);
  }

  copy(dst: bigint, src: bigint, length: number | bigint, mode = 0n): Answer {
    return this.#fill('copy', [dst, src, BigInt(length), mode]);
  }

  zeropage(start: bigint, length: number | bigint, mode = 0n): Answer {
    return this.#fill('zeropage', [start, BigInt(length), mode]);
  }

  continue(start: bigint, length: number | bigint, mode = 0n): Answer {
    return this.#fill('continue', [start, BigInt(length), mode]);
  }

  poison(start: bigint, length: number | bigint, mode = 0n): Answer {
    return this.#fill('poison', [start, BigInt(length), mode]);
  }

  move(dst: bigint, src: bigint, length: number | bigint, mode = 0n): Answer {
    return this.#fill('move', [dst, src, BigInt(length), mode]);
  }

  writeprotect(start: bigint, length: number | bigint, mode: bigint): string {
    return this.raw('writeprotect', [start, BigInt(length), mode]);
  }

  /** read(2): bytes, or an errno's name. */
  read(bytes = MESSAGE_BYTES, at = MESSAGES_AT): Outcome {
    const result = this.port.read(this.fd, at, bytes);
    return result < 0 ? errnoName(-result) : result;
  }

  /** Message number `index` of the last read. */
  message(index = 0): Message {
    const view = new DataView(this.#world.memory.buffer, MESSAGES_AT + index * MESSAGE_BYTES, MESSAGE_BYTES);
    const word = (at: number): bigint => view.getBigUint64(at, true);
    const half = (at: number): number => view.getUint32(at, true);
    switch (view.getUint8(0)) {
      case 0x12:
        return { event: 'pagefault', flags: Number(word(8)), address: word(16), ptid: half(24) };
      case 0x13:
        return { event: 'fork', fd: half(8) };
      case 0x14:
        return { event: 'remap', from: word(8), to: word(16), length: Number(word(24)) };
      case 0x15:
        return { event: 'remove', start: word(8), end: word(16) };
      case 0x16:
        return { event: 'unmap', start: word(8), end: word(16) };
      default:
        return assert.fail(`an event of code ${view.getUint8(0)}`);
    }
  }

  /** Messages of one read, with room for `most` messages. */
  take(most = MESSAGES_MOST): Message[] {
    const bytes = this.read(most * MESSAGE_BYTES);
    if (bytes === 'EAGAIN') return [];
    assert.ok(typeof bytes === 'number', `read: ${bytes}`);
    return Array.from({ length: bytes / MESSAGE_BYTES }, (_, index) => this.message(index));
  }

  /** poll(2) for readability, without waiting: the bits of revents. */
  poll(): number {
    const view = new DataView(this.#world.memory.buffer, POLLFD_AT, 8);
    view.setInt32(0, this.fd, true);
    view.setInt16(4, 1, true);
    view.setInt16(6, 0, true);
    assert.ok(this.port.poll(POLLFD_AT, 1, 0) >= 0);
    return view.getInt16(6, true);
  }

  queue(): { pending: number; total: number } {
    return this.#world.queue(this.fd);
  }

  /** Closes the descriptor; a second call does nothing. */
  close(): void {
    if (open.delete(this.fd)) this.port.close(this.fd);
  }
}

/** Descriptors that are still open. */
const open = new Set<number>();

/** Makes a Uffd of an existing descriptor, which is closed with the world. */
export function adopt(world: World, fd: number): Uffd {
  const uffd = new Uffd(world, world.kernel.attach(world.memory), fd);
  open.add(fd);
  world.defer(() => uffd.close());
  return uffd;
}

/** A userfaultfd before its handshake. */
export function create(world: World, flags: number = Flag.cloexec | Flag.nonblock): Uffd {
  const fd = world.kernel.attach(world.memory).userfaultfd(flags);
  assert.ok(fd >= 0, `userfaultfd: ${errnoName(-fd)}`);
  return adopt(world, fd);
}

/** A userfaultfd after its handshake. */
export function openUffd(world: World, features = 0n, flags?: number): Uffd {
  const uffd = create(world, flags);
  const [result] = uffd.api(features);
  assert.equal(result, 'ok', `the handshake with features 0x${features.toString(16)}`);
  return uffd;
}
