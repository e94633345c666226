// Decompresses and hashes chunks in a thread of its own, so that the main thread has time for the network, for monitors
// and for guests' requests.
//
// Rules:
//  - Chunks that threads of guests wait for come first: the thread has at most two chunks at a time.
//  - Without the thread (a limit of tasks), the same is done on the thread that asks.
//  - Like all threads that load koffi, it is not ended while it starts: it ends itself when it is asked to.

import type { Worker } from 'node:worker_threads';
import {
  checkFrame,
  type FrameCheck,
  type FrameProof,
  type FrameTools,
  openFrameTools,
} from '../store/frame-check.js';
import type { Room } from '../store/store.js';
import { ENTRY } from '../workers/entry-file.js';
import { startThread } from '../workers/launcher.js';
import { type FileProof, isWhole } from './chunk-cache.js';

/** What a chunk is checked in, and by: what a store has of it, or the descriptor of its file in the cache. */
type Checkable =
  | { readonly frame: Uint8Array; readonly by: FrameProof }
  | { readonly fd: number; readonly by: FileProof };

/** What is to be checked. */
export interface CheckTask {
  readonly what: Checkable;
  readonly number: number;
  /** Where its plain bytes go, in memory that both threads have. */
  readonly into: Uint8Array;
  readonly id: string;
}

/** What the thread answers. `why`: what is wrong with it; undefined: nothing. Without a number: it takes tasks now. */
export interface Checked {
  readonly number?: number;
  readonly why?: string | undefined;
}

interface Waiting {
  readonly what: Checkable;
  readonly number: number;
  readonly id: string;
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
  readonly #tools: FrameTools;
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
    return new ChunkChecker(await openFrameTools());
  }

  private constructor(tools: FrameTools) {
    this.#tools = tools;
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
    return (frame, into, by, id) => this.#check({ frame, by }, into, id, urgent);
  }

  /** Reads the file of a chunk into memory. Undefined: it is whole. */
  file(
    fd: number,
    into: () => Uint8Array,
    by: FileProof,
    id: string,
    urgent: () => boolean,
  ): Promise<string | undefined> {
    return this.#check({ fd, by }, into, id, urgent);
  }

  #check(
    what: Checkable,
    into: () => Uint8Array,
    id: string,
    urgent: () => boolean,
  ): Promise<string | undefined> {
    return new Promise((done) => {
      this.#queue.push({ what, into, id, urgent, number: ++this.#number, done });
      this.#next();
    });
  }

  #next(): void {
    while (this.#queue.length > 0 && this.#given.size < MOST) {
      const urgent = this.#queue.findIndex((task) => task.urgent());
      const [task] = this.#queue.splice(Math.max(0, urgent), 1) as [Waiting];
      if (!this.#worker) {
        task.done(checkChunk(this.#tools, { ...task, into: task.into() }));
        continue;
      }
      this.#given.set(task.number, task);
      const { number, id } = task;
      const into = task.into();
      const what =
        'fd' in task.what ? task.what : { ...task.what, frame: this.#sharedFrame(task, task.what.frame) };
      this.#worker.ref();
      this.#worker.postMessage({ number, what, into, id } satisfies CheckTask);
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
    this.#tools.decompressor.close();
  }
}

/** Does a task: fills `into`. Undefined: the chunk is whole. */
export function checkChunk(
  tools: FrameTools,
  { what, into, id }: Pick<CheckTask, 'what' | 'into' | 'id'>,
): string | undefined {
  if ('frame' in what) return checkFrame(tools, what.frame, () => into, what.by, id);
  return isWhole(what.fd, into, what.by, id) ? undefined : 'its file is damaged';
}
