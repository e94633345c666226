// What a recorded run has touched, as stretches of the memory file: to be installed before it is asked for. (The idea is
// REAP's: Ustiugov et al., "Benchmarking, Analysis, and Optimization of Serverless Function Snapshots", 2021. The set
// is stable between runs, its order less so.)

import { statSync } from 'node:fs';
import { Op } from '../core.js';
import { Note } from '../kernel.js';
import { Kind } from '../trace/codec.js';
import { TraceReader } from '../trace/reader.js';
import { wholePages } from '../whole-pages.js';
import { type Region, SYSTEM_PAGE } from './handoff.js';
import type { Run } from './memory-file.js';
import type { MemoryIdentity } from './memory-identity.js';

/** What a trace of a session says of itself, in its description's `about`. */
export interface SessionAbout {
  readonly kind: 'uffd serve';
  readonly memory: MemoryIdentity;
  readonly regions: readonly ToldRegion[];
}

interface ToldRegion {
  /** An address, as text. */
  readonly start: string;
  readonly length: number;
  readonly offset: number;
  readonly pageSize: number;
}

/** A trace that cannot be prefetched from. */
export class WorkingSetError extends Error {
  override readonly name = 'WorkingSetError';
  readonly code = 'ERR_UFFD_WORKING_SET';
}

/** Bytes of a run, at most. */
const RUN_MOST = 2 ** 21;
/**
 * What is taken of a trace, at most: a few bytes of a file can stand for any number of records, and a page takes memory here.
 * Pages of the working set are 8 GiB, in pages of 4 KiB.
 */
const RECORDS_MOST = 100_000_000;
const PAGES_MOST = 2 ** 21;
/** More than the text of a hand-off has room for. */
const REGIONS_MOST = 32_768;
/** Calls of one round. */
const INSTALLED_MOST = 65_536;
const PAGE_SIZES: readonly number[] = [SYSTEM_PAGE, 2 ** 21];

export function aboutSession(memory: MemoryIdentity, regions: readonly Region[]): SessionAbout {
  return {
    kind: 'uffd serve',
    memory,
    regions: regions.map(({ start, ...rest }) => ({ start: `${start}`, ...rest })),
  };
}

/** A working set, and what of the traces was not taken. */
export interface WorkingSet {
  readonly runs: readonly Run[];
  /** For the operator; undefined: all was taken. */
  readonly cut: string | undefined;
}

/**
 * The working set of some recorded runs of one memory file: the pages that were installed for faults in at least half
 * of them, in the order of the first of them, in runs of at most 2 MiB.
 *
 * @param force take traces of other memory files, too
 * @param most pages that are taken of a trace
 * @throws TraceError for what is no trace; WorkingSetError for a trace of something else
 */
export function workingSet(
  traces: readonly string[],
  memory: MemoryIdentity,
  force = false,
  most = PAGES_MOST,
): WorkingSet {
  /** Pages, as offset and length, by how many runs have touched them, in the order of the first touch. */
  const touched = new Map<number, { length: number; runs: number }>();
  let cut: string | undefined;
  for (const path of traces) {
    const { pages, whole } = touchedIn(path, memory, force, most);
    if (!whole) cut = `${path} is longer than what is prefetched: it was read up to ${pages.size} pages`;
    for (const [offset, length] of pages) {
      const known = touched.get(offset);
      if (known) known.runs++;
      else if (touched.size < most) touched.set(offset, { length, runs: 1 });
    }
  }
  const often = [...touched].filter(([, { runs }]) => runs * 2 >= traces.length);
  return { runs: coalesced(often.map(([offset, { length }]) => ({ offset, length }))), cut };
}

/** The pages that a run has installed for faults, in order: offset in the file, and length. `whole`: it was read to its end. */
function touchedIn(
  path: string,
  memory: MemoryIdentity,
  force: boolean,
  most: number,
): { pages: Map<number, number>; whole: boolean } {
  // A FIFO would be waited for.
  if (!statSync(path).isFile()) throw new WorkingSetError(`${path} is no file, so it is no trace`);
  const reader = TraceReader.fromFile(path);
  try {
    const about = checkedAbout(path, reader.meta.about);
    const { bytes, sample } = about.memory;
    if (!force && (bytes !== memory.bytes || sample !== memory.sample)) {
      throw new WorkingSetError(
        `${path} was recorded with another memory file; --force takes it all the same`,
      );
    }
    const pages = new Pages(regionsOf(path, about), memory.bytes, most);
    // What was installed since a round began: for a fault, if its answer follows, else in the background.
    let installed: { start: bigint; length: number }[] = [];
    while (reader.records < RECORDS_MOST && reader.next()) {
      const { codec } = reader;
      const { kind } = codec;
      if (kind === Kind.NOTE + Op.copy || kind === Kind.NOTE + Op.zero) {
        if (installed.length < INSTALLED_MOST) {
          installed.push({ start: codec.words[0] as bigint, length: codec.integer(1) });
        }
      } else if (kind === Kind.NOTE + Note.ANSWER) {
        for (const { start, length } of installed.splice(0)) pages.add(start, length);
        if (pages.full) return { pages: pages.lengths, whole: false };
      } else if (kind === Kind.READ || kind === Kind.NOTE + Note.POLL) {
        installed = [];
      }
    }
    return { pages: pages.lengths, whole: reader.records < RECORDS_MOST };
  } finally {
    reader.close();
  }
}

