// `npm run bench -- --pager`: what a pager costs, beside plain memory, plain reads, a loop that copies pages, `fetch`, and
// a swap engine in C, in the same run.
//
// Rules:
//  - Both have the same processors: one that all their threads share, or those that the scheduler chooses.
//  - Every touch checks the bytes that it finds. Wrong bytes end the benchmark.
//  - A pager serves all rounds of a row; before each round all of it is evicted.

import { type ChildProcess, execFileSync, fork } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as memory from '../shim/memory.js';
import { Mapping } from '../src/index.js';
import { fileSource, httpSource, Pager, type PagerOptions } from '../src/pager/index.js';
import { type ComparedRow, Comparison, type Round } from './comparison.js';
import { WrongAnswer } from './faults.js';
import { type Arena, ourHandler } from './handlers.js';
import { checked, load, type Native } from './native.js';
import { benchHits } from './pager-hits.js';
import type { PagerFootprint } from './pager-memory.js';
import { compilePager, loadPager, type PagerNative, SwapProgram } from './pager-native.js';

const PAGE = 4096;
const KIB = 1024;
const MIB = 2 ** 20;
/** Faults before the clock starts. */
const LEAD = 256;
const LIMIT_NS = 2e10;

export interface PagerResults {
  readonly rows: ComparedRow[];
  readonly rounds: number;
  readonly fileBytes: number;
  readonly leftOut: string[];
}

interface Where {
  readonly title: string;
  /** −1: any. */
  readonly cpu: number;
}

export class PagerBench {
  readonly #native: Native;
  readonly #pager: PagerNative;
  readonly #library: { native: string; pager: string; swap: string };
  readonly #folder = mkdtempSync(join(tmpdir(), 'uffd-pager-'));
  readonly #comparison: Comparison;
  readonly #fileBytes: number;
  readonly #file: string;
  readonly #fd: number;
  readonly #one: Where;
  readonly #any: Where = { title: 'left to the scheduler', cpu: -1 };
  readonly #leftOut: string[] = [];
  readonly #quick: boolean;

