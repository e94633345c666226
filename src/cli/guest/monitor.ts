// Plays a microVM's monitor in a process of its own: maps the guest's memory, hands it over as Firecracker does, and
// has threads touch it. Like Firecracker it keeps the userfaultfd open: if the handler dies, the guest hangs.
//
// It gets commands over Node's channel between processes. Several commands may run at the same time.
//
// Rule: the monitor waits for no thread that may sleep in a fault. If the handler is gone, only SIGKILL ends such a
// thread.

import { on } from 'node:events';
import { statSync } from 'node:fs';
import { createHistogram } from 'node:perf_hooks';
import type { Worker } from 'node:worker_threads';
import { startThread } from '../../embed.js';
import { Mapping, Userfaultfd } from '../../index.js';
import { handOver, type Region, type RequestedMemory, requestSharedMemory } from '../../serve/index.js';
import { COMMAND } from '../command-file.js';
import { explain } from '../exit.js';
import { percentileUs } from '../latency.js';
import {
  type GuestCommand,
  type GuestOptions,
  type GuestReply,
  LATENCY_MOST_NS,
  type Layout,
  nanoseconds,
  pagesOfRegion,
  placeOf,
  spanOf,
  type TouchCommand,
  type TouchResults,
  type WithId,
} from './protocol.js';
import type { GuestMemory, VcpuResults, VcpuTask } from './vcpu.js';

const SYSTEM_PAGE = 4096;

class Monitor {
  readonly #options: GuestOptions;
  readonly #memory: Mapping;
  readonly #layout: Layout;
  /** In the first half: how many removals have begun, by page. In the second half: how many have ended. */
  readonly #removals: Uint8Array<SharedArrayBuffer>;
  /** The userfaultfd: open until this process ends, as a monitor's is. */
  readonly #fd: number;
  /**
   * Threads that have done their part of a command. Later commands use them again, because new threads take long to
   * start.
   */
  readonly #idle: Vcpu[] = [];

  /** The memory that the guest shares, if it does. */
  readonly #shared: RequestedMemory | undefined;

  constructor(options: GuestOptions, shared?: RequestedMemory) {
    const { pageSize = SYSTEM_PAGE, regions = 1, removes = true } = options;
    this.#options = options;
    this.#shared = shared;
    const pages = Math.ceil(statSync(options.memory).size / pageSize);
    this.#memory = Mapping.anonymous(spanOf({ pages, pageSize, regions }), { pageSize });
    this.#layout = { address: this.#memory.address, pageSize, pages, regions };
    this.#removals = new Uint8Array(new SharedArrayBuffer(2 * pages));
    const uffd = Userfaultfd.open({
      features: [...(removes ? ['event-remove' as const] : []), ...(shared ? ['minor-shmem' as const] : [])],
    });
    for (const { start, length, offset } of this.#regions()) {
      shared?.mapOver(start, length, offset);
      uffd.register(start, length, shared ? ['missing', 'minor'] : 'missing', { pageSize });
    }
    this.#fd = uffd.release();
    if (options.handOver ?? true) this.#handOver();
  }