/** Pages of the memory file, each once, in the order in which they are added. */
class Pages {
  readonly lengths = new Map<number, number>();
  readonly #regions: readonly Region[];
  readonly #bytes: number;
  readonly #most: number;

  /** `regions`: in ascending order, apart from each other. */
  constructor(regions: readonly Region[], bytes: number, most: number) {
    this.#regions = regions;
    this.#bytes = bytes;
    this.#most = most;
  }

  get full(): boolean {
    return this.lengths.size >= this.#most;
  }

  add(start: bigint, length: number): void {
    const region = this.#regionAt(start);
    if (!region) return;
    const { pageSize, offset } = region;
    const from = offset + Number(start - region.start);
    // The last page of a file may be a part of one.
    const end = Math.min(from + length, offset + region.length, wholePages(this.#bytes, pageSize));
    for (let at = from - ((from - offset) % pageSize); at + pageSize <= end && !this.full; at += pageSize) {
      if (!this.lengths.has(at)) this.lengths.set(at, pageSize);
    }
  }

  /** As `regionAt`, in a time that does not grow with their number. */
  #regionAt(address: bigint): Region | undefined {
    const regions = this.#regions;
    let [from, to] = [0, regions.length];
    while (from < to) {
      const middle = (from + to) >>> 1;
      if ((regions[middle] as Region).start <= address) from = middle + 1;
      else to = middle;
    }
    const region = regions[from - 1];
    return region && address < region.start + BigInt(region.length) ? region : undefined;
  }
}

/** Neighbours are one run; where the set has neighbours further on, they come with the first of them. */
function coalesced(pages: readonly Run[]): Run[] {
  const left = new Map(pages.map(({ offset, length }) => [offset, length]));
  const runs: Run[] = [];
  for (const { offset, length } of pages) {
    if (!left.delete(offset)) continue;
    let end = offset + length;
    for (;;) {
      const next = left.get(end);
      if (next === undefined || end + next - offset > RUN_MOST) break;
      left.delete(end);
      end += next;
    }
    runs.push({ offset, length: end - offset });
  }
  return runs;
}

function checkedAbout(path: string, told: unknown): SessionAbout {
  const about = told as Partial<SessionAbout> | null | undefined;
  const sound =
    about?.kind === 'uffd serve' &&
    isWhole(about.memory?.bytes) &&
    typeof about.memory?.sample === 'string' &&
    Array.isArray(about.regions);
  if (!sound) throw new WorkingSetError(`${path} is a trace, and not of a session of uffd serve`);
  return about as SessionAbout;
}

/** The regions that a trace tells of, as a hand-off has them; what they are is not believed before. */
function regionsOf(path: string, { regions: told }: SessionAbout): Region[] {
  if (told.length > REGIONS_MOST || !told.every(isRegion)) {
    throw new WorkingSetError(`the regions in ${path} are none that uffd serve has served`);
  }
  const regions = told.map((region) => ({ ...region, start: BigInt(region.start) }));
  regions.sort((a, b) => (a.start < b.start ? -1 : 1));
  const apart = regions.every(({ start }, index) => {
    const before = regions[index - 1];
    return !before || before.start + BigInt(before.length) <= start;
  });
  if (!apart) throw new WorkingSetError(`the regions in ${path} overlap`);
  return regions;
}

function isRegion(told: ToldRegion | null): boolean {
  const { start, length, offset, pageSize } = told ?? ({} as Partial<ToldRegion>);
  return (
    typeof start === 'string' &&
    /^\d{1,20}$/.test(start) &&
    PAGE_SIZES.includes(pageSize as number) &&
    [Number(BigInt(start) % BigInt(pageSize as number)), length, offset].every(
      (value) => isWhole(value) && (value as number) % (pageSize as number) === 0,
    )
  );
}

function isWhole(value: unknown): boolean {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
