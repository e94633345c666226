// Missing faults of one thread, one page each, answered in turn by a handler in C and by this library. Only the handler
// differs: process, memory, toucher, source page and placement are the same.
//
// Rules:
//  - A figure is measured in one placement. A ratio compares two successive rounds.
//  - After every round, each page is compared with the source, and the number of answers with the number of touches. If
//    they differ, the benchmark throws, and the round does not count.

import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { freemem, tmpdir } from 'node:os';
import { join } from 'node:path';
import * as memory from '../shim/memory.js';
import { Mapping } from '../src/index.js';
import { WAITS, type Wait } from '../src/uffd/event-loop.js';
import { type Arena, cHandler, type Handler, ourHandler } from './handlers.js';
import { CWait, checked, load, type Native } from './native.js';
import { percentile } from './statistics.js';

/** Pages touched before the clock starts. */
const LEAD = 256;
/** Faults until V8 has compiled the code of a handler. */
const WARM_FAULTS = 16_384;
/** A round ends after this time even if pages are left. */
const ROUND_LIMIT_NS = 2e10;

export interface Round {
  faults: number;
  perSecond: number;
  p50Us: number;
  p99Us: number;
  p999Us: number;
  maxUs: number;
}

export interface Pair {
  c: Round;
  handler: Round;
}

/** One handler compared with the handler in C on poll(2), in one placement. */
export interface Contest {
  handler: string;
  pairs: Pair[];
}

export const PLACEMENTS = ['same', 'other', 'free'] as const;
export type PlacementName = (typeof PLACEMENTS)[number];

export interface Placement {
  name: PlacementName;
  title: string;
  toucher: number;
  handler: number;
}

/**
 * The handlers in C that, like this library, are compared with the handler in C on poll(2). `C again` is that handler
 * itself.
 */
const C_HANDLERS = { 'C again': CWait.sleep, 'C read first': CWait.readFirst, 'C spin': CWait.spin } as const;

export const HANDLERS = [...WAITS, ...(Object.keys(C_HANDLERS) as (keyof typeof C_HANDLERS)[])] as const;
export type HandlerName = (typeof HANDLERS)[number];

/** Thrown if pages are wrong or answers are missing: the figures are worthless then. */
export class WrongAnswer extends Error {}

/** The placements that this machine allows, and why the others are left out. */
export function placements(native: Native): { possible: Placement[]; leftOut: string[] } {
  const first = native.processor(0);
  const second = native.processor(1);
  const same: Placement = { name: 'same', title: 'both on one processor', toucher: first, handler: first };
  if (second < 0) {
    return {
      possible: [same],
      leftOut: [
        'two of three placements: this process has one processor, so there is no other to place a thread on',
      ],
    };
  }
  const other: Placement = {
    name: 'other',
    title: 'each on a processor of its own',
    toucher: first,
    handler: second,
  };
  const free: Placement = { name: 'free', title: 'both left to the scheduler', toucher: -1, handler: -1 };
  return { possible: [same, other, free], leftOut: [] };
}

export class FaultBench {
  readonly #arena: Arena;
  readonly #pages: number;
  readonly #latency: Uint32Array;
  readonly #elapsed = new BigUint64Array(1);
  readonly native: Native;
  /** Microseconds in which the host provides a page of memory: means of the first pass of `#warm`, and of the last. */
  readonly warmth: { firstUs: number; lastUs: number };

  constructor(library: string, pages: number, otherRanges = 0) {
    const pageSize = memory.pageSize();
    this.native = load(library);
    this.#pages = pages;
    this.#latency = new Uint32Array(pages).fill(1);
    const region = Mapping.anonymous((pages + LEAD) * pageSize);
    const source = Mapping.anonymous(pageSize);
    source.bytes.forEach((_, i, bytes) => {
      bytes[i] = 1 + ((i * 31) % 255);
    });
    this.#arena = { native: this.native, library, region, source, pageSize, otherRanges };
    this.warmth = this.#warm();
  }

  close(): void {
    this.#arena.region.close();
    this.#arena.source.close();
  }

