// What a recorded run has touched, as stretches of the memory file: to be installed before it is asked for. (The idea is
// REAP's: Ustiugov et al., "Benchmarking, Analysis, and Optimization of Serverless Function Snapshots", 2021. The set
// is stable between runs, its order less so.)

import { createHash } from 'node:crypto';
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { Op } from '../core.js';
import { Note } from '../kernel.js';
import { Kind } from '../trace/codec.js';
import { TraceReader } from '../trace/reader.js';
import { wholePages } from '../whole-pages.js';
import { type Region, regionAt, SYSTEM_PAGE } from './handoff.js';
import type { Run } from './memory-file.js';

/** What is told of a memory file: enough to know it again, wherever it lies and whoever has copied it. */
export interface MemoryIdentity {
  readonly bytes: number;
  /** SHA-256 of its size, and of pages spread over it, in hexadecimal. */
  readonly sample: string;
}

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

const SAMPLES = 256;
/** Bytes of a run, at most. */
const RUN_MOST = 2 ** 21;

/** Reads a little of a memory file to know it again. @throws the errors of open(2) and read(2) */
export function identify(path: string): MemoryIdentity {
  const fd = openSync(path, 'r');
  try {
    const bytes = fstatSync(fd).size;
    const hash = createHash('sha256').update(`${bytes}`);
    const pages = Math.ceil(bytes / SYSTEM_PAGE);
    const page = Buffer.alloc(SYSTEM_PAGE);
    for (let sample = 0; sample < Math.min(SAMPLES, pages); sample++) {
      const at = Math.floor((sample * pages) / Math.min(SAMPLES, pages)) * SYSTEM_PAGE;
      hash.update(page.subarray(0, readSync(fd, page, 0, SYSTEM_PAGE, at)));
    }
    return { bytes, sample: hash.digest('hex') };
  } finally {
    closeSync(fd);
  }
}

export function aboutSession(memory: MemoryIdentity, regions: readonly Region[]): SessionAbout {
  return {
    kind: 'uffd serve',
    memory,
    regions: regions.map(({ start, ...rest }) => ({ start: `${start}`, ...rest })),
  };
}

/**
 * The working set of some recorded runs of one memory file: the pages that were installed for faults in at least half
 * of them, in the order of the first of them, in runs of at most 2 MiB.
 *
 * @param force take traces of other memory files, too
 * @throws TraceError for what is no trace; WorkingSetError for a trace of something else
 */
export function workingSet(traces: readonly string[], memory: MemoryIdentity, force = false): Run[] {
  /** Pages, as offset and length, by how many runs have touched them, in the order of the first touch. */
  const touched = new Map<number, { length: number; runs: number }>();
  for (const path of traces) {
    for (const [offset, length] of touchedIn(path, memory, force)) {
      const known = touched.get(offset);
      if (known) known.runs++;
      else touched.set(offset, { length, runs: 1 });
    }
  }
  const often = [...touched].filter(([, { runs }]) => runs * 2 >= traces.length);
  return coalesced(often.map(([offset, { length }]) => ({ offset, length })));
}

/** The pages that a run has installed for faults, in order: offset in the file, and length. */
function touchedIn(path: string, memory: MemoryIdentity, force: boolean): Map<number, number> {
  const reader = TraceReader.fromFile(path);
  try {
    const about = checkedAbout(path, reader.meta.about);
    const { bytes, sample } = about.memory;
    if (!force && (bytes !== memory.bytes || sample !== memory.sample)) {
      throw new WorkingSetError(
        `${path} was recorded with another memory file; --force takes it all the same`,
      );
    }
    const regions = about.regions.map((region) => ({ ...region, start: BigInt(region.start) }));
    const pages = new Map<number, number>();
    // What was installed since a round began: for a fault, if its answer follows, else in the background.
    let installed: { start: bigint; length: number }[] = [];
    while (reader.next()) {
      const { codec } = reader;
      const { kind } = codec;
      if (kind === Kind.NOTE + Op.copy || kind === Kind.NOTE + Op.zero) {
        installed.push({ start: codec.words[0] as bigint, length: codec.integer(1) });
      } else if (kind === Kind.NOTE + Note.ANSWER) {
        for (const { start, length } of installed.splice(0)) add(start, length, regions, memory.bytes, pages);
      } else if (kind === Kind.READ || kind === Kind.NOTE + Note.POLL) {
        installed = [];
      }
    }
    return pages;
  } finally {
    reader.close();
  }
}

function add(
  start: bigint,
  length: number,
  regions: readonly Region[],
  bytes: number,
  pages: Map<number, number>,
): void {
  const region = regionAt(regions, start);
  if (!region) return;
  const { pageSize, offset } = region;
  const from = offset + Number(start - region.start);
  // The last page of a file may be a part of one.
  const end = Math.min(from + length, offset + region.length, wholePages(bytes, pageSize));
  for (let at = from - ((from - offset) % pageSize); at + pageSize <= end; at += pageSize) {
    if (!pages.has(at)) pages.set(at, pageSize);
  }
}

/** Neighbours are one run; where the set has neighbours further on, they come with the first of them. */
function coalesced(pages: readonly Run[]): Run[] {
  const left = new Map(pages.map(({ offset, length }) => [offset, length]));
  const runs: Run[] = [];
  for (const { offset, length } of pages) {
    if (!left.delete(offset)) continue;
    let end = offset + length;
    while (end - offset < RUN_MOST) {
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
  const about = told as Partial<SessionAbout> | undefined;
  const whole = (value: unknown): boolean => Number.isSafeInteger(value) && (value as number) >= 0;
  const sound =
    about?.kind === 'uffd serve' &&
    whole(about.memory?.bytes) &&
    typeof about.memory?.sample === 'string' &&
    Array.isArray(about.regions) &&
    about.regions.every(
      ({ start, length, offset, pageSize }: ToldRegion) =>
        /^\d{1,20}$/.test(start) && whole(length) && whole(offset) && whole(pageSize) && pageSize > 0,
    );
  if (!sound) throw new WorkingSetError(`${path} is a trace, and not of a session of uffd serve`);
  return about as SessionAbout;
}
