// The working set of a recorded run, as ranges of the memory file, to be installed before the guest asks for it.
// (The idea is REAP's: Ustiugov et al., "Benchmarking, Analysis, and Optimization of Serverless Function Snapshots",
// 2021. The set is stable between runs, its order less so.)

import { statSync } from 'node:fs';
import {
  _UFFDIO_CONTINUE,
  _UFFDIO_COPY,
  _UFFDIO_ZEROPAGE,
  SIZEOF_UFFD_MSG,
  UFFD_EVENT_PAGEFAULT,
  uffd_msg,
  uffd_msg_pagefault,
  uffdio_continue,
  uffdio_copy,
  uffdio_zeropage,
} from '../bindings/core.js';
import { wholePages } from '../memory/whole-pages.js';
import { type Codec, Kind } from '../trace/codec.js';
import { TraceReader } from '../trace/reader.js';
import type { FileRange } from './extents.js';
import { type Region, SYSTEM_PAGE } from './handoff-protocol.js';
import type { MemoryIdentity } from './memory-identity.js';

/** Notes about a session, in the `about` of its trace's description. */
export interface SessionAbout {
  readonly kind: 'uffd serve';
  readonly memory: MemoryIdentity;
  readonly regions: readonly RecordedRegion[];
}

/** A region, with its address as text. */
type RecordedRegion = Omit<Region, 'start'> & { readonly start: string };

/** A trace that cannot be prefetched from. */
export class WorkingSetError extends Error {
  override readonly name = 'WorkingSetError';
  readonly code = 'ERR_UFFD_WORKING_SET';
}

/** The most bytes of a range. */
const RANGE_MOST = 2 ** 21;
/**
 * Most records, and most pages, that are taken from a trace: a few bytes of a file can stand for any number of records,
 * and each page takes memory in this process. PAGES_MOST pages of 4 KiB are 8 GiB.
 */
const RECORDS_MOST = 100_000_000;
const PAGES_MOST = 2 ** 21;
/** More regions than the text of a hand-off has room for. */
const REGIONS_MOST = 32_768;
/** Most waiting faults that are followed at a time. */
const PENDING_MOST = 1024;
/** The index of the struct in an ioctl's record. Below: the numbers of words of the structs that install pages. */
const STRUCT_AT = 3;
const COPY_WORDS = uffdio_copy.sizeof / 8;
const ZEROPAGE_WORDS = uffdio_zeropage.sizeof / 8;
const CONTINUE_WORDS = uffdio_continue.sizeof / 8;
const PAGE_SIZES: readonly number[] = [SYSTEM_PAGE, 2 ** 21];

export function aboutSession(memory: MemoryIdentity, regions: readonly Region[]): SessionAbout {
  return {
    kind: 'uffd serve',
    memory,
    regions: regions.map(({ start, ...rest }) => ({ start: `${start}`, ...rest })),
  };
}

/** A working set, and whether parts of the traces were left out. */
export interface WorkingSet {
  readonly ranges: readonly FileRange[];
  /** What was left out, for the operator; undefined: nothing. */
  readonly truncated: string | undefined;
}

/**
 * The working set of some recorded runs of one memory file: the pages that were installed for faults in at least half
 * of the runs, in the order of the first run, in ranges of at most 2 MiB.
 *
 * @param memory the identity of the memory file, or all identities that the memory has
 * @param force accept traces of other memory files, too
 * @param most the most pages that are taken from a trace
 * @throws TraceError for a file that is no trace; WorkingSetError for a trace of something else
 */
export function workingSet(
  traces: readonly string[],
  memory: MemoryIdentity | readonly MemoryIdentity[],
  force = false,
  most = PAGES_MOST,
): WorkingSet {
  const identities = Array.isArray(memory) ? memory : [memory];
  /** Pages, as offset and length, with the number of runs that have touched them, in the order of the first touch. */
  const touched = new Map<number, { length: number; runs: number }>();
  let truncated: string | undefined;
  for (const path of traces) {
    const { pages, whole } = touchedIn(path, identities, force, most);
    if (!whole)
      truncated = `${path} is longer than what is prefetched: it was read up to ${pages.size} pages`;
    for (const [offset, length] of pages) {
      const known = touched.get(offset);
      if (known) known.runs++;
      else if (touched.size < most) touched.set(offset, { length, runs: 1 });
    }
  }
  const often = [...touched].filter(([, { runs }]) => runs * 2 >= traces.length);
  return { ranges: coalesced(often.map(([offset, { length }]) => ({ offset, length }))), truncated };
}

/**
 * The pages that a run has installed for faults, in order: offset in the file, and length. `whole`: the trace was
 * read to its end.
 */
