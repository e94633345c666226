// Decompresses and hashes chunks in a thread of its own, so that the main thread has time for the network, for monitors
// and for guests' requests.
//
// Rules:
//  - Chunks that threads of guests wait for come first: the thread has at most two chunks at a time.
//  - Without the thread (a limit of tasks), the same is done on the thread that asks.
//  - Like all threads that load koffi, it is not ended while it starts: it ends itself when it is asked to.

import type { Worker } from 'node:worker_threads';
import type { Digest } from '../store/chunk-index.js';
import { checkFrame, type FrameCheck } from '../store/chunk-reader.js';
import { type Decompressor, openDecompressor } from '../store/compression.js';
import type { Room } from '../store/store.js';
import { ENTRY } from '../workers/entry-file.js';
import { startThread } from '../workers/launcher.js';
import { isWhole } from './chunk-cache.js';

/** What is to be checked: a frame from a store, or a file of the cache. */
export interface CheckTask {
  readonly number: number;
  /** Where its plain bytes go, in memory that both threads have. */
  readonly into: Uint8Array;
  readonly digest: Digest;
  readonly id: string;
  /** A frame, or the descriptor of a file. */
  readonly from: Uint8Array | number;
}

/** What the thread answers. `why`: what is wrong with it; undefined: nothing. Without a number: it takes tasks now. */
export interface Checked {
  readonly number?: number;
  readonly why?: string | undefined;
}

interface Waiting extends Omit<CheckTask, 'into'> {
  /** Gives the memory when the thread can fill it. */
  readonly into: () => Uint8Array;
  readonly urgent: () => boolean;
  readonly done: (why: string | undefined) => void;
  /** The memory that a frame is in. */
  frame?: Uint8Array;
}

/** It makes some bytes of garbage for each chunk. */
const OPTIONS = { name: 'chunks', stdin: false, resourceLimits: { maxYoungGenerationSizeMb: 2 } };
/** Bytes by which memory for frames is larger than its first frame, so that others fit, too. */
const SPARE = 64 << 10;
/** Chunks that the thread has at once: one that it works on, and the next. */
const MOST = 2;

export class ChunkChecker {
  readonly #decompressor: Decompressor;
  #worker: Worker | undefined;
  /** Resolves when the thread has ended. */
  #ended: Promise<void> = Promise.resolve();
  readonly #queue: Waiting[] = [];
  readonly #given = new Map<number, Waiting>();
  #number = 0;
  #closing = false;
  /** Memory for frames that is free: otherwise each frame would be garbage of both threads. */
  readonly #frames: Uint8Array[] = [];
  /** Memory that is free, of one length. */
  #free: Uint8Array[] = [];

  static async open(): Promise<ChunkChecker> {
    return new ChunkChecker(await openDecompressor());
  }

  private constructor(decompressor: Decompressor) {
    this.#decompressor = decompressor;
    try {
      this.#start();
    } catch {
      // This thread does it.
    }
  }

  #start(): void {
    const worker = startThread('checker', OPTIONS, ENTRY);
    this.#worker = worker;
    worker.on('message', ({ number, why }: Checked) => {
      if (number === undefined) {
        this.#unrefIfIdle();
        return;
      }
      const task = this.#given.get(number);
      this.#given.delete(number);
      if (task?.frame) this.#frames.push(task.frame);
      task?.done(why);
      this.#next();
      this.#unrefIfIdle();
    });
    const lost = (): void => {
      this.#worker = undefined;
      this.#queue.unshift(...this.#given.values());
      this.#given.clear();
      this.#next();
    };
    this.#ended = new Promise((resolve) => {
      worker.once('error', lost).once('exit', () => {
        lost();
        resolve();
      });
    });
  }

  /** The thread keeps the process alive only while it starts, works or ends. */
  #unrefIfIdle(): void {
    if (this.#given.size === 0 && !this.#closing) this.#worker?.unref();
  }

  /** Memory for a chunk, which both threads have. */
  buffer(length: number): Uint8Array {
    if (this.#free[0]?.length !== length) this.#free = [];
    return this.#free.pop() ?? new Uint8Array(new SharedArrayBuffer(length));
  }

  /** The memory is not used any more. */
  release(bytes: Uint8Array): void {
    if (this.#free.length === 0 || this.#free[0]?.length === bytes.length) this.#free.push(bytes);
  }

  /** Gives memory back to the system. */
  trim(): void {
    this.#free = [];
    this.#frames.length = 0;
  }

  /** Memory for a frame that is to be checked, which both threads have. */
  readonly room: Room = (bytes) => {
    const known = this.#frames.pop();
    const memory =
      known && known.length >= bytes ? known : new Uint8Array(new SharedArrayBuffer(bytes + SPARE));
    return memory.subarray(0, bytes);
  };

  /** Checks frames. `urgent`: whether a thread of a guest waits. */
  frames(urgent: () => boolean): FrameCheck {
    return (from, into, digest, id) => this.#check({ from, into, digest, id, urgent });
  }

  /** Reads the file of a chunk into memory. Undefined: it is whole. */
  file(
    fd: number,
    into: () => Uint8Array,
    digest: Digest,
    id: string,
    urgent: () => boolean,
  ): Promise<string | undefined> {
    return this.#check({ from: fd, into, digest, id, urgent });
  }

  #check(task: Omit<Waiting, 'number' | 'done'>): Promise<string | undefined> {
    return new Promise((done) => {
      this.#queue.push({ ...task, number: ++this.#number, done });
      this.#next();
    });
  }

  #next(): void {
    while (this.#queue.length > 0 && this.#given.size < MOST) {
      const urgent = this.#queue.findIndex((task) => task.urgent());
      const [task] = this.#queue.splice(Math.max(0, urgent), 1) as [Waiting];
      if (!this.#worker) {
        task.done(checkChunk(this.#decompressor, { ...task, into: task.into() }));
        continue;
      }
      this.#given.set(task.number, task);
      const { number, digest, id } = task;
      const into = task.into();
      const from = typeof task.from === 'number' ? task.from : this.#sharedFrame(task, task.from);
      this.#worker.ref();
      this.#worker.postMessage({ number, into, digest, id, from } satisfies CheckTask);
    }
  }

  /** The bytes of a frame, in memory that both threads have. */
  #sharedFrame(task: Waiting, bytes: Uint8Array): Uint8Array {
    let frame = bytes;
    if (!(bytes.buffer instanceof SharedArrayBuffer)) {
      frame = this.room(bytes.length);
      frame.set(bytes);
    }
    task.frame = new Uint8Array(frame.buffer);
    return frame;
  }

  /** Ends the thread. Nothing may be asked for any more. Resolves when it has ended. */
  async close(): Promise<void> {
    this.#closing = true;
    this.#worker?.ref();
    this.#worker?.postMessage('end');
    await this.#ended;
    this.#decompressor.close();
  }
}

/** Does a task: fills `into`. Undefined: the chunk is whole. */
export function checkChunk(
  decompressor: Decompressor,
  { from, into, digest, id }: Pick<CheckTask, 'from' | 'into' | 'digest' | 'id'>,
): string | undefined {
  if (typeof from !== 'number') return checkFrame(decompressor, from, () => into, digest, id);
  return isWhole(from, into, digest, id) ? undefined : 'its file is damaged';
}
