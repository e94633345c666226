// Sets of pages by number, and which of them are parts of huge pages.

/** Pages of a chunk, which has one bit for each page. */
const CHUNK = 1024;

/** A set of pages. */
export class PageSet {
  size = 0;
  readonly #pageSize: bigint;
  readonly #chunks = new Map<number, Uint32Array>();

  constructor(pageSize: number) {
    this.#pageSize = BigInt(pageSize);
  }

  pageOf(address: bigint): number {
    return Number(address / this.#pageSize);
  }

  /** Adds the page that holds an address, and returns its number. */
  add(address: bigint): number {
    const page = this.pageOf(address);
    const chunk = Math.floor(page / CHUNK);
    const words = this.#chunks.get(chunk) ?? new Uint32Array(CHUNK / 32);
    this.#chunks.set(chunk, words);
    const index = page % CHUNK;
    const bit = 1 << (index & 31);
    if (!((words[index >> 5] as number) & bit)) {
      words[index >> 5] = (words[index >> 5] as number) | bit;
      this.size++;
    }
    return page;
  }
}

/** Pages of the system's size from `first` up to `end`, exclusive. */
export interface Pages {
  readonly first: number;
  readonly end: number;
}

/** The ranges of huge pages. A later entry overrides an earlier one. */
export class HugePages {
  /** `each`: pages of the system's size in a huge page. */
  readonly #ranges: (Pages & { each: number })[] = [];

  add(first: number, end: number, each: number): void {
    this.#ranges.unshift({ first, end, each });
  }

  /** The first page of the huge page that holds this one. */
  whole(page: number): Pages {
    const range = this.#ranges.find(({ first, end }) => page >= first && page < end);
    if (!range) return { first: page, end: page + 1 };
    const first = page - (page % range.each);
    return { first, end: first + range.each };
  }
}
