// Plays a microVM's monitor, in a process of its own: maps the guest's memory, hands it over as Firecracker does, and
// has threads touch it. Like Firecracker it keeps the userfaultfd open: if the handler dies, the guest hangs.
//
// It is told what to do over Node's channel between processes, one order after the other.
//
// Rule: nothing here waits for a thread that may sleep in a fault. Nobody may be left to answer it, and then only SIGKILL
// ends it.

import { on } from 'node:events';
import { closeSync, fstatSync, openSync } from 'node:fs';
import { createHistogram } from 'node:perf_hooks';
import type { Worker } from 'node:worker_threads';
import { startThread } from '../../embed.js';
import { Mapping, Userfaultfd } from '../../index.js';
import { handOver, type Region } from '../../serve/index.js';
import { COMMAND } from '../command-file.js';
import { explain } from '../exit.js';
import { percentileUs } from '../latency.js';
import {
  type GuestAnswer,
  type GuestOptions,
  type GuestOrder,
  LATENCY_MOST_NS,
  type Layout,
  type Numbered,
  nanoseconds,
  pagesOfRegion,
  placeOf,
  spanOf,
  type Touched,
  type TouchOrder,
} from './protocol.js';
import type { VcpuTask, VcpuTouched } from './vcpu.js';

const SYSTEM_PAGE = 4096;

class Monitor {
  readonly #options: GuestOptions;
  readonly #memory: Mapping;
  readonly #layout: Layout;
  /** By page, how many removals have begun; behind that, how many were over. */
  readonly #removals: Uint8Array<SharedArrayBuffer>;
  /** The userfaultfd: open until this process ends, as a monitor's is. */
  readonly #fd: number;

  constructor(options: GuestOptions) {
    const { pageSize = SYSTEM_PAGE, regions = 1, removes = true } = options;
    this.#options = options;
    const pages = Math.ceil(sizeOf(options.memory) / pageSize);
    this.#memory = Mapping.anonymous(spanOf({ pages, pageSize, regions }), { pageSize });
    this.#layout = { address: this.#memory.address, pageSize, pages, regions };
    this.#removals = new Uint8Array(new SharedArrayBuffer(2 * pages));
    const uffd = Userfaultfd.open({ features: removes ? ['event-remove'] : [] });
    for (const { start, length } of this.#regions()) {
      uffd.register(start, length, 'missing', { pageSize });
    }
    this.#fd = uffd.release();
    if (options.handOver ?? true) this.#handOver();
  }

  /** Connects, and sends the one message. */
  #handOver(): void {
    handOver(this.#options.socket, this.#regions(), this.#fd);
    const { pages, pageSize } = this.#layout;
    answer(0, { is: 'handed over', pages, pageSize });
  }

