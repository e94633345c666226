// Guests of one image that share its pages, in one simulated world: `uffd serve --share-pages` with a source whose chunks
// come late. Each guest is a process that maps the memory object privately; guests come and go, write, and remove pages.
// The handler, its background work and the marks of the shared memory are the real ones. The seed decides everything.
//
// Checked:
//  - Every byte that a guest reads, that is installed, and that is there in the end. What a guest wrote, another never
//    sees.
//  - The order of events, and that no thread sleeps for ever.
//  - A chunk is fetched once for all guests, and each guest asks for it once.
//  - A marked page of the shared memory holds the image's bytes.

import { strict as assert } from 'node:assert';
import { constants } from 'node:os';
import { type KnownFeature, UffdError, type Window } from '../../../src/index.js';
import type { Kernel, LinearMemory } from '../../../src/kernel/port.js';
import { BackgroundFiller } from '../../../src/serve/background-filler.js';
import type { ImageSource } from '../../../src/serve/image-source.js';
import { Answers, type Region, type Tally } from '../../../src/serve/index.js';
import { sharedSource } from '../../../src/serve/shared-pages.js';
import type { SharedSource } from '../../../src/serve/snapshot-handler.js';
import { E } from '../../../src/sim/abi.js';
import {
  exit,
  type Inject,
  type Program,
  Random,
  read,
  type SharedMemory,
  SimulatedKernel,
  type SimulatedProcess,
  Userfaultfd,
} from '../../../src/sim/index.js';
import { isCached } from '../../../src/sim/shared-memory.js';
import { eventLoopTurn } from '../../../src/testing/event-loop-turn.js';
import { EventOrder } from '../../../src/testing/event-order.js';
import { observeHandler } from '../../../src/testing/observed-handler.js';
import { observedPort } from '../../../src/testing/observed-port.js';
import { PageOracle } from '../../../src/testing/page-oracle.js';
import { workload } from '../../../src/testing/workload.js';
import { patterned } from '../../../src/testing/world.js';
import { LateImage, type Lateness } from './late-image.js';

const P = 4096;
const STEPS_MOST = 200_000;
const PATIENCE_MS = 600_000;
/** Virtual milliseconds between two background steps, and for which they pause. */
const STEP_MS = 0.02;
const PAUSE_MS = 5;

export interface SharedWorldOptions {
  seed: number;
  pages: number;
  guests: number;
  lateness: Lateness;
  window: Window;
  inject?: Inject;
  /** Probabilities: that a page cannot be put because there is no memory, and because the image cannot be read. */
  noMemory?: number;
  unreadable?: number;
  /** Offset and length of each range to prefetch. */
  prefetch?: readonly number[];
  eager?: boolean;
  /** How often the kernel takes a mapped page of the shared memory away from a guest (reclaim), without a message. */
  reclaims?: number;
  /** Whether a monitor reads the memory through a mapping that is not watched. */
  looks?: boolean;
  /** Milliseconds at most after which a guest begins. */
  spreadMs?: number;
  /** The programs of a guest's threads; default: random ones. */
  threads?: (guest: SharedGuest) => Program[];
  tally: Tally;
}

export class SharedGuest {
  readonly number: number;
  readonly process: SimulatedProcess;
  readonly regions: readonly Region[];
  readonly source: ImageSource;
  readonly features: readonly KnownFeature[];
  uffd: Userfaultfd | undefined;
  closed = false;

  constructor(
    number: number,
    process: SimulatedProcess,
    regions: readonly Region[],
    source: ImageSource,
    features: readonly KnownFeature[],
  ) {
    this.number = number;
    this.process = process;
    this.regions = regions;
    this.source = source;
    this.features = features;
  }

  /** The address of a page, by its number in the image. */
  page(index: number): bigint {
    const region = this.regions.find(
      ({ offset, length }) => index * P >= offset && index * P < offset + length,
    );
    if (!region) throw new Error(`no region has page ${index}`);
    return region.start + BigInt(index * P - region.offset);
  }
}

/** Runs a world. @throws Error that says what was wrong, with the seed */
export async function runSharedWorld(options: SharedWorldOptions): Promise<void> {
  const world = new SharedWorld(options);
  try {
    await world.run();
  } catch (error) {
    throw new Error(`seed ${options.seed}: ${(error as Error).message}`, { cause: error });
  }
}

class SharedWorld {
  readonly pageSize = P;
  readonly pages: number;
  readonly kernel: SimulatedKernel;
  readonly chooser: Random;
  // What observers of handlers need (HandlerObserver).
  note: ((line: string) => void) | undefined;
  answering = 0;
  readonly #options: SharedWorldOptions;
  readonly #image: LateImage;
  readonly #object: SharedMemory;
  readonly #marks: Int32Array;
  readonly #oracle: PageOracle;
  readonly #orders: EventOrder[] = [];
  readonly #guests: SharedGuest[] = [];
  #failure: Error | undefined;
  /** Guests that have not begun. */
  #coming: number;

