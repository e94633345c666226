// A correct handler: it answers from the world's source, follows every change, and can answer later. Copy it to write a
// handler, or compare other handlers with it.

import { UffdError } from '../errors/errors.js';
import type { Pagefault } from '../uffd/handler.js';
import type { FaultHandler, Userfaultfd } from '../uffd/userfaultfd.js';
import type { World } from './world.js';

export interface AnswerOptions {
  /** Fetch the data first, asynchronously. Needs the wait strategy 'poll'. */
  later?: boolean;
  /** How many pages around a fault are filled together. Default 1: the page alone. */
  around?: number;
}

/** Errors of a fill after which a retry may succeed. */
const TRANSIENT: readonly string[] = ['ENOMEM', 'ENOSPC', 'EFAULT', 'EIO'];

/**
 * Makes a handler that answers every fault from `world.source` or `world.fetch`. It also answers the faults of forked
 * children.
 */
export function answerFromSource(world: World, options: AnswerOptions = {}): FaultHandler {
  const pages = new Map<bigint, number>();
  for (let index = 0; index < world.pages; index++) pages.set(world.page(index), index);
  return new SourceHandler(world, options, pages, new Set());
}

class SourceHandler implements FaultHandler {
  readonly #world: World;
  readonly #options: AnswerOptions;
  /** By address: the index of each page in the source, and the removed pages, which need zeros. */
  readonly #index: Map<bigint, number>;
  readonly #removed: Set<bigint>;
  readonly #size: number;

  constructor(world: World, options: AnswerOptions, index: Map<bigint, number>, removed: Set<bigint>) {
    this.#world = world;
    this.#options = options;
    this.#index = index;
    this.#removed = removed;
    this.#size = world.pageSize;
  }

  pagefault({ page, kind }: Pagefault, uffd: Userfaultfd): boolean | Promise<void> {
    if (kind === 'write-protect') return uffd.writeProtect(page, this.#size, false) === this.#size;
    const index = this.#sourceIndex(page);
    if (!this.#options.later || index === undefined) return this.#fill(page, uffd);
    return this.#answerLater(page, index, uffd);
  }

  async #answerLater(page: bigint, index: number, uffd: Userfaultfd): Promise<void> {
    await this.#world.fetch(index);
    // If the page has moved, the library has woken the thread, which faults again at the new address.
    while (!uffd.closed && this.#index.get(page) === index) {
      if (this.#fill(page, uffd)) return;
      await this.#world.sleep(1);
    }
  }

  /** Fills a page, and perhaps those around it, with their contents. False: defer the fault. */
  #fill(page: bigint, uffd: Userfaultfd): boolean {
    const { start, indices } = this.#run(page, uffd);
    try {
      if (indices.length === 0) return this.#zero(page, uffd);
      const data = new Uint8Array(indices.length * this.#size);
      indices.forEach((index, at) => void data.set(this.#world.source(index), at * this.#size));
      const protect = this.#world.modes.includes('write-protect');
      const done = uffd.copy(start, data, data.length, { writeProtect: protect });
      return start + BigInt(done) > page;
    } catch (error) {
      // There is no memory now, or the data cannot be read now.
      if (error instanceof UffdError && TRANSIENT.includes(error.code)) return false;
      throw error;
    }
  }

  /** Huge pages have no zero page, so zeros are copied. */
  #zero(page: bigint, uffd: Userfaultfd): boolean {
    const size = this.#size;
    const done = size > uffd.pageSize ? uffd.copy(page, new Uint8Array(size)) : uffd.zero(page, size);
    return done === size;
  }

  /**
   * The pages to fill together with data: the page, and adjacent ones that have data. No indices: the page gets zeros.
   */
  #run(page: bigint, uffd: Userfaultfd): { start: bigint; indices: number[] } {
    const own = this.#sourceIndex(page);
    if (own === undefined) return { start: page, indices: [] };
    const size = BigInt(this.#size);
    const { start, length } = uffd.window(page, this.#options.around ?? 1);
    let first = page;
    const indices = [own];
    for (let before = page - size; length > 0 && before >= start; before -= size) {
      const index = this.#sourceIndex(before);
      if (index === undefined) break;
      indices.unshift(index);
      first = before;
    }
    for (let behind = page + size; behind < start + BigInt(length); behind += size) {
      const index = this.#sourceIndex(behind);
      if (index === undefined) break;
      indices.push(index);
    }
    return { start: first, indices };
  }

  /** Index in the source for the page at an address; undefined: zeros. */
  #sourceIndex(page: bigint): number | undefined {
    return this.#removed.has(page) ? undefined : this.#index.get(page);
  }

  *#within(start: bigint, end: bigint): Generator<bigint> {
    for (let page = start; page < end; page += BigInt(this.#size)) yield page;
  }

  removed(start: bigint, end: bigint): void {
    for (const page of this.#within(start, end)) this.#removed.add(page);
  }

  unmapped(start: bigint, end: bigint): void {
    for (const page of this.#within(start, end)) {
      this.#removed.delete(page);
      this.#index.delete(page);
    }
  }

  remapped(from: bigint, to: bigint, length: number): void {
    for (const page of this.#within(from, from + BigInt(length))) {
      const now = to + (page - from);
      const known = this.#index.get(page);
      const wasRemoved = this.#removed.delete(page);
      // The pages that were at the new address are gone, possibly without an event.
      for (const place of [page, now]) this.#index.delete(place);
      this.#removed.delete(now);
      if (known !== undefined) this.#index.set(now, known);
      if (wasRemoved) this.#removed.add(now);
    }
  }

  forked(child: Userfaultfd): void {
    const [index, removed] = [new Map(this.#index), new Set(this.#removed)];
    child.start(new SourceHandler(this.#world, this.#options, index, removed));
  }
}
