// Plays a microVM's monitor, in a process of its own: maps the guest's memory, hands it over as Firecracker does, and
// has threads touch it. Like Firecracker it keeps the userfaultfd open: if the handler dies, the guest hangs.
//
// It is told what to do over Node's channel between processes, one order after the other.

import { closeSync, fstatSync, openSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import { Mapping, Userfaultfd } from '../../index.js';
import { handOver, type Region } from '../../serve/index.js';
import {
  type GuestAnswer,
  type GuestOptions,
  type GuestOrder,
  type Layout,
  type Numbered,
  pagesOfRegion,
  placeOf,
  spanOf,
  type Touched,
  type TouchOrder,
} from './protocol.js';
import type { VcpuTask } from './vcpu.js';

const SYSTEM_PAGE = 4096;

class Monitor {
  readonly #options: GuestOptions;
  readonly #memory: Mapping;
  readonly #layout: Layout;
  /** By page, whether a removal has begun; behind that, whether one was over. */
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
  }

  /** Connects, and sends the one message. */
  handOver(): GuestAnswer {
    handOver(this.#options.socket, this.#regions(), this.#fd);
    const { pages, pageSize } = this.#layout;
    return { is: 'handed over', pages, pageSize };
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
    ...rest
  }: TouchOrder): Promise<Touched> {
    const order = { ...rest, touches: touches ?? to - from, writes, from, to };
    const each = await Promise.all(
      Array.from({ length: order.threads }, (_, thread) =>
        this.#vcpu({
          ...{
            memory: this.#memory.share(),
            layout: this.#layout,
            file: this.#options.memory,
            order,
            thread,
          },
          removals: this.#removals.buffer,
        }),
      ),
    );
    return together(each);
  }

  #vcpu(task: VcpuTask): Promise<Touched> {
    return new Promise((resolve, reject) => {
      const worker = new Worker(new URL('./vcpu.js', import.meta.url), { workerData: task });
      worker.once('message', resolve);
      worker.once('error', reject);
      worker.once('exit', () => reject(new Error('a thread of the guest has ended')));
    });
  }

  #remove(from: number, to: number): GuestAnswer {
    const { pages, pageSize } = this.#layout;
    this.#removals.fill(1, from, to);
    for (let page = from; page < to; page++) {
      // Page by page: regions have gaps between them.
      this.#memory.discard(placeOf(this.#layout, page), placeOf(this.#layout, page) + pageSize);
    }
    this.#removals.fill(1, pages + from, pages + to);
    return { is: 'removed' };
  }
}

/** What threads did, as one. */
function together(each: readonly Touched[]): Touched {
  const most = (of: (one: Touched) => number): number => Math.max(...each.map(of));
  const sum = (of: (one: Touched) => number): number => each.reduce((all, one) => all + of(one), 0);
  return {
    touches: sum(({ touches }) => touches),
    wrong: each.flatMap(({ wrong }) => wrong),
    wrongCount: sum(({ wrongCount }) => wrongCount),
    ms: most(({ ms }) => ms),
    firstMs: Math.min(...each.map(({ firstMs }) => firstMs)),
    p50Us: most(({ p50Us }) => p50Us),
    p99Us: most(({ p99Us }) => p99Us),
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
  answer(id, { is: 'failed', reason: (error as Error).message });
}

// Whoever started this is gone: so is what it is good for.
process.on('disconnect', () => process.exit(1));
try {
  const monitor = new Monitor(JSON.parse(process.argv[2] ?? ''));
  process.on('message', ({ id, ...order }: Numbered<GuestOrder>) => {
    if (order.do === 'exit') process.exit(0);
    monitor.obey(order).then(
      (it) => answer(id, it),
      (error) => failed(id, error),
    );
  });
  answer(0, monitor.handOver());
} catch (error) {
  failed(0, error);
}