  /** Touches four times the memory of a round (or half of the free memory if that is less), three times. */
  #warm(): { firstUs: number; lastUs: number } {
    const { region, pageSize } = this.#arena;
    const bytes = Math.min(region.length * 4, Math.floor(freemem() / 2 / pageSize) * pageSize);
    const perPage = (): number => checked('mmap', this.native.warm(bytes)) / 1000 / (bytes / pageSize);
    const firstUs = perPage();
    perPage();
    return { firstUs, lastUs: perPage() };
  }

  /**
   * Measures a handler's pairs of rounds in a placement. The first pairs do not count, because V8 compiles a handler as
   * it runs.
   */
  async contest(placement: Placement, name: HandlerName, rounds: number): Promise<Contest> {
    const c = cHandler(this.#arena, 'C', CWait.sleep);
    const handler = this.#handler(name);
    const pairs: Pair[] = [];
    const uncounted = Math.max(1, Math.ceil(WARM_FAULTS / this.#pages));
    globalThis.gc?.();
    try {
      for (let i = -uncounted; i < rounds; i++) {
        const pair = { c: await this.#round(placement, c), handler: await this.#round(placement, handler) };
        if (i >= 0) pairs.push(pair);
      }
    } catch (error) {
      // Report the first failure, not the failure to end its thread cleanly.
      await handler.dismiss().catch(() => {});
      throw error;
    }
    await handler.dismiss();
    return { handler: name, pairs };
  }

  /**
   * Faults per second of a loop that records, divided by those of a loop that does not, pair by pair; and bytes per
   * fault in the trace. Both loops answer from a source, because a call of the handler would take most of the time.
   */
  async recording(
    placement: Placement,
    wait: Wait,
    rounds: number,
  ): Promise<{ ratios: number[]; bytesPerFault: number }> {
    const folder = mkdtempSync(join(tmpdir(), 'uffd-bench-'));
    const file = join(folder, 'trace');
    const plain = ourHandler(this.#arena, wait, { sourced: true });
    const recorded = ourHandler(this.#arena, wait, { sourced: true, record: file });
    const ratios: number[] = [];
    let faults = 0;
    try {
      for (let i = -Math.max(1, Math.ceil(WARM_FAULTS / this.#pages)); i < rounds; i++) {
        const without = await this.#round(placement, plain);
        const round = await this.#round(placement, recorded);
        faults += round.faults + LEAD;
        if (i >= 0) ratios.push(round.perSecond / without.perSecond);
      }
      await plain.dismiss();
      await recorded.dismiss();
      return { ratios, bytesPerFault: statSync(file).size / faults };
    } finally {
      await Promise.all([plain, recorded].map((handler) => handler.dismiss().catch(() => {})));
      rmSync(folder, { recursive: true });
    }
  }

  #handler(name: HandlerName): Handler {
    if (name in C_HANDLERS) return cHandler(this.#arena, name, C_HANDLERS[name as keyof typeof C_HANDLERS]);
    return ourHandler(this.#arena, name as Wait);
  }

  async #round(placement: Placement, handler: Handler): Promise<Round> {
    const { native, region, source, pageSize } = this.#arena;
    await handler.begin(placement.handler);
    const touched = native.touch(
      region.address,
      pageSize,
      LEAD,
      this.#pages,
      placement.toucher,
      ROUND_LIMIT_NS,
      this.#latency,
      this.#elapsed,
    );
    if (touched < 0) throw new WrongAnswer(`${handler.name}: a page is not answered (errno ${-touched})`);
    const answered = await handler.end();
    const wrong = native.wrongPages(region.address, pageSize, LEAD + touched, source.address);
    checked('madvise', memory.madvise(region.address, region.length, memory.MADV_DONTNEED));
    if (wrong > 0)
      throw new WrongAnswer(`${handler.name}: ${wrong} of ${LEAD + touched} pages hold wrong bytes`);
    if (answered !== LEAD + touched) {
      throw new WrongAnswer(`${handler.name}: ${answered} answers to ${LEAD + touched} faults`);
    }
    return roundOf(this.#latency.slice(0, touched).sort(), Number(this.#elapsed[0]));
  }
}

function roundOf(sorted: Uint32Array, elapsedNs: number): Round {
  return {
    faults: sorted.length,
    perSecond: sorted.length / (elapsedNs / 1e9),
    p50Us: percentile(sorted, 50) / 1000,
    p99Us: percentile(sorted, 99) / 1000,
    p999Us: percentile(sorted, 99.9) / 1000,
    maxUs: (sorted.at(-1) ?? Number.NaN) / 1000,
  };
}
