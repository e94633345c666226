// A thread of the guest: touches pages and compares each with what it should hold, once it may begin. All of its faults
// are answered by another process.
//
// Rules:
//  - A page holds what the file has until it is first removed, and zeros from then on; but for what was written.
//  - Writes go to a place of each thread's own at the begin of a page, which is not compared with the file. What was
//    written is there, unless the page was removed meanwhile.

import { closeSync, openSync, readSync } from 'node:fs';
import { createHistogram, type RecordableHistogram } from 'node:perf_hooks';
import { parentPort, workerData } from 'node:worker_threads';
import { Mapping, type SharedMapping } from '../../index.js';
import { touchesOf } from './orders.js';
import { LATENCY_MOST_NS, type Layout, nanoseconds, placeOf, type TouchOrder } from './protocol.js';

export interface VcpuTask {
  readonly memory: SharedMapping;
  readonly layout: Layout;
  /** Path of the memory file. */
  readonly file: string;
  readonly order: Required<Omit<TouchOrder, 'do' | 'handOver'>>;
  readonly thread: number;
  /** By page: how many removals of it have begun, and how many were over; 0: none ever. */
  readonly removals: SharedArrayBuffer;
  /** A word of 64 bits: when all threads began, by `nanoseconds`; 0: not yet. */
  readonly begun: SharedArrayBuffer;
}

/** What a thread did. It says 'ready' before. */
export interface VcpuTouched {
  readonly touches: number;
  readonly wrong: readonly string[];
  readonly wrongCount: number;
  readonly ms: number;
  /** Undefined: it has touched nothing. */
  readonly firstMs: number | undefined;
  /** Nanoseconds of the touches. */
  readonly latency: RecordableHistogram;
}

/** Bytes at the begin of a page that threads write to, and that are not the file's then. */
const WRITTEN_BYTES = 256;
const WRONG_TOLD = 10;
/** Bytes of one view: a buffer has a largest size. Huge pages divide it. */
const VIEW_BYTES = 2 ** 30;

class Vcpu {
  readonly #task: VcpuTask;
  readonly #views: Uint8Array[] = [];
  readonly #begun: Uint8Array;
  readonly #over: Uint8Array;
  readonly #fd: number;
  readonly #expected: Buffer;
  readonly #found: Buffer;
  readonly #zeros: Buffer;
  readonly #latency = createHistogram({ highest: LATENCY_MOST_NS });
  readonly #wrong: string[] = [];
  #wrongCount = 0;
  #sum = 0;

  constructor(task: VcpuTask) {
    const { layout, removals, file } = task;
    this.#task = task;
    const memory = Mapping.attach(task.memory);
    for (let at = 0; at < memory.length; at += VIEW_BYTES) {
      this.#views.push(memory.slice(at, Math.min(at + VIEW_BYTES, memory.length)));
    }
    this.#begun = new Uint8Array(removals, 0, layout.pages);
    this.#over = new Uint8Array(removals, layout.pages, layout.pages);
    this.#fd = openSync(file, 'r');
    this.#expected = Buffer.alloc(layout.pageSize);
    this.#found = Buffer.alloc(layout.pageSize);
    this.#zeros = Buffer.alloc(layout.pageSize);
  }

  run(): VcpuTouched {
    const { order, thread, layout } = this.#task;
    const began = this.#awaitBegin();
    const sinceBegin = (): number => Number(nanoseconds() - began) / 1e6;
    let firstMs: number | undefined;
    let touches = 0;
    for (const index of touchesOf(order, order.to - order.from, thread, order.threads)) {
      const page = order.from + index;
      const content = this.#at(placeOf(layout, page));
      const write = order.writes > 0 && touches % order.writes === 0;
      const removals = this.#removalsUnder(page);
      const before = performance.now();
      if (write) content[thread % WRITTEN_BYTES] = 1 + (touches % 255);
      else this.#sum += content[0] as number;
      this.#latency.record(Math.max(1, Math.round((performance.now() - before) * 1e6)));
      firstMs ??= sinceBegin();
      if (write && content[thread % WRITTEN_BYTES] !== 1 + (touches % 255)) {
        if (removals !== undefined && this.#removalsUnder(page) === removals)
          this.#note(`page ${page} has lost what was written to it`);
      }
      touches++;
      this.#compare(page, content);
    }
    const ms = sinceBegin();
    closeSync(this.#fd);
    const wrong = { wrong: this.#wrong, wrongCount: this.#wrongCount };
    return { ...wrong, touches, ms, firstMs, latency: this.#latency };
  }

  /** When that was. */
  #awaitBegin(): bigint {
    const begun = new BigInt64Array(this.#task.begun);
    Atomics.wait(begun, 0, 0n);
    return Atomics.load(begun, 0);
  }

  /** The bytes of a page. */
  #at(place: number): Uint8Array {
    const view = this.#views[Math.floor(place / VIEW_BYTES)] as Uint8Array;
    return view.subarray(place % VIEW_BYTES, (place % VIEW_BYTES) + this.#task.layout.pageSize);
  }

  /** How many removals of a page there were; undefined: one is under way. */
  #removalsUnder(page: number): number | undefined {
    const begun = Atomics.load(this.#begun, page);
    return begun === Atomics.load(this.#over, page) ? begun : undefined;
  }

  #note(wrong: string): void {
    this.#wrongCount++;
    if (this.#wrong.length < WRONG_TOLD) this.#wrong.push(wrong);
  }

  #compare(page: number, content: Uint8Array): void {
    const { layout, order } = this.#task;
    const wasRemoved = Atomics.load(this.#over, page) > 0;
    const found = this.#found;
    found.set(content);
    const mayBeRemoved = Atomics.load(this.#begun, page) > 0;
    const from = order.writes > 0 ? WRITTEN_BYTES : 0;
    const holds = (right: Buffer): boolean => found.subarray(from).equals(right.subarray(from));
    const length = readSync(this.#fd, this.#expected, 0, layout.pageSize, page * layout.pageSize);
    // The last page of a file may be a part of one.
    this.#expected.fill(0, length);
    const right = wasRemoved
      ? holds(this.#zeros)
      : holds(this.#expected) || (mayBeRemoved && holds(this.#zeros));
    if (right) return;
    const should = wasRemoved ? this.#zeros : this.#expected;
    const at = found.findIndex((byte, index) => index >= from && byte !== should[index]);
    const removed = wasRemoved ? ', which was removed,' : '';
    this.#note(`page ${page}${removed} has ${found[at]} at byte ${at}, and should have ${should[at]}`);
  }
}

/** Runs in a thread of its own. */
export function playVcpu(): void {
  const vcpu = new Vcpu(workerData);
  parentPort?.postMessage('ready');
  parentPort?.postMessage(vcpu.run());
}
