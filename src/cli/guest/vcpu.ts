// A thread of the guest: touches pages and compares each with its expected contents. Another process answers all of its
// faults.
//
// Rules:
//  - Apart from bytes that were written, a page holds the bytes of the file until it is first removed, and zeros
//    afterwards.
//  - Each thread writes to its own bytes at the start of a page, which are not compared with the file. A written byte
//    keeps its value, unless the page was removed meanwhile.

import { closeSync, openSync, readSync } from 'node:fs';
import { createHistogram, type RecordableHistogram } from 'node:perf_hooks';
import { parentPort, workerData } from 'node:worker_threads';
import { Mapping, type SharedMapping } from '../../index.js';
import { touchesOf } from './access-order.js';
import { LATENCY_MOST_NS, type Layout, nanoseconds, placeOf, type TouchCommand } from './protocol.js';

/** What all threads of a guest have in common. */
export interface GuestMemory {
  readonly memory: SharedMapping;
  readonly layout: Layout;
  /** Path of the memory file. */
  readonly file: string;
  /** By page, how many removals have begun, and how many have ended; 0 means none ever. */
  readonly removals: SharedArrayBuffer;
}

/** One thread's part in a command to touch pages. */
export interface VcpuTask {
  readonly order: Required<Omit<TouchCommand, 'do' | 'handOver'>>;
  readonly thread: number;
  /** A word of 64 bits: when all threads began, by `nanoseconds`; 0: not yet. */
  readonly begun: SharedArrayBuffer;
}

/** The results of a task. The thread sends 'ready' before. */
export interface VcpuResults {
  readonly touches: number;
  readonly wrong: readonly string[];
  readonly wrongCount: number;
  readonly ms: number;
  /** Milliseconds until the first touch was done; undefined if the thread has touched nothing. */
  readonly firstMs: number | undefined;
  /** Nanoseconds of the touches. */
  readonly latency: RecordableHistogram;
}

/** Bytes at the start of a page that threads write to, and that are not compared with the file. */
const WRITTEN_BYTES = 256;
const WRONG_LISTED = 10;
/** Bytes of one view, because a buffer has a largest size. A multiple of a huge page. */
const VIEW_BYTES = 2 ** 30;

class Vcpu {
  readonly #layout: Layout;
  readonly #file: string;
  readonly #views: Uint8Array[] = [];
  readonly #begun: Uint8Array;
  readonly #over: Uint8Array;
  /** The file's bytes of one page. */
  readonly #expected: Buffer;
  #expectedPage = -1;
  readonly #found: Buffer;
  readonly #zeros: Buffer;
  /** The memory file, during a task. */
  #fd = -1;
  /** Whether the task writes to pages. */
  #writes = false;
  #wrong: string[] = [];
  #wrongCount = 0;
  #sum = 0;

  constructor({ memory: shared, layout, removals, file }: GuestMemory) {
    this.#layout = layout;
    this.#file = file;
    const memory = Mapping.attach(shared);
    for (let at = 0; at < memory.length; at += VIEW_BYTES) {
      this.#views.push(memory.slice(at, Math.min(at + VIEW_BYTES, memory.length)));
    }
    this.#begun = new Uint8Array(removals, 0, layout.pages);
    this.#over = new Uint8Array(removals, layout.pages, layout.pages);
    this.#expected = Buffer.alloc(layout.pageSize);
    this.#found = Buffer.alloc(layout.pageSize);
    this.#zeros = Buffer.alloc(layout.pageSize);
  }

  run({ order, thread, begun }: VcpuTask): VcpuResults {
    const layout = this.#layout;
    const latency = createHistogram({ highest: LATENCY_MOST_NS });
    this.#fd = openSync(this.#file, 'r');
    this.#expectedPage = -1;
    this.#writes = order.writes > 0;
    this.#wrong = [];
    this.#wrongCount = 0;
    const began = awaitBegin(begun);
    const sinceBegin = (): number => Number(nanoseconds() - began) / 1e6;
    let firstMs: number | undefined;
    let touches = 0;
    for (const index of touchesOf(order, order.to - order.from, thread, order.threads)) {
      const page = order.from + index;
      const content = this.#at(placeOf(layout, page));
      const write = this.#writes && touches % order.writes === 0;
      const removals = this.#removalsUnder(page);
      const before = performance.now();
      if (write) content[thread % WRITTEN_BYTES] = 1 + (touches % 255);
      else this.#sum += content[0] as number;
      latency.record(Math.max(1, Math.round((performance.now() - before) * 1e6)));
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
    return { ...wrong, touches, ms, firstMs, latency };
  }

  /** The bytes of a page. */
  #at(place: number): Uint8Array {
    const view = this.#views[Math.floor(place / VIEW_BYTES)] as Uint8Array;
    return view.subarray(place % VIEW_BYTES, (place % VIEW_BYTES) + this.#layout.pageSize);
  }

  /** The number of removals of a page so far; undefined if one is under way. */
  #removalsUnder(page: number): number | undefined {
    const begun = Atomics.load(this.#begun, page);
    return begun === Atomics.load(this.#over, page) ? begun : undefined;
  }

  #note(wrong: string): void {
    this.#wrongCount++;
    if (this.#wrong.length < WRONG_LISTED) this.#wrong.push(wrong);
  }

  #compare(page: number, content: Uint8Array): void {
    const { pageSize } = this.#layout;
    const wasRemoved = Atomics.load(this.#over, page) > 0;
    const found = this.#found;
    found.set(content);
    const mayBeRemoved = Atomics.load(this.#begun, page) > 0;
    const from = this.#writes ? WRITTEN_BYTES : 0;
    const holds = (matches: Buffer): boolean => found.subarray(from).equals(matches.subarray(from));
    if (page !== this.#expectedPage) {
      const length = readSync(this.#fd, this.#expected, 0, pageSize, page * pageSize);
      // The last page of a file may be incomplete.
      this.#expected.fill(0, length);
      this.#expectedPage = page;
    }
    const matches = wasRemoved
      ? holds(this.#zeros)
      : holds(this.#expected) || (mayBeRemoved && holds(this.#zeros));
    if (matches) return;
    const should = wasRemoved ? this.#zeros : this.#expected;
    const at = found.findIndex((byte, index) => index >= from && byte !== should[index]);
    const removed = wasRemoved ? ', which was removed,' : '';
    this.#note(`page ${page}${removed} has ${found[at]} at byte ${at}, and should have ${should[at]}`);
  }
}

/** Waits until all threads begin. Returns the time at which they did. */
function awaitBegin(shared: SharedArrayBuffer): bigint {
  const begun = new BigInt64Array(shared);
  Atomics.wait(begun, 0, 0n);
  return Atomics.load(begun, 0);
}

/** The main function of the thread: does one task after the other. */
export function runVcpu(): void {
  const vcpu = new Vcpu(workerData);
  parentPort?.on('message', (task: VcpuTask) => {
    parentPort?.postMessage('ready');
    parentPort?.postMessage(vcpu.run(task));
  });
}
