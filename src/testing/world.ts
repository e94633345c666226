// What a handler and its threads are given: a simulated kernel, watched memory, the source of its pages, and time
// that is virtual.

import type { Feature, Mode } from '../features.js';
import type { Kernel } from '../kernel.js';
import { type Inject, SimulatedKernel, type SimulatedProcess } from '../sim/index.js';
import type { Chooser } from '../sim/random.js';
import type { Userfaultfd } from '../userfaultfd.js';

export interface WorldOptions {
  /** Pages that are watched, from `world.address` on. Default 6. */
  pages?: number;
  /** What each page holds at first. Default: bytes that tell pages and places apart, none of them 0. */
  source?: (index: number) => Uint8Array;
  /** Features to turn on. Default: 'event-remove'. */
  features?: Iterable<Feature>;
  /** What to register for. Default: 'missing'. */
  mode?: Mode | readonly Mode[];
  /** Whose memory it is: the handler's own process (default), or another, which may exit and exec. */
  watched?: 'own' | 'another';
  /** The kernel to be like; default: the newest that is known. */
  version?: string;
  /** Bytes of a page: 4096 (default), 16384 or 65536. */
  pageSize?: number;
  /** Pages of the system's size (default), or huge ones of a pool that may run dry, 64 KiB each. */
  memory?: 'small' | 'huge';
  /** Huge pages in the system's pool. Default: more than anybody needs. */
  hugePages?: number;
  /** Watched pages at which another object begins, mapped side by side with the one before: two memfds, for one. */
  objects?: readonly number[];
  /** Watched pages at which nothing is mapped. */
  holes?: readonly number[];
  /** Probability that a thread runs before each call of the handler's. Default 0.3. */
  preemption?: number;
  /** How many descriptors there may be. */
  descriptors?: number;
  /** What goes wrong on purpose. */
  inject?: Inject;
  /** Virtual milliseconds after which it is an error that no thread has got on. Default 2000. */
  patienceMs?: number;
}

/** `fetch` takes a thousandth of a millisecond times 4 to one of this many powers: 4 ms at most. */
const LATENCIES = 7;

export class World {
  readonly kernel: SimulatedKernel;
  /** The kernel as the library is given it. */
  readonly port: Kernel;
  /** Whose memory is watched. */
  readonly process: SimulatedProcess;
  /** Bytes of a page of the watched memory. */
  readonly pageSize: number;
  readonly pages: number;
  /** Where the watched memory begins. */
  readonly address: bigint;
  /** Bytes of it. */
  readonly length: number;
  readonly features: readonly Feature[];
  readonly modes: readonly Mode[];
  /** The only source of chance: whoever asks it is repeatable. */
  readonly chooser: Chooser;
  /** Writes a line into the schedule: 'who: what'. */
  note: (line: string) => void = () => {};
  /** Calls the pages of a part of memory after a name, in the schedule. */
  name: (start: bigint, length: number, name: string) => void = () => {};
  /** Fetches and sleeps under way. */
  pending = 0;
  readonly #source: (index: number) => Uint8Array;
  readonly #sources = new Map<number, Uint8Array>();
  #uffd: Userfaultfd | undefined;

  constructor(options: WorldOptions, chooser: Chooser, listen: (world: World) => Kernel) {
    const { version, pageSize, preemption, descriptors, inject, hugePages } = options;
    const huge = options.memory === 'huge';
    this.chooser = chooser;
    this.kernel = new SimulatedKernel({
      chooser,
      patienceMs: options.patienceMs ?? 2000,
      ...(version === undefined ? {} : { version }),
      ...(pageSize === undefined ? {} : { pageSize }),
      ...(preemption === undefined ? {} : { preemption }),
      ...(descriptors === undefined ? {} : { descriptors }),
      ...(inject === undefined ? {} : { inject }),
      ...(hugePages === undefined ? {} : { hugePages }),
    });
    this.pageSize = huge ? this.kernel.hugePageSize : this.kernel.pageSize;
    this.process = options.watched === 'another' ? this.kernel.spawn() : this.kernel.process;
    this.pages = options.pages ?? 6;
    this.length = this.pages * this.pageSize;
    this.features = [...(options.features ?? (['event-remove'] as const))];
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

  /** What serves the watched memory. */
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

  /** Which watched page an address lies in; undefined: none. */
  indexOf(address: bigint): number | undefined {
    const index = Math.floor(Number(address - this.address) / this.pageSize);
    return index >= 0 && index < this.pages ? index : undefined;
  }

  /** What the source has of a page, at once; not to be written to. */
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

  /** The same from afar: it takes virtual time, and anything may happen meanwhile. By index, or by its address. */
  async fetch(page: number | bigint): Promise<Uint8Array> {
    const index = typeof page === 'bigint' ? this.indexOf(page) : page;
    if (index === undefined) throw new RangeError(`fetch: 0x${page.toString(16)} is no watched page`);
    this.note(`source: page ${index} is asked for`);
    await this.sleep(0.001 * 4 ** this.chooser.below(LATENCIES));
    this.note(`source: page ${index} is here`);
    return this.source(index).slice();
  }

  /** Goes on after virtual milliseconds. */
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

/** Bytes from 1 to 251 that tell pages and places apart. */
function patterned(index: number, pageSize: number): Uint8Array {
  const known = patterns.get(index);
  if (known && known.length >= pageSize) return known.subarray(0, pageSize);
  const page = new Uint8Array(pageSize);
  for (let offset = 0; offset < pageSize; offset++) page[offset] = 1 + ((index * 37 + offset * 7) % 251);
  patterns.set(index, page);
  return page;
}

/** A larger page begins like a smaller one. */
const patterns = new Map<number, Uint8Array>();