function touchedIn(
  path: string,
  identities: readonly MemoryIdentity[],
  force: boolean,
  most: number,
): { pages: Map<number, number>; whole: boolean } {
  // Opening a FIFO would block.
  if (!statSync(path).isFile()) throw new WorkingSetError(`${path} is no file, so it is no trace`);
  const reader = TraceReader.fromFile(path);
  try {
    const about = checkedAbout(path, reader.meta.about);
    const { bytes, sample } = about.memory;
    const known = identities.some((memory) => bytes === memory.bytes && sample === memory.sample);
    if (!force && !known) {
      throw new WorkingSetError(
        `${path} was recorded with another memory file; --force takes it all the same`,
      );
    }
    const pages = new FilePages(regionsOf(path, about), identities[0]?.bytes ?? 0, most);
    const pending = new PendingFaults();
    while (reader.records < RECORDS_MOST && reader.next()) {
      const { codec } = reader;
      if (codec.kind === Kind.READ) pending.add(reader.payload);
      const filled = filledBy(codec);
      // Pages for which no fault waited were installed in the background.
      if (filled && pending.take(filled)) pages.add(filled.start, filled.length);
      if (pages.full) return { pages: pages.lengths, whole: false };
    }
    return { pages: pages.lengths, whole: reader.records < RECORDS_MOST };
  } finally {
    reader.close();
  }
}

interface AddressRange {
  readonly start: bigint;
  readonly length: number;
}

/** The words of the structs of the calls that install pages. */
const FILLS: ReadonlyMap<number, number> = new Map([
  [Kind.IOCTL + _UFFDIO_COPY, COPY_WORDS],
  [Kind.IOCTL + _UFFDIO_ZEROPAGE, ZEROPAGE_WORDS],
  [Kind.IOCTL + _UFFDIO_CONTINUE, CONTINUE_WORDS],
]);

/** The range that a record's call has installed. */
function filledBy({ kind, words }: Codec): AddressRange | undefined {
  const given = FILLS.get(kind);
  if (given === undefined) return undefined;
  // The last word of the struct after the call is the result.
  const done = Number(BigInt.asIntN(64, words[STRUCT_AT + 2 * given - 1] as bigint));
  return done > 0 ? { start: words[STRUCT_AT] as bigint, length: done } : undefined;
}

/** Addresses of faults that were read and not filled yet. */
class PendingFaults {
  readonly #addresses = new Set<bigint>();

  add(payload: Uint8Array): void {
    if (payload.length % SIZEOF_UFFD_MSG !== 0) return;
    const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
    for (let at = 0; at < payload.length; at += SIZEOF_UFFD_MSG) {
      if (this.#addresses.size === PENDING_MOST) return;
      if (view.getUint8(at + uffd_msg.event) === UFFD_EVENT_PAGEFAULT)
        this.#addresses.add(view.getBigUint64(at + uffd_msg_pagefault.address, true));
    }
  }

  /** Removes the faults in a range. False: there are none. */
  take({ start, length }: AddressRange): boolean {
    const end = start + BigInt(length);
    let any = false;
    for (const address of this.#addresses) {
      if (address < start || address >= end) continue;
      this.#addresses.delete(address);
      any = true;
    }
    return any;
  }
}

/** Pages of the memory file, each once, in the order in which they are added. */
class FilePages {
  readonly lengths = new Map<number, number>();
  readonly #regions: readonly Region[];
  readonly #bytes: number;
  readonly #most: number;

  /** `regions`: in ascending order, disjoint. */
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
    // The last page of a file may be incomplete.
    const end = Math.min(from + length, offset + region.length, wholePages(this.#bytes, pageSize));
    for (let at = from - ((from - offset) % pageSize); at + pageSize <= end && !this.full; at += pageSize) {
      if (!this.lengths.has(at)) this.lengths.set(at, pageSize);
    }
  }

  /** As `regionAt`, but in a time that does not grow with the number of regions. */
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

/** Merges neighbours into ranges. A range keeps the position of its first page in the order. */
function coalesced(pages: readonly FileRange[]): FileRange[] {
  const left = new Map(pages.map(({ offset, length }) => [offset, length]));
  const ranges: FileRange[] = [];
  for (const { offset, length } of pages) {
    if (!left.delete(offset)) continue;
    let end = offset + length;
    for (;;) {
      const next = left.get(end);
      if (next === undefined || end + next - offset > RANGE_MOST) break;
      left.delete(end);
      end += next;
    }
    ranges.push({ offset, length: end - offset });
  }
  return ranges;
}

function checkedAbout(path: string, value: unknown): SessionAbout {
  const about = value as Partial<SessionAbout> | null | undefined;
  const valid =
    about?.kind === 'uffd serve' &&
    isWhole(about.memory?.bytes) &&
    typeof about.memory?.sample === 'string' &&
    Array.isArray(about.regions);
  if (!valid) throw new WorkingSetError(`${path} is a trace, and not of a session of uffd serve`);
  return about as SessionAbout;
}

/** The regions in a trace, as in a hand-off; they are untrusted until they are checked. */
function regionsOf(path: string, { regions: recorded }: SessionAbout): Region[] {
  if (recorded.length > REGIONS_MOST || !recorded.every(isRegion)) {
    throw new WorkingSetError(`the regions in ${path} are none that uffd serve has served`);
  }
  const regions = recorded.map((region) => ({ ...region, start: BigInt(region.start) }));
  regions.sort((a, b) => (a.start < b.start ? -1 : 1));
  const apart = regions.every(({ start }, index) => {
    const before = regions[index - 1];
    return !before || before.start + BigInt(before.length) <= start;
  });
  if (!apart) throw new WorkingSetError(`the regions in ${path} overlap`);
  return regions;
}

function isRegion(region: RecordedRegion | null): boolean {
  const { start, length, offset, pageSize } = region ?? ({} as Partial<RecordedRegion>);
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
