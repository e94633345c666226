// A thread of the pager's demo: reads pieces of the memory, and compares each with the same bytes from elsewhere.

import { createHash } from 'node:crypto';
import { closeSync, openSync, readSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { PagerMemory, type SharedPager } from '../../pager/index.js';
import { shuffledOrder } from '../guest/permutation.js';

/** Bytes of a digest. */
export const DIGEST_BYTES = 16;
/** Bytes of one view: a typed array cannot be larger than 4 GiB on Node 20. */
const WINDOW = 2 ** 30;

/** What a reader needs. The arrays are shared by all readers of a run. */
export interface ReaderPlan {
  readonly memory: SharedPager;
  /** The file to compare with; undefined: digests are compared with those of earlier and later reads. */
  readonly file: string | undefined;
  /** Bytes of a piece: a power of two. */
  readonly pieceBytes: number;
  readonly threads: number;
  /** The number of this reader, from 0 on. */
  readonly index: number;
  readonly seed: number;
  /** A digest of each piece; zeros: it was not read yet. */
  readonly digests: Uint8Array;
  /** Bytes read in this phase, by reader. */
  readonly read: Float64Array;
  /** Not 0: stop. */
  readonly stop: Int32Array;
}

/** What a reader is to do: to read `pieces` random pieces, or its part of all pieces in order. */
export type ReaderCommand =
  | { readonly order: 'random'; readonly pieces: number }
  | { readonly order: 'in order' };

/** The numbers of the pieces that were wrong. */
export interface ReaderAnswer {
  readonly wrong: readonly number[];
}

/** The main function of the thread. */
export function runPagerReader(): void {
  const plan = workerData as ReaderPlan;
  const reader = new PieceReader(plan);
  parentPort?.on('message', (command: ReaderCommand | 'end') => {
    if (command === 'end') {
      reader.close();
      parentPort?.close();
    } else {
      parentPort?.postMessage({ wrong: reader.run(command) } satisfies ReaderAnswer);
    }
  });
}

/** The digest of a piece. Never zeros, for any bytes that are met in practice. */
export function digestOf(bytes: Uint8Array): Uint8Array {
  return createHash('sha256').update(bytes).digest().subarray(0, DIGEST_BYTES);
}

class PieceReader {
  readonly #plan: ReaderPlan;
  readonly #memory: PagerMemory;
  readonly #fd: number | undefined;
  readonly #expected: Buffer;
  readonly #windows = new Map<number, Uint8Array>();

  constructor(plan: ReaderPlan) {
    this.#plan = plan;
    this.#memory = PagerMemory.attach(plan.memory);
    this.#fd = plan.file === undefined ? undefined : openSync(plan.file, 'r');
    this.#expected = Buffer.alloc(this.#fd === undefined ? 0 : plan.pieceBytes);
  }

  run(command: ReaderCommand): number[] {
    const wrong: number[] = [];
    const { index, read, stop } = this.#plan;
    read[index] = 0;
    for (const piece of this.#piecesOf(command)) {
      if (Atomics.load(stop, 0) !== 0) break;
      const bytes = this.#bytes(piece);
      if (!this.#isRight(piece, bytes)) wrong.push(piece);
      read[index] = (read[index] as number) + bytes.length;
    }
    return wrong;
  }

  close(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#windows.clear();
  }

  *#piecesOf(command: ReaderCommand): Generator<number> {
    const { threads, index, seed, pieceBytes } = this.#plan;
    const pieces = Math.ceil(this.#memory.size / pieceBytes);
    if (command.order === 'random') {
      const order = shuffledOrder(pieces, seed);
      for (let place = index; place < command.pieces; place += threads) yield order(place);
      return;
    }
    const end = Math.floor(((index + 1) * pieces) / threads);
    for (let piece = Math.floor((index * pieces) / threads); piece < end; piece++) yield piece;
  }

  /** A piece of the memory. To touch it may mean to wait until it was read. */
  #bytes(piece: number): Uint8Array {
    const { pieceBytes } = this.#plan;
    const { size } = this.#memory;
    const offset = piece * pieceBytes;
    const start = Math.floor(offset / WINDOW) * WINDOW;
    let window = this.#windows.get(start);
    if (!window) {
      window = this.#memory.view(start, Math.min(WINDOW, size - start));
      this.#windows.set(start, window);
    }
    return window.subarray(offset - start, Math.min(offset + pieceBytes, size) - start);
  }

  #isRight(piece: number, bytes: Uint8Array): boolean {
    if (this.#fd !== undefined) return this.#readAgain(this.#fd, piece, bytes.length).equals(bytes);
    const place = piece * DIGEST_BYTES;
    const known = this.#plan.digests.subarray(place, place + DIGEST_BYTES);
    const digest = digestOf(bytes);
    if (known.every((byte) => byte === 0)) known.set(digest);
    return Buffer.from(digest).equals(known);
  }

  /** The same bytes, by read(2). Fewer if the file has become shorter. */
  #readAgain(fd: number, piece: number, length: number): Buffer {
    const { pieceBytes } = this.#plan;
    let done = 0;
    while (done < length) {
      const more = readSync(fd, this.#expected, done, length - done, piece * pieceBytes + done);
      if (more === 0) break;
      done += more;
    }
    return this.#expected.subarray(0, done);
  }
}
