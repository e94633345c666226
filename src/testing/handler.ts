// A handler that is right: it answers from the world's source, follows every change, and may answer later. To begin
// with, and to compare others with.

import { UffdError } from '../errors.js';
import type { FaultHandler, Pagefault } from '../handler.js';
import type { Userfaultfd } from '../userfaultfd.js';
import type { World } from './world.js';

export interface AnswerOptions {
  /** Fetch the data first, which takes time. Needs the wait strategy 'poll'. */
  later?: boolean;
  /** Pages around a fault that are filled with it. Default 1: the page alone. */
  around?: number;
}

/** Errors of fills that may be gone when it is tried again. */
const PASSING: readonly string[] = ['ENOMEM', 'ENOSPC', 'EFAULT', 'EIO'];

/** What is known of the pages of one process, by their addresses. */
class Pages {
  /** Which page of the source it is. */
  readonly index: Map<bigint, number>;
  /** Those that were removed: zeros are due. */
  readonly removed: Set<bigint>;

  constructor(index: Map<bigint, number>, removed: Set<bigint>) {
    this.index = index;
    this.removed = removed;
  }

  copy(): Pages {
    return new Pages(new Map(this.index), new Set(this.removed));
  }

  /** The page of the source that is due at an address; undefined: zeros. */
  due(page: bigint): number | undefined {
    return this.removed.has(page) ? undefined : this.index.get(page);
  }
}

/** Answers every fault from `world.source` or `world.fetch`, and its children's too. */
export function answerFromSource(world: World, options: AnswerOptions = {}): FaultHandler {
  const pages = new Map<bigint, number>();
  for (let index = 0; index < world.pages; index++) pages.set(world.page(index), index);
  return new Answers(world, options, new Pages(pages, new Set()));
}

class Answers implements FaultHandler {
  readonly #world: World;
  readonly #options: AnswerOptions;
  readonly #pages: Pages;
  readonly #size: number;

  constructor(world: World, options: AnswerOptions, pages: Pages) {
    this.#world = world;
    this.#options = options;
    this.#pages = pages;
    this.#size = world.pageSize;
  }

  pagefault({ page, kind }: Pagefault, uffd: Userfaultfd): boolean | Promise<void> {
    if (kind === 'write-protect') return uffd.writeProtect(page, this.#size, false) === this.#size;
    const index = this.#pages.due(page);
    if (!this.#options.later || index === undefined) return this.#fill(page, uffd);
    return this.#answerLater(page, index, uffd);
  }

  async #answerLater(page: bigint, index: number, uffd: Userfaultfd): Promise<void> {
    await this.#world.fetch(index);
    // Whoever sleeps where the page was is woken, and asks again where it is now.
    while (!uffd.closed && this.#pages.index.get(page) === index) {
      if (this.#fill(page, uffd)) return;
      await this.#world.sleep(1);
    }
  }

  /** Fills a page, and perhaps those around it, with what is due now. False: not now. */
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
      // There is no memory, or the data cannot be read, for now.
      if (error instanceof UffdError && PASSING.includes(error.code)) return false;
      throw error;
    }
  }

  /** Huge pages have no zero page: zeros are copied. */
  #zero(page: bigint, uffd: Userfaultfd): boolean {
    const size = this.#size;
    const done = size > uffd.pageSize ? uffd.copy(page, new Uint8Array(size)) : uffd.zero(page, size);
    return done === size;
  }

  /** The pages to fill at once: those around one that have data to be filled with. None: zeros. */
  #run(page: bigint, uffd: Userfaultfd): { start: bigint; indices: number[] } {
    const own = this.#pages.due(page);
    if (own === undefined) return { start: page, indices: [] };
    const size = BigInt(this.#size);
    const { start, length } = uffd.window(page, this.#options.around ?? 1);
    let first = page;
    const indices = [own];
    for (let before = page - size; length > 0 && before >= start; before -= size) {
      const index = this.#pages.due(before);
      if (index === undefined) break;
      indices.unshift(index);
      first = before;
    }
    for (let behind = page + size; behind < start + BigInt(length); behind += size) {
      const index = this.#pages.due(behind);
      if (index === undefined) break;
      indices.push(index);
    }
    return { start: first, indices };
  }

  *#within(start: bigint, end: bigint): Generator<bigint> {
    for (let page = start; page < end; page += BigInt(this.#size)) yield page;
  }

  removed(start: bigint, end: bigint): void {
    for (const page of this.#within(start, end)) this.#pages.removed.add(page);
  }

  unmapped(start: bigint, end: bigint): void {
    for (const page of this.#within(start, end)) {
      this.#pages.removed.delete(page);
      this.#pages.index.delete(page);
    }
  }

  remapped(from: bigint, to: bigint, length: number): void {
    const { index, removed } = this.#pages;
    for (const page of this.#within(from, from + BigInt(length))) {
      const now = to + (page - from);
      const known = index.get(page);
      const wasRemoved = removed.delete(page);
      // What was at the new place is gone, and it may be that nobody has said so.
      for (const place of [page, now]) index.delete(place);
      removed.delete(now);
      if (known !== undefined) index.set(now, known);
      if (wasRemoved) removed.add(now);
    }
  }

  forked(child: Userfaultfd): void {
    child.start(new Answers(this.#world, this.#options, this.#pages.copy()));
  }
}