  /** Connects, and sends the hand-off. */
  #handOver(): void {
    if (this.#shared) this.#shared.handOver(this.#regions(), this.#fd);
    else handOver(this.#options.socket, this.#regions(), this.#fd);
    const { pages, pageSize } = this.#layout;
    reply(0, { is: 'handed over', pages, pageSize });
  }

  async execute(command: Exclude<GuestCommand, { do: 'exit' }>): Promise<GuestReply> {
    if (command.do === 'remove') return this.#remove(command.from, command.to);
    return { is: 'touched', ...(await this.#touch(command)) };
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
  }: TouchCommand): Promise<TouchResults> {
    const order = { ...rest, touches: touches ?? to - from, writes, from, to };
    const begun = new BigInt64Array(new SharedArrayBuffer(8));
    const vcpus = Array.from({ length: order.threads }, () => this.#idle.pop() ?? this.#newVcpu());
    try {
      const runs = vcpus.map((vcpu, thread) => vcpu.run({ order, thread, begun: begun.buffer }));
      // Wait for all: a thread that is ended while it loads koffi ends the process.
      await Promise.allSettled(runs.map(({ ready }) => ready));
      await Promise.all(runs.map(({ ready }) => ready));
      Atomics.store(begun, 0, nanoseconds());
      if (first) this.#handOver();
      Atomics.notify(begun, 0);
      const touched = await Promise.all(runs.map((run) => run.touched));
      this.#idle.push(...vcpus);
      return combined(touched);
    } catch (error) {
      for (const vcpu of vcpus) vcpu.terminate();
      throw error;
    }
  }

  #newVcpu(): Vcpu {
    return new Vcpu({
      ...{ memory: this.#memory.share(), layout: this.#layout },
      ...{ file: this.#options.memory, removals: this.#removals.buffer },
    });
  }

  #remove(from: number, to: number): GuestReply {
    const { pages, pageSize } = this.#layout;
    this.#count(from, to);
    for (let page = from; page < to; page++) {
      // Page by page, because regions have gaps between them.
      this.#memory.discard(placeOf(this.#layout, page), placeOf(this.#layout, page) + pageSize);
    }
    this.#count(pages + from, pages + to);
    return { is: 'removed' };
  }

  /** Counts a removal. After 255 the count continues with 1, because 0 means never. */
  #count(from: number, to: number): void {
    for (let at = from; at < to; at++)
      Atomics.store(this.#removals, at, ((this.#removals[at] as number) % 255) + 1);
  }
}

/** A thread that touches pages, as the monitor sees it. */
class Vcpu {
  readonly #worker: Worker;
  readonly #messages: AsyncIterator<unknown[]>;

  constructor(memory: GuestMemory) {
    this.#worker = startThread('vcpu', { workerData: memory }, COMMAND);
    this.#messages = on(this.#worker, 'message', { close: ['exit'] });
  }

  /** Gives the thread a task; one at a time. */
  run(task: VcpuTask): { ready: Promise<unknown>; touched: Promise<VcpuResults> } {
    this.#worker.postMessage(task);
    const ready = this.#next();
    const touched = ready.then(() => this.#next() as Promise<VcpuResults>);
    // The callers get this error.
    touched.catch(() => {});
    return { ready, touched };
  }

  async #next(): Promise<unknown> {
    const { done, value } = await this.#messages.next();
    if (done) throw new Error('a thread of the guest has ended');
    return value[0];
  }

  terminate(): void {
    void this.#worker.terminate();
  }
}

/** The results of several threads, combined. */
function combined(each: readonly VcpuResults[]): TouchResults {
  const sum = (of: (one: VcpuResults) => number): number => each.reduce((all, one) => all + of(one), 0);
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

function reply(id: number, it: GuestReply): void {
  process.send?.({ id, ...it } satisfies WithId<GuestReply>);
}

function failed(id: number, error: unknown): void {
  reply(id, { is: 'failed', reason: explain(error) });
}

/** The main function of the monitor's process. */
export function runMonitor(): void {
  // If the parent is gone, there is nothing left to do.
  process.on('disconnect', () => process.kill(process.pid, 'SIGKILL'));
  // Ctrl-C is handled by the parent.
  process.on('SIGINT', () => {});
  const monitor = (async () => {
    const options: GuestOptions = JSON.parse(process.argv[2] ?? '');
    return new Monitor(options, options.sharePages ? await requestSharedMemory(options.socket) : undefined);
  })();
  monitor.catch((error) => failed(0, error));
  process.on('message', ({ id, ...command }: WithId<GuestCommand>) => {
    if (command.do === 'exit') process.exit(0);
    monitor
      .then((it) => it.execute(command))
      .then(
        (it) => reply(id, it),
        (error) => failed(id, error),
      );
  });
}