  constructor(options: SharedWorldOptions) {
    const { seed, pages, guests, lateness, inject } = options;
    this.#options = options;
    this.pages = pages;
    this.#coming = guests;
    this.chooser = new Random(seed);
    this.kernel = new SimulatedKernel({
      ...{ chooser: this.chooser, patienceMs: PATIENCE_MS },
      ...(inject && { inject }),
    });
    this.#object = this.kernel.memfd(pages);
    this.#marks = new Int32Array(Math.ceil(pages / 32));
    this.#image = new LateImage(this, lateness, (offset) => Math.floor(offset / P));
    this.#oracle = new PageOracle(
      (index) => this.source(index),
      ({ detail }) => this.fail({ detail }),
    );
  }

  source(index: number): Uint8Array {
    return this.#options.lateness.hole(index) ? new Uint8Array(P) : patterned(index, P);
  }

  fail({ detail }: { detail: string }): void {
    this.#failure ??= new Error(detail);
    this.kernel.halt(this.#failure);
  }

  latest(): EventOrder {
    return this.#orders.at(-1) as EventOrder;
  }

  async run(): Promise<void> {
    const { guests, spreadMs = 0, reclaims = 0, looks = false } = this.#options;
    const { kernel } = this;
    for (let number = 0; number < guests; number++) {
      const afterMs = number === 0 ? 0 : (spreadMs * this.chooser.below(1000)) / 1000;
      kernel.after(afterMs, () => this.#begin(number));
    }
    for (let count = 0; count < reclaims; count++)
      kernel.after((2 * spreadMs * this.chooser.below(1000)) / 1000, () => this.#reclaim());
    if (looks) this.#look();
    while (!this.#failure && !this.#isThrough()) {
      const { turns } = kernel;
      if (!kernel.step()) throw new Error(`nothing will ever happen any more: ${this.#waiting()}`);
      if (kernel.steps >= STEPS_MOST) throw new Error(`${STEPS_MOST} steps were not enough`);
      if (kernel.turns !== turns) await eventLoopTurn();
      this.#reap();
    }
    if (this.#failure) throw this.#failure;
    this.#checkEnd();
  }

  #isThrough(): boolean {
    return this.#coming === 0 && this.#guests.every(({ closed }) => closed);
  }

  #waiting(): string {
    return this.kernel.threads
      .filter(({ idle }) => !idle)
      .map((thread) => thread.describe())
      .join('; ');
  }

  /** Lets a guest end whose threads have ended. */
  #reap(): void {
    for (const { process } of this.#guests) {
      if (!process.exited && process.threads.length > 0 && process.threads.every(({ idle }) => idle)) {
        this.#oracle.compareAll('in the end there was');
        process.exit();
      }
    }
  }

  #checkEnd(): void {
    for (const { served, closings } of this.#orders)
      if (served) assert.equal(closings, 1, 'closed was called');
    for (const count of this.#image.fetched)
      assert.ok((count ?? 1) === 1, `a chunk was fetched ${count} times`);
    for (const count of this.#image.wanted)
      assert.ok((count ?? 0) <= this.#options.guests, `a chunk was asked for ${count} times`);
    for (let page = 0; page < this.pages; page++) {
      if (((this.#marks[page >> 5] as number) & (1 << (page & 31))) === 0) continue;
      assert.deepEqual(
        this.#object.peek(page * P, P),
        this.source(page),
        `page ${page} of the shared memory`,
      );
    }
  }

  // ---- the guests ----------------------------------------------------------------------------------------

  /** A guest's process, whose two regions lie apart, and its session. */
  #begin(number: number): void {
    this.#coming--;
    const { kernel, chooser, pages } = this;
    const process = kernel.spawn();
    const first = Math.max(1, Math.ceil(pages / 3));
    const regions = [
      { firstPage: 0, count: first },
      { firstPage: first, count: pages - first },
    ]
      .filter(({ count }) => count > 0)
      .map(({ firstPage, count }) => {
        const start = kernel.mapShared(this.#object, { process, firstPage, pages: count, private: true });
        this.#oracle.watch(process.space, Number(start), count, P, firstPage);
        return { start, length: count * P, offset: firstPage * P, pageSize: P, shared: true };
      });
    const more: KnownFeature[] = chooser.chance(0.3) ? ['event-unmap', 'event-remap'] : [];
    const features: KnownFeature[] = ['event-remove', 'missing-shmem', 'minor-shmem', ...more];
    const guest = new SharedGuest(number, process, regions, this.#image.another(), features);
    this.#guests.push(guest);
    const inside = this.#portOf(process);
    const opened = Userfaultfd.open({ kernel: inside, features });
    for (const { start, length } of regions) opened.register(start, length, ['missing', 'minor']);
    const { ranges } = opened;
    const wrapped = Userfaultfd.wrap(opened.release(), {
      ...{ kernel: this.#portOf(kernel.process), features, ranges, pid: process.pid },
    });
    const uffd = observeHandler(wrapped, this.latest(), this);
    guest.uffd = uffd;
    for (const program of this.#programs(guest)) kernel.thread(program, process);
    this.#serve(guest, uffd);
  }

  #programs(guest: SharedGuest): Program[] {
    const { chooser, kernel, pages } = this;
    const { threads } = this.#options;
    if (threads) return threads(guest);
    const { features } = guest;
    const world = {
      ...{ chooser, kernel, pages, pageSize: P, features, name() {} },
      page: (index: number) => guest.page(index),
    };
    return workload(world, { threads: 1 + chooser.below(3), actions: 10 });
  }

  #serve(guest: SharedGuest, uffd: Userfaultfd): void {
    const { window, prefetch = [], eager = false, tally } = this.#options;
    const { kernel } = this;
    const { source } = guest;
    const handler = new Answers({
      ...{ regions: guest.regions, source, tally, window, latency() {}, now: () => kernel.now },
      share: this.#share(source),
      closed: () => {
        guest.closed = true;
      },
    });
    const work = new BackgroundFiller(handler, { prefetch: Float64Array.from(prefetch), eager, tally }, uffd);
    // As the thread of a session: faults first, then a step of the background work, until all is done.
    const turn = (): void => {
      if (guest.closed || this.#failure) return;
      source.arrived();
      handler.arrived(uffd);
      if (!uffd.closed) uffd.poll(handler);
      if (uffd.closed) return;
      const step = work.step();
      if (step === 'done') {
        const { arrived } = this.#image;
        this.#image.arrived = () => {
          arrived();
          source.arrived();
          if (!uffd.closed) handler.arrived(uffd);
        };
        uffd.start(handler, { wait: 'poll' });
      } else kernel.after(step === 'more' ? STEP_MS : PAUSE_MS, turn);
    };
    kernel.after(0, turn);
  }

  /** The shared memory for one guest, with the real marks. The write takes several steps, between which threads run. */
  #share(source: ImageSource): SharedSource {
    const { noMemory = 0, unreadable = 0 } = this.#options;
    return sharedSource(this.#marks, (offset, length) => {
      if (this.chooser.chance(noMemory)) throw new UffdError(E.NOMEM, 'madvise', { length });
      // The pages are there before their bytes are, as after MADV_POPULATE_WRITE.
      for (let at = offset; at < offset + length; at += P)
        if (!this.#object.holds(at / P)) this.#object.write(at, new Uint8Array(1));
      const given = source.bytesAt(offset, length);
      const bytes = typeof given === 'bigint' ? this.#image.bytesAt(given, length) : given;
      if (!bytes || this.chooser.chance(unreadable))
        throw new UffdError(-constants.errno.EFAULT, 'process_vm_readv', { length });
      for (let at = 0; at < length; at += P / 2)
        this.#object.write(offset + at, bytes.subarray(at, at + P / 2));
    });
  }

  // ---- what else happens ---------------------------------------------------------------------------------

  /** The kernel takes a page of the shared memory away from a guest, as when it is swapped out. */
  #reclaim(): void {
    const alive = this.#guests.filter(({ process }) => !process.exited && process.space.alive);
    const guest = alive[this.chooser.below(Math.max(1, alive.length))];
    if (!guest) return;
    const { space } = guest.process;
    const mapped = space.vmas.flatMap((vma) =>
      space.pagesIn(vma.start, vma.end).filter((page) => isCached(space, vma, page)),
    );
    const page = mapped[this.chooser.below(Math.max(1, mapped.length))];
    if (page !== undefined) space.set(page, undefined);
  }

  /** A monitor reads pages past its userfaultfd, which makes the kernel allocate them. */
  #look(): void {
    const { kernel, chooser, pages } = this;
    const process = kernel.spawn();
    const there = kernel.mapShared(this.#object, { process, protection: 1 });
    const looked = Array.from({ length: 4 }, () => chooser.below(pages));
    kernel.thread(
      (function* (): Program {
        for (const page of looked) yield read(there + BigInt(page * P));
        yield exit();
      })(),
      process,
    );
  }

  // ---- observation ---------------------------------------------------------------------------------------

  #portOf(process: SimulatedProcess): Kernel {
    const { kernel } = this;
    return {
      pageSize: P,
      elsewhere: true,
      attach: (memory: LinearMemory) => {
        const order = new EventOrder(P, ({ detail }) => this.fail({ detail }));
        this.#orders.push(order);
        return observedPort(kernel.attach(memory, process), memory, {
          read: (fd, view, bytes) => {
            if (kernel.files.get(fd)?.is === 'userfaultfd') order.said(view, bytes);
          },
          answered: (fd, call) => {
            const start = Number(call.start);
            if (call.resolved > 0) order.resolved(call.start, call.start + BigInt(call.resolved));
            const file = kernel.files.get(fd);
            if (file?.is !== 'userfaultfd') return;
            const { space } = file.context;
            if (call.result === E.EXIST && space.holds(start))
              order.resolved(call.start, call.start + BigInt(P));
            if (call.installed > 0)
              this.#oracle.compare(space, start, start + call.installed, `${call.name} has put`);
          },
        });
      },
    };
  }
}
