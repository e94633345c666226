// The world that a handler and its threads get: a simulated kernel, watched memory, the source of its pages, and
// virtual time.

import type { Feature, Mode } from '../kernel/features.js';
import type { Kernel } from '../kernel/port.js';
import type { Chooser } from '../sim/chooser.js';
import { SimulatedKernel, type SimulatedProcess, type SimulationOptions } from '../sim/index.js';
import type { Userfaultfd } from '../uffd/userfaultfd.js';

export interface WorldOptions
  extends Pick<SimulationOptions, 'version' | 'pageSize' | 'hugePages' | 'descriptors' | 'inject'> {
  /** Pages that are watched, from `world.address` on. Default 6. */
  pages?: number;
  /** Contents of each page at the beginning. Default: bytes that differ by page and offset, none of them 0. */
  source?: (index: number) => Uint8Array;
  /** Features to turn on. Default: 'event-remove'. */
  features?: Iterable<Feature>;
  /** Modes in which the memory is registered. Default: 'missing'. */
  mode?: Mode | readonly Mode[];
  /** Which process has the memory: the handler's own (default), or another one, which may exit or call exec. */
  watched?: 'own' | 'another';
  /**
   * Whether the memory is in pages of the system's size (default), or in huge pages of 64 KiB from a pool that may be
   * empty.
   */
  memory?: 'small' | 'huge';
  /**
   * Indexes of the watched pages at which another memory object (such as a memfd) begins, adjacent to the one before.
   */
  objects?: readonly number[];
  /** Indexes of the pages in the watched range that are not mapped. */
  holes?: readonly number[];
  /** Probability that a thread runs before a call that the handler makes to the kernel. Default 0.3. */
  preemption?: number;
  /** If no thread makes progress for this many virtual milliseconds, the run fails. Default 2000. */
  patienceMs?: number;
}

/**
 * `fetch` takes 0.001 ms times a power of 4. There are this many powers, from 4^0 on, so it takes about 4 ms at most.
 */
const LATENCIES = 7;

export class World {
  readonly kernel: SimulatedKernel;
  /** The kernel that is passed to the library. */
  readonly port: Kernel;
  /** The process whose memory is watched. */
  readonly process: SimulatedProcess;
  /** Bytes of a page of the watched memory. */
  readonly pageSize: number;
  readonly pages: number;
  /** Where the watched memory begins. */
  readonly address: bigint;
  /** Bytes of the watched memory. */
  readonly length: number;
  readonly features: readonly Feature[];
  readonly modes: readonly Mode[];
  /** Makes all random decisions, so that they can be repeated. */
  readonly chooser: Chooser;
  /** Writes a line into the schedule: 'thread: what it does'. */
  note: (line: string) => void = () => {};
  /** Gives pages a name in the schedule. */
  name: (start: bigint, length: number, name: string) => void = () => {};
  /** How many fetches and sleeps are under way. */
  pending = 0;
  readonly #source: (index: number) => Uint8Array;
  readonly #sources = new Map<number, Uint8Array>();
  #uffd: Userfaultfd | undefined;

  constructor(options: WorldOptions, chooser: Chooser, listen: (world: World) => Kernel) {
    const huge = options.memory === 'huge';
    this.chooser = chooser;
    const { features = ['event-remove'], ...rest } = options;
    this.kernel = new SimulatedKernel({ ...rest, chooser, patienceMs: options.patienceMs ?? 2000 });
    this.pageSize = huge ? this.kernel.hugePageSize : this.kernel.pageSize;
    this.process = options.watched === 'another' ? this.kernel.spawn() : this.kernel.process;
    this.pages = options.pages ?? 6;
    this.length = this.pages * this.pageSize;
    this.features = [...features];
    this.modes = typeof options.mode === 'object' ? options.mode : [options.mode ?? 'missing'];
    this.#source = options.source ?? ((index) => patterned(index, this.pageSize));
    const { process } = this;
    this.address = this.kernel.mapMemory(this.pages, { process, huge, objects: options.objects ?? [] });
    for (const hole of options.holes ?? []) {
      const start = Number(this.page(hole));
      process.space.remove(start, start + this.pageSize);
    }
    this.port = listen(this);
  }

  /** The userfaultfd of the watched memory. */
  get uffd(): Userfaultfd {
    if (!this.#uffd) throw new Error('the world is not open yet');
    return this.#uffd;
  }

  set uffd(uffd: Userfaultfd) {
    this.#uffd = uffd;
  }

  /** The address of a watched page. */
  page(index: number): bigint {
    return this.address + BigInt(index * this.pageSize);
  }

  /** Index of the watched page that holds an address; undefined: none. */
  indexOf(address: bigint): number | undefined {
    const index = Math.floor(Number(address - this.address) / this.pageSize);
    return index >= 0 && index < this.pages ? index : undefined;
  }

  /** The source's data for a page, without delay. Do not write to it. */
  source(index: number): Uint8Array {
    let page = this.#sources.get(index);
    if (!page) {
      page = this.#source(index);
      const { length } = page;
      if (length !== this.pageSize)
        throw new RangeError(`source(${index}): ${length} bytes, not ${this.pageSize}`);
      this.#sources.set(index, page);
    }
    return page;
  }

  /**
   * As `source`, but asynchronous: it takes virtual time, in which anything may happen. `page`: an index, or an
   * address.
   */
  async fetch(page: number | bigint): Promise<Uint8Array> {
    const index = typeof page === 'bigint' ? this.indexOf(page) : page;
    if (index === undefined) throw new RangeError(`fetch: 0x${page.toString(16)} is no watched page`);
    this.note(`source: page ${index} is asked for`);
    await this.sleep(0.001 * 4 ** this.chooser.below(LATENCIES));
    this.note(`source: page ${index} is here`);
    return this.source(index).slice();
  }

  /** Waits for virtual milliseconds. */
  sleep(delayMs: number): Promise<void> {
    this.pending++;
    return new Promise((resolve) => {
      this.kernel.after(delayMs, () => {
        this.pending--;
        resolve();
      });
    });
  }
}

/** The default contents of a page: bytes from 1 to 251 that differ by page and offset. */
export function patterned(index: number, pageSize: number): Uint8Array {
  const known = patterns.get(index);
  if (known && known.length >= pageSize) return known.subarray(0, pageSize);
  const page = new Uint8Array(pageSize);
  for (let offset = 0; offset < pageSize; offset++) page[offset] = 1 + ((index * 37 + offset * 7) % 251);
  patterns.set(index, page);
  return page;
}

/** Patterns by page size: a larger page begins like a smaller one. */
const patterns = new Map<number, Uint8Array>();