  async obey(order: Exclude<GuestOrder, { do: 'exit' }>): Promise<GuestAnswer> {
    if (order.do === 'remove') return this.#remove(order.from, order.to);
    const touch: TouchOrder =
      order.do === 'touch' ? order : { do: 'touch', threads: order.threads, order: 'sequential', seed: 0 };
    return { is: 'touched', ...(await this.#touch(touch)) };
  }

  #regions(): Region[] {
    const { address, pageSize, pages, regions } = this.#layout;
    const each = pagesOfRegion(this.#layout);
    return Array.from({ length: regions }, (_, index) => ({
      start: address + BigInt(placeOf(this.#layout, index * each)),
      length: Math.min(each, pages - index * each) * pageSize,
      offset: index * each * pageSize,
      pageSize,
    })).filter(({ length }) => length > 0);
  }

  async #touch({
    touches,
    writes = 0,
    from = 0,
    to = this.#layout.pages,
    handOver: first = false,
    ...rest
  }: TouchOrder): Promise<Touched> {
    const order = { ...rest, touches: touches ?? to - from, writes, from, to };
    const begun = new BigInt64Array(new SharedArrayBuffer(8));
    const vcpus = Array.from(
      { length: order.threads },
      (_, thread) =>
        new Vcpu({
          ...{ memory: this.#memory.share(), layout: this.#layout, file: this.#options.memory },
          ...{ order, thread, removals: this.#removals.buffer, begun: begun.buffer },
        }),
    );
    try {
      // All of them: one that is ended while it loads koffi takes the process with it.
      await Promise.allSettled(vcpus.map(({ ready }) => ready));
      await Promise.all(vcpus.map(({ ready }) => ready));
      Atomics.store(begun, 0, nanoseconds());
      if (first) this.#handOver();
      Atomics.notify(begun, 0);
      return together(await Promise.all(vcpus.map(({ touched }) => touched)));
    } catch (error) {
      for (const vcpu of vcpus) vcpu.terminate();
      throw error;
    }
  }

  #remove(from: number, to: number): GuestAnswer {
    const { pages, pageSize } = this.#layout;
    this.#count(from, to);
    for (let page = from; page < to; page++) {
      // Page by page: regions have gaps between them.
      this.#memory.discard(placeOf(this.#layout, page), placeOf(this.#layout, page) + pageSize);
    }
    this.#count(pages + from, pages + to);
    return { is: 'removed' };
  }

  /** From 255 on it goes on with 1: 0 is never. */
  #count(from: number, to: number): void {
    for (let at = from; at < to; at++)
      Atomics.store(this.#removals, at, ((this.#removals[at] as number) % 255) + 1);
  }
}

/** A thread that touches pages, as the monitor sees it. */
class Vcpu {
  readonly ready: Promise<void>;
  readonly touched: Promise<VcpuTouched>;
  readonly #worker: Worker;

  constructor(task: VcpuTask) {
    this.#worker = startThread('vcpu', { workerData: task }, COMMAND);
    const messages = on(this.#worker, 'message', { close: ['exit'] });
    const next = async <T>(): Promise<T> => {
      const { done, value } = await messages.next();
      if (done) throw new Error('a thread of the guest has ended');
      return value[0] as T;
    };
    this.ready = next();
    this.touched = this.ready.then(() => next());
    // Whoever asks hears of it.
    this.touched.catch(() => {});
  }

  terminate(): void {
    void this.#worker.terminate();
  }
}

/** What threads did, as one. */
function together(each: readonly VcpuTouched[]): Touched {
  const sum = (of: (one: VcpuTouched) => number): number => each.reduce((all, one) => all + of(one), 0);
  const latency = createHistogram({ highest: LATENCY_MOST_NS });
  for (const one of each) latency.add(one.latency);
  const firsts = each.map(({ firstMs }) => firstMs).filter((ms) => ms !== undefined);
  return {
    touches: sum(({ touches }) => touches),
    wrong: each.flatMap(({ wrong }) => wrong),
    wrongCount: sum(({ wrongCount }) => wrongCount),
    ms: Math.max(...each.map(({ ms }) => ms)),
    firstMs: Math.min(...firsts),
    p50Us: percentileUs(latency, 50),
    p99Us: percentileUs(latency, 99),
  };
}

function sizeOf(path: string): number {
  const fd = openSync(path, 'r');
  const { size } = fstatSync(fd);
  closeSync(fd);
  return size;
}

function answer(id: number, it: GuestAnswer): void {
  process.send?.({ id, ...it } satisfies Numbered<GuestAnswer>);
}

function failed(id: number, error: unknown): void {
  answer(id, { is: 'failed', reason: explain(error) });
}

/** Runs in a process of its own. */
export function playMonitor(): void {
  // Whoever started this is gone: so is what it is good for.
  process.on('disconnect', () => process.kill(process.pid, 'SIGKILL'));
  // A Ctrl-C is for whoever started this.
  process.on('SIGINT', () => {});
  const monitor = (async () => new Monitor(JSON.parse(process.argv[2] ?? '')))();
  monitor.catch((error) => failed(0, error));
  process.on('message', ({ id, ...order }: Numbered<GuestOrder>) => {
    if (order.do === 'exit') process.exit(0);
    monitor
      .then((it) => it.obey(order))
      .then(
        (it) => answer(id, it),
        (error) => failed(id, error),
      );
  });
}
