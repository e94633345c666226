// How the cost of one server grows: many guests at once, many one after the other, many regions, a large sparse guest.
//
// Rule: every guest checks its pages. Guests that run at once stay until the server was measured with all of them.

import { closeSync, ftruncateSync, mkdtempSync, openSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { SMALL_PAGE } from '../cells.js';
import { Guest, type GuestOptions, writeMemory } from '../guest.js';
import { load } from '../native.js';
import { UFFD } from '../peers.js';
import { ServedBy } from '../served-by.js';
import { spread } from '../statistics.js';
import type { Scaling } from './scaling.js';

const GUESTS = [1, 10, 50, 100];
const QUICK_GUESTS = [1, 10];
/** Pages of a guest of 64 MiB. TOUCHES: how many of them it touches. */
const PAGES = 16_384;
const TOUCHES = 256;
/** Guests stay for HOLD_MS milliseconds. The server is measured after LOOK_MS milliseconds. */
const HOLD_MS = 4000;
const LOOK_MS = 3000;
const IN_A_ROW = [1, 10, 100, 1000];
const REGIONS = [1, 64, 1024, 4096];
/** Pages of the guests with one or many regions. SPARSE_TOUCHES: how many pages a large sparse guest touches. */
const REGION_PAGES = 20_480;
const SPARSE_GIB = [1, 32, 512];
const SPARSE_TOUCHES = 1000;

type Say = (text: string) => void;

/** Measures all plots, one after the other. */
export async function* scale(library: string, quick: boolean, say: Say): AsyncGenerator<Scaling> {
  const folder = mkdtempSync(join(tmpdir(), 'uffd-scale-'));
  try {
    const bench = new ScaleBench(library, folder, say);
    yield* await bench.atOnce(quick ? QUICK_GUESTS : GUESTS);
    yield* await bench.inARow(quick ? IN_A_ROW.slice(0, 2) : IN_A_ROW);
    yield await bench.regions();
    yield await bench.sparse();
  } finally {
    rmSync(folder, { recursive: true });
  }
}

class ScaleBench {
  readonly #guest: Guest;
  readonly #folder: string;
  readonly #library: string;
  readonly #say: Say;
  #sockets = 0;

  constructor(library: string, folder: string, say: Say) {
    this.#library = library;
    this.#folder = folder;
    this.#say = say;
    this.#guest = new Guest(folder);
  }

  /** Memory and descriptors for each guest, and the time until each guest has its first page. */
  async atOnce(counts: readonly number[]): Promise<Scaling[]> {
    const memory: Scaling['lines'][number]['points'] = [];
    const descriptors: typeof memory = [];
    const first: typeof memory = [];
    for (const count of counts) {
      const by = await this.#start(this.#dense(PAGES));
      await sleep(LOOK_MS / 2);
      const [idleMiB, idle] = [by.anonymousMiB(), descriptorsOf(by)];
      const options = optionsOf({ pages: PAGES, touches: TOUCHES, holdMs: HOLD_MS });
      const running = Array.from({ length: count }, () => this.#guest.runBeside(by.socket, options));
      await sleep(LOOK_MS);
      memory.push({ x: count, value: spread([(by.anonymousMiB() - idleMiB) / count]) });
      descriptors.push({ x: count, value: spread([(descriptorsOf(by) - idle) / count]) });
      const told = await Promise.all(running);
      first.push({ x: count, value: spread(told.map(({ firstNs }) => firstNs / 1e6)) });
      await by.stop();
      this.#say(`${count} guests at once`);
    }
    const x = 'guests';
    return [
      plot('guests-memory', 'Private memory of the server for each guest of 64 MiB', x, 'MiB', memory),
      plot('guests-descriptors', 'Descriptors of the server for each guest', x, 'descriptors', descriptors),
      plot('guests-first-page', 'Time until a guest has its first page, of so many at once', x, 'ms', first),
    ];
  }

  /** Memory and descriptors that the server still has for guests that have ended. */
  async inARow(counts: readonly number[]): Promise<Scaling[]> {
    const memory: Scaling['lines'][number]['points'] = [];
    const descriptors: typeof memory = [];
    const by = await this.#start(this.#dense(PAGES));
    const options = optionsOf({ pages: PAGES, touches: TOUCHES });
    let served = 0;
    for (const count of counts) {
      for (; served < count; served++) this.#guest.run(by.socket, options);
      await by.settled();
      memory.push({ x: count, value: spread([by.anonymousMiB()]) });
      descriptors.push({ x: count, value: spread([descriptorsOf(by)]) });
      this.#say(`${count} guests one after the other`);
    }
    await by.stop();
    const x = 'guests served before';
    return [
      plot('row-memory', 'Private memory of a server after so many guests', x, 'MiB', memory),
      plot('row-descriptors', 'Descriptors of a server after so many guests', x, 'descriptors', descriptors),
    ];
  }

  async regions(): Promise<Scaling> {
    const by = await this.#start(this.#dense(REGION_PAGES));
    const points: Scaling['lines'][number]['points'] = [];
    for (const regions of REGIONS) {
      const options = optionsOf({ pages: REGION_PAGES, regions });
      const rates: number[] = [];
      // The first round does not count, because V8 compiles the code for this kind of guest then.
      for (let round = 0; round < 4; round++) {
        const { pages, ns } = this.#guest.run(by.socket, options);
        if (round > 0) rates.push((pages / ns) * 1e9);
      }
      points.push({ x: regions, value: spread(rates) });
    }
    await by.stop();
    this.#say('regions');
    return plot(
      'regions',
      'Pages a second of a guest of 80 MiB in so many regions',
      'regions',
      'pages/s',
      points,
    );
  }

  /** A sparse guest, which touches pages of a hole of its memory file, far apart. */
  async sparse(): Promise<Scaling> {
    const points: Scaling['lines'][number]['points'] = [];
    for (const gib of SPARSE_GIB) {
      const file = join(this.#folder, `sparse-${gib}`);
      const fd = openSync(file, 'w');
      ftruncateSync(fd, gib * 2 ** 30);
      closeSync(fd);
      const by = await this.#start(file);
      const before = by.anonymousMiB();
      const pages = (gib * 2 ** 30) / SMALL_PAGE;
      const options = optionsOf({
        ...{ pages, touches: SPARSE_TOUCHES, order: 'spread', sparse: true, holdMs: HOLD_MS },
      });
      const running = this.#guest.runBeside(by.socket, options);
      await sleep(LOOK_MS);
      points.push({ x: gib, value: spread([by.anonymousMiB() - before]) });
      await running;
      await by.stop();
    }
    this.#say('sparse guests');
    const title = `Private memory of the server for a sparse guest, ${SPARSE_TOUCHES} pages of it touched`;
    return plot('sparse-memory', title, 'GiB', 'MiB', points);
  }

  async #start(memory: string): Promise<ServedBy> {
    const socket = join(this.#folder, `socket-${++this.#sockets}`);
    return ServedBy.start(load(this.#library), UFFD, -1, socket, ['--memory', memory]);
  }

  #dense(pages: number): string {
    const file = join(this.#folder, `memory-${pages}`);
    writeMemory(file, pages * SMALL_PAGE);
    return file;
  }
}

function optionsOf(options: Partial<GuestOptions> & { pages: number }): GuestOptions {
  return { threads: 1, order: 'random', pageSize: SMALL_PAGE, balloon: false, cpu: -1, ...options };
}

function descriptorsOf(by: ServedBy): number {
  return readdirSync(`/proc/${by.pid}/fd`).length;
}

function plot(
  name: string,
  title: string,
  x: string,
  y: string,
  points: Scaling['lines'][number]['points'],
): Scaling {
  return { name, title, x, y, lines: [{ name: 'uffd serve', points }] };
}