  constructor(library: string, rounds: number, quick: boolean) {
    process.once('exit', () => rmSync(this.#folder, { recursive: true, force: true }));
    const compiled = compilePager(this.#folder);
    this.#library = { native: library, pager: compiled.library, swap: compiled.swap };
    this.#native = load(library);
    this.#pager = loadPager(compiled.library);
    this.#comparison = new Comparison(rounds);
    this.#quick = quick;
    this.#fileBytes = (quick ? 64 : 256) * MIB;
    this.#one = { title: 'on one processor', cpu: this.#native.processor(0) };
    this.#file = join(this.#folder, 'data');
    this.#fd = this.#writeFile(this.#file, this.#fileBytes);
    checked('mmap', this.#native.warm(4 * this.#fileBytes));
    checked('mmap', this.#native.warm(4 * this.#fileBytes));
  }

  /** Measures all rows in parts; calls `say` with the rows of each part when the part is done. */
  async run(only: readonly string[] | undefined, say: (row: ComparedRow) => void): Promise<PagerResults> {
    const { rows, rounds } = this.#comparison;
    const parts: Record<PagerPart, () => Promise<void>> = {
      touch: () => this.#touch(),
      refault: () => this.#refault(),
      file: () => this.#sequential(),
      random: () => this.#random(),
      http: () => this.#http(),
      swap: () => this.#swap(),
      memory: () => this.#memory(),
      hits: () => this.#hits(),
      flush: () => this.#flush(),
    };
    for (const name of PAGER_PARTS) {
      if (only && !only.includes(name)) continue;
      const before = rows.length;
      await parts[name]();
      for (const row of rows.slice(before)) say(row);
    }
    closeSync(this.#fd);
    return { rows, rounds, fileBytes: this.#fileBytes, leftOut: this.#leftOut };
  }

  // ---- rows ----------------------------------------------------------------------------------------------

  async #touch(): Promise<void> {
    const bytes = this.#quick ? 16 * MIB : 64 * MIB;
    const { cpu, title } = this.#one;
    const pages = bytes / PAGE;
    const pager = await this.#open(this.#one, { resident: 2 * bytes });
    const plain = Mapping.anonymous(bytes);
    await this.#pager.writeMemory(plain.address, PAGE, pages, pages, 0, cpu);
    await this.#pager.readMemory(pager.address, PAGE, pages, pages, 0, cpu);
    const count = 4_000_000;
    const touches = (address: bigint): Round => {
      return async () => (await this.#pager.readMemory(address, PAGE, pages, count, 7, cpu)) / count;
    };
    const about = { figure: 'touch of a resident page, at random', where: title, unit: 'ns' };
    await this.#comparison.compare(
      { ...about, to: 'plain memory', aim: 1, atMost: true },
      touches(pager.address),
      touches(plain.address),
    );
    await pager.close();
    plain.close();
  }

  async #refault(): Promise<void> {
    const count = this.#quick ? 2048 : 4096;
    const first = this.#native.processor(0);
    const second = this.#native.processor(1);
    const places = [{ title: 'on one processor', toucher: first, handler: first }];
    if (second >= 0)
      places.push({ title: 'each on a processor of its own', toucher: first, handler: second });
    const region = Mapping.anonymous((count + LEAD) * PAGE);
    const source = Mapping.anonymous(PAGE);
    source.bytes.fill(1);
    const arena: Arena = {
      ...{
        native: this.#native,
        library: this.#library.native,
        region,
        source,
        pageSize: PAGE,
        otherRanges: 0,
      },
    };
    const latency = new Uint32Array(count).fill(1);
    const elapsed = new BigUint64Array(1);
    const touch = (address: bigint, step: number, cpu: number): number => {
      const touched = this.#native.touch(address, step, LEAD, count, cpu, LIMIT_NS, latency, elapsed);
      if (touched !== count) throw new WrongAnswer(`only ${touched} of ${count} faults were answered`);
      return Number(elapsed[0]) / 1000 / count;
    };
    for (const { title, toucher, handler } of places) {
      for (const [name, blockSize] of [
        ['4 KiB', PAGE],
        ['64 KiB', 64 * KIB],
      ] as const) {
        const block = ourHandler(arena, 'block');
        const copied: Round = async () => {
          await block.begin(handler);
          const us = touch(region.address, PAGE, toucher);
          await block.end();
          checked('madvise', memory.madvise(region.address, region.length, memory.MADV_DONTNEED));
          return us;
        };
        const needed = (count + LEAD) * blockSize;
        const pager = await (needed <= this.#fileBytes
          ? this.#open({ title, cpu: handler }, { resident: 2 * needed, blockSize })
          : this.#openOn(handler, { source: this.#larger(needed), resident: 2 * needed, blockSize }));
        await this.#pager.readMemory(pager.address, PAGE, needed / PAGE, needed / PAGE, 0, toucher);
        const refaulted: Round = async () => {
          checked('madvise', memory.madvise(pager.address, needed, memory.MADV_DONTNEED));
          return touch(pager.address, blockSize, toucher);
        };
        const cpuOurs: number[] = [];
        const cpuTheirs: number[] = [];
        const about = { where: title, unit: 'µs', to: 'a copied page, `block`' };
        await this.#comparison.compare(
          { ...about, figure: `minor refault of a block of ${name}`, aim: 1, atMost: true },
          timed(refaulted, cpuOurs, count + LEAD),
          timed(copied, cpuTheirs, count + LEAD),
        );
        this.#comparison.add(
          { ...about, figure: `processor time of it, both threads, ${name}` },
          cpuOurs.slice(1),
          cpuTheirs.slice(1),
        );
        await block.dismiss();
        await pager.close();
      }
    }
    region.close();
    source.close();
  }

  async #sequential(): Promise<void> {
    const pages = this.#fileBytes / PAGE;
    for (const { title, cpu } of [this.#one, this.#any]) {
      const pager = await this.#open({ title, cpu });
      for (const cold of [false, true]) {
        const perSecond = async (ns: Promise<number>): Promise<number> =>
          this.#fileBytes / MIB / ((await ns) / 1e9);
        const ready = async (): Promise<void> => {
          await pager.evict();
          if (cold) this.#pager.dropCache(this.#fd);
        };
        const ours: Round = async () => {
          await ready();
          return perSecond(this.#pager.readMemory(pager.address, PAGE, pages, pages, 0, cpu));
        };
        const theirs: Round = async () => {
          await ready();
          return perSecond(
            this.#pager.readFile(this.#fd, MIB, this.#fileBytes / MIB, this.#fileBytes / MIB, 0, cpu),
          );
        };
        const figure = `file, sequential, ${cold ? 'from the disk' : 'in the page cache'}`;
        await this.#comparison.compare(
          { figure, where: title, unit: 'MiB/s', to: 'read(2), 1 MiB', aim: 0.7 },
          ours,
          theirs,
        );
      }
      await pager.close();
    }
  }

  async #random(): Promise<void> {
    const pages = this.#fileBytes / PAGE;
    for (const { title, cpu } of [this.#one, this.#any]) {
      for (const [name, blockSize] of [
        ['4 KiB', PAGE],
        ['64 KiB', 64 * KIB],
      ] as const) {
        const pager = await this.#open({ title, cpu }, { blockSize });
        for (const cold of [false, true]) {
          const count = cold || this.#quick ? 2000 : 10_000;
          let seed = 1;
          const ready = async (): Promise<void> => {
            await pager.evict();
            if (cold) this.#pager.dropCache(this.#fd);
          };
          const ours: Round = async () => {
            await ready();
            return (
              count / ((await this.#pager.readMemory(pager.address, PAGE, pages, count, seed++, cpu)) / 1e9)
            );
          };
          const theirs: Round = async () => {
            await ready();
            return count / ((await this.#pager.readFile(this.#fd, PAGE, pages, count, seed++, cpu)) / 1e9);
          };
          const figure = `file, random 4 KiB, blocks of ${name}, ${cold ? 'from the disk' : 'in the page cache'}`;
          await this.#comparison.compare(
            { figure, where: title, unit: 'touches/s', to: 'pread, 4 KiB', aim: 0.8 },
            ours,
            theirs,
          );
        }
        await pager.close();
      }
    }
  }

  async #http(): Promise<void> {
    const server = fork(fileURLToPath(new URL('pager-http.js', import.meta.url)), [this.#file], {
      stdio: ['ignore', 'pipe', 'inherit', 'ipc'],
    });
    try {
      const [line] = (await once(server.stdout as NodeJS.ReadableStream, 'data')) as [Buffer];
      const url = `http://127.0.0.1:${Number(line.toString())}/data`;
      const second = this.#native.processor(1);
      if (second >= 0) {
        bind(server, second);
        await this.#httpRow(url, {
          ...this.#one,
          title: 'the client on one processor, the server on another',
        });
        bind(server, -1, this.#native);
      }
      await this.#httpRow(url, this.#any);
    } finally {
      server.disconnect();
    }
  }

  async #httpRow(url: string, { title, cpu }: Where): Promise<void> {
    const pages = this.#fileBytes / PAGE;
    const resident = this.#tenth;
    const pager = await this.#openOn(cpu, { source: httpSource(url, { proxy: 'none' }), resident });
    const perSecond = (ms: number): number => this.#fileBytes / MIB / (ms / 1000);
    const ours: Round = async () => {
      await pager.evict();
      return perSecond((await this.#pager.readMemory(pager.address, PAGE, pages, pages, 0, cpu)) / 1e6);
    };
    const theirs: Round = async () => {
      checked('sched_setaffinity', this.#native.pin(cpu));
      const begun = performance.now();
      let bytes = 0;
      for await (const chunk of (await fetch(url)).body ?? []) bytes += chunk.length;
      const ms = performance.now() - begun;
      this.#native.pin(-1);
      if (bytes !== this.#fileBytes) throw new WrongAnswer(`fetch has read ${bytes} bytes`);
      return perSecond(ms);
    };
    await this.#comparison.compare(
      { figure: 'HTTP on loopback, sequential', where: title, unit: 'MiB/s', to: '`fetch`', aim: 0.8 },
      ours,
      theirs,
    );
    await pager.close();
  }

  async #swap(): Promise<void> {
    const bytes = this.#fileBytes;
    const resident = bytes / 4;
    const pages = bytes / PAGE;
    for (const { title, cpu } of [this.#one, this.#any]) {
      for (const [name, block, compress] of [
        ['4 KiB', PAGE, 'none'],
        ['64 KiB', 64 * KIB, 'none'],
        ['64 KiB, compressed', 64 * KIB, 'auto'],
      ] as const) {
        const count = this.#quick ? 4000 : 10_000;
        checked('sched_setaffinity', this.#native.pin(cpu));
        const pager = await Pager.anonymous(bytes, {
          resident,
          blockSize: block,
          swap: this.#folder,
          compress,
        });
        this.#native.pin(-1);
        const program = new SwapProgram(this.#library.swap, join(this.#folder, 'swap'), {
          block,
          bytes,
          resident,
          cpu,
        });
        let seed = 1;
        const ours: Round = async () => {
          const ns = await this.#pager.writeMemory(pager.address, PAGE, pages, count, ++seed, cpu);
          await this.#pager.readMemory(pager.address, PAGE, pages, count / 100, seed, cpu);
          return count / (ns / 1e9);
        };
        const theirs: Round = async () => count / ((await program.write(count, ++seed)) / 1e9);
        // Until all of it was written once: blocks that are zero cost no read.
        await this.#pager.writeMemory(pager.address, block, bytes / block, bytes / block, 0, cpu);
        await program.write(8 * (bytes / block), 99);
        const figure = `swap, random writes, blocks of ${name}`;
        await this.#comparison.compare(
          { figure, where: title, unit: 'writes/s', to: 'C: UFFDIO_COPY, pwrite' },
          ours,
          theirs,
        );
        await program.close();
        await pager.close({ discard: true });
      }
    }
  }

  async #memory(): Promise<void> {
    const above: number[] = [];
    const own: number[] = [];
    for (let round = 0; round < this.#comparison.rounds; round++) {
      const output = execFileSync(
        process.execPath,
        [
          '--expose-gc',
          fileURLToPath(new URL('pager-memory.js', import.meta.url)),
          ...[this.#library.pager, this.#file, this.#tenth, 64 * KIB].map(String),
        ],
        { encoding: 'utf8' },
      );
      const { aboveLimit, privateBytes } = JSON.parse(output) as PagerFootprint;
      above.push(aboveLimit / MIB);
      own.push(privateBytes / MIB);
    }
    const about = { where: 'a file, a tenth resident', unit: 'MiB', to: '', atMost: true } as const;
    this.#comparison.add({ ...about, figure: 'memory of the memfd above the limit, most', aim: 16 }, above);
    this.#comparison.add({ ...about, figure: "private memory of the pager's thread", aim: 40 }, own);
  }

  async #hits(): Promise<void> {
    const all = Array.from({ length: this.#comparison.rounds }, (_, i) => benchHits(i + 1));
    const percent = (of: keyof (typeof all)[number]): number[] => all.map((one) => 100 * one[of]);
    const about = { where: 'Zipf 0.99, a tenth resident', unit: '% hits', to: 'LRU without the scan' };
    this.#comparison.add(
      { ...about, figure: 'hits while a scan goes on', aim: 0.95 },
      percent('pager'),
      percent('lru'),
    );
    this.#comparison.add({ ...about, figure: 'hits without a scan' }, percent('quiet'), percent('lru'));
    const scanned = { ...about, figure: 'hits while a scan goes on', to: 'LRU with the scan' };
    this.#comparison.add(scanned, percent('pager'), percent('lruScanned'));
  }

  async #flush(): Promise<void> {
    const bytes = 64 * MIB;
    const block = 64 * KIB;
    const path = join(this.#folder, 'written');
    const plainPath = join(this.#folder, 'plain');
    closeSync(this.#writeFile(path, bytes));
    const plainFd = this.#writeFile(plainPath, bytes);
    const plain = Mapping.anonymous(bytes);
    await this.#pager.writeMemory(plain.address, PAGE, bytes / PAGE, bytes / PAGE, 0, -1);
    for (const durability of ['process', 'power'] as const) {
      const pager = await Pager.open({
        ...{ source: fileSource(path), resident: bytes / 2, writable: { durability, flushMs: 0 } },
      });
      for (const count of [1, 64]) {
        const ours: Round = async () => {
          await this.#pager.writeMemory(pager.address, block, count, count, 0, -1);
          const begun = performance.now();
          await pager.flush();
          return performance.now() - begun;
        };
        const theirs: Round = async () =>
          (await this.#pager.writeFile(plainFd, plain.address, block, count, durability === 'power', -1)) /
          1e6;
        const blocks = `${count} block${count === 1 ? '' : 's'} of 64 KiB`;
        const to = durability === 'power' ? 'pwrite, fdatasync' : 'pwrite';
        await this.#comparison.compare(
          { figure: `flush of ${blocks}, ${durability}`, where: this.#any.title, unit: 'ms', to },
          ours,
          theirs,
        );
      }
      await pager.close();
    }
    closeSync(plainFd);
    plain.close();
  }

  // ---- help ----------------------------------------------------------------------------------------------

  get #tenth(): number {
    return Math.floor(this.#fileBytes / 10 / (64 * KIB)) * 64 * KIB;
  }

  /** Opens a pager of the file whose thread runs on a processor. */
  #open({ cpu }: Where, options: Partial<PagerOptions> = {}): Promise<Pager> {
    return this.#openOn(cpu, { source: fileSource(this.#file), resident: this.#tenth, ...options });
  }

  /** The pager's thread gets the processors of the thread that starts it. */
  async #openOn(cpu: number, options: PagerOptions): Promise<Pager> {
    checked('sched_setaffinity', this.#native.pin(cpu));
    try {
      return await Pager.open(options);
    } finally {
      this.#native.pin(-1);
    }
  }

  /** A file of at least so many bytes. */
  #larger(bytes: number): PagerOptions['source'] {
    const path = join(this.#folder, 'larger');
    closeSync(this.#writeFile(path, bytes));
    return fileSource(path);
  }

  /** Writes a file of which page number p begins with the number p + 1. Returns its descriptor. */
  #writeFile(path: string, bytes: number): number {
    const fd = openSync(path, 'w+');
    const piece = new BigUint64Array(MIB / 8);
    for (let at = 0; at < bytes; at += MIB) {
      for (let page = 0; page < MIB / PAGE; page++) piece[(page * PAGE) / 8] = BigInt(at / PAGE + page + 1);
      writeSync(fd, piece);
    }
    return fd;
  }
}

export const PAGER_PARTS = [
  'touch',
  'refault',
  'file',
  'random',
  'http',
  'swap',
  'memory',
  'hits',
  'flush',
] as const;
export type PagerPart = (typeof PAGER_PARTS)[number];

/** Adds to `into` the processor time of this process, in microseconds for each of `faults`. */
function timed(round: Round, into: number[], faults: number): Round {
  return async () => {
    const before = process.cpuUsage();
    const result = await round();
    const { user, system } = process.cpuUsage(before);
    into.push((user + system) / faults);
    return result;
  };
}

/** Binds all threads of a process to a processor; −1: to any. */
function bind(child: ChildProcess, cpu: number, native?: Native): void {
  let list = `${cpu}`;
  if (cpu < 0 && native) {
    const all: number[] = [];
    for (let index = 0; native.processor(index) >= 0; index++) all.push(native.processor(index));
    list = all.join(',');
  }
  execFileSync('taskset', ['-a', '-p', '-c', list, `${child.pid}`], { stdio: 'ignore' });
}
