// `npm run bench -- --store`: snapshots in a chunk store, beside downloads of the same chunks, a local memory file, and
// the command zstd, in the same run.
//
// Rules:
//  - Two entrants alternate (comparison.ts). Store, server and guest are processes of their own, placed by the scheduler.
//  - A server stays for all rounds of a row, so that its code is compiled. Before each round with an empty cache, the
//    folder is emptied, and a guest that touches one page comes and goes: then the server gives up what it has mapped.
//    Its files are moved away and cut to nothing, so that no later round waits for the disk, and removed at the end,
//    because ext4 makes files slowly for seconds after others were removed.
//  - The guest checks each page that it touches, and the store counts what it is asked for. A wrong page, or a chunk that
//    is asked for twice, ends the benchmark.

import { type ChildProcess, execFileSync, fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { ServeOptions } from '../src/serve/index.js';
import {
  CHUNK_DEFAULT,
  MemoryImage,
  makeWorkingSet,
  openStore,
  pack,
  workingSetPlace,
} from '../src/store/index.js';
import { type ComparedRow, Comparison, type Round } from './comparison.js';
import { WrongAnswer } from './faults.js';
import { Guest, type Told } from './guest.js';
import { checked, load, type Native } from './native.js';
import { UFFD } from './peers.js';
import { anonymousMiB } from './served-by.js';
import type { StoreUse } from './store-http.js';
import { changeImage, writeImage } from './store-image.js';
import { CONNECTIONS, type ServingOrder } from './store-serving.js';

const PAGE = 4096;
const KIB = 1024;
const MIB = 2 ** 20;
const DELAY_MS = 20;
/** Guests of one snapshot at once. */
const CROWD = 32;
/** The chunks and the runs of changed pages of the second generation, whose memory changes to 1 %. */
const CHUNKS = [64 * KIB, 256 * KIB, 512 * KIB, MIB];
const RUNS = [4 * KIB, 32 * KIB, 256 * KIB, MIB];
const GENERATION_BYTES = 512 * MIB;
const CHANGED = 0.01;
/** Milliseconds between two looks at the memory of a process. */
const LOOK_MS = 5;
/** Rounds that do not count, until the code of a process is compiled. */
const WARM_ROUNDS = 3;
const FREE = 'left to the scheduler';

/** What a second snapshot of changed memory adds to a store. */
export interface Generation {
  readonly run: number;
  readonly chunk: number;
  /** Bytes of the memory that have changed, of the chunks that are new, and of what was sent for them. */
  readonly changed: number;
  readonly newBytes: number;
  readonly sent: number;
}

export interface StoreResults {
  readonly rows: ComparedRow[];
  readonly generations: Generation[];
  readonly rounds: number;
  /** Bytes of the memory and of the working set, and the part of them that is left when it is compressed. */
  readonly image: number;
  readonly workingSet: number;
  readonly compressed: number;
  readonly delayMs: number;
  readonly leftOut: string[];
}

export const STORE_PARTS = ['cold', 'warm', 'crowd', 'memory', 'pack', 's3', 'generations'] as const;
export type StorePart = (typeof STORE_PARTS)[number];

const started = new Set<ChildProcess>();
process.once('exit', () => {
  for (const child of started) child.kill('SIGKILL');
});

/** A child process that answers each message with one. */
class Helper {
  readonly #child: ChildProcess;

  private constructor(child: ChildProcess) {
    this.#child = child;
  }

  /** Resolves with its first message, too. */
  static async start<T>(file: string, args: readonly string[] = []): Promise<{ helper: Helper; first: T }> {
    const path = fileURLToPath(new URL(file, import.meta.url));
    const child = fork(path, args, { execArgv: ['--expose-gc'] });
    started.add(child);
    child.once('exit', () => started.delete(child));
    const helper = new Helper(child);
    return { helper, first: await helper.#answer<T>() };
  }

  get pid(): number {
    return this.#child.pid as number;
  }

  async ask<T>(message: string | object): Promise<T> {
    const answer = this.#answer<T & { error?: string }>();
    this.#child.send(message);
    const answered = await answer;
    if (typeof answered.error === 'string') throw new Error(answered.error);
    return answered;
  }

  async #answer<T>(): Promise<T> {
    const ended = new AbortController();
    const { signal } = ended;
    try {
      const [answer] = await Promise.race([
        once(this.#child, 'message', { signal }),
        once(this.#child, 'exit', { signal }).then(([code]) => {
          throw new Error(`a process of the benchmark has ended with ${code}`);
        }),
      ]);
      return answer as T;
    } finally {
      ended.abort();
    }
  }

  end(): void {
    this.#child.disconnect();
  }
}

export class StoreBench {
  readonly #folder = mkdtempSync(join(tmpdir(), 'uffd-store-'));
  readonly #comparison: Comparison;
  readonly #guest = new Guest(this.#folder);
  readonly #native: Native;
  readonly #quick: boolean;
  readonly #image: number;
  readonly #workingSet: number;
  readonly #leftOut: string[] = [];
  readonly #generations: Generation[] = [];
  readonly #memory = join(this.#folder, 'vm.mem');
  readonly #index = join(this.#folder, 'vm.caibx');
  readonly #trace = join(this.#folder, 'first.trace');
  readonly #chunks = join(this.#folder, 'chunks');
  #compressed = 0;
  #sockets = 0;
  #caches = 0;

  constructor(library: string, rounds: number, quick: boolean) {
    process.once('exit', () => rmSync(this.#folder, { recursive: true, force: true }));
    this.#comparison = new Comparison(rounds);
    this.#native = load(library);
    this.#quick = quick;
    this.#image = (quick ? 32 : 128) * MIB;
    this.#workingSet = (quick ? 16 : 64) * MIB;
  }

  /** Measures all rows in parts; calls `say` with the rows of each part when the part is done. */
  async run(only: readonly string[] | undefined, say: (row: ComparedRow) => void): Promise<StoreResults> {
    await this.#prepare();
    const { helper: store, first: port } = await Helper.start<number>('store-http.js', [
      this.#chunks,
      `${DELAY_MS}`,
    ]);
    const url = `http://127.0.0.1:${port}`;
    const { rows, rounds } = this.#comparison;
    const parts: Record<StorePart, () => Promise<void>> = {
      cold: () => this.#cold(store, url),
      warm: () => this.#warm(store, url),
      crowd: () => this.#crowd(store, url),
      memory: () => this.#memoryAbove(store, url),
      pack: () => this.#pack(),
      s3: () => this.#packToS3(store, url),
      generations: () => this.#secondGenerations(),
    };
    for (const name of STORE_PARTS) {
      if (only && !only.includes(name)) continue;
      const before = rows.length;
      await parts[name]();
      for (const row of rows.slice(before)) say(row);
    }
    store.end();
    return {
      ...{ rows, rounds, generations: this.#generations, leftOut: this.#leftOut },
      ...{
        image: this.#image,
        workingSet: this.#workingSet,
        compressed: this.#compressed,
        delayMs: DELAY_MS,
      },
    };
  }

  /** Packs a memory, and records a guest that touches its first part: the working set, in whole chunks. */
  async #prepare(): Promise<void> {
    checked('mmap', this.#native.warm((CROWD + 2) * this.#workingSet));
    writeImage(this.#memory, this.#image, 1);
    const { helper, first: _ } = await Helper.start<object>('store-serving.js');
    const recorded = await this.#serve(helper, { vms: [this.#vm(this.#memory)], record: this.#trace });
    await this.#touch(recorded.socket);
    await recorded.end();
    helper.end();
    const image = new MemoryImage(this.#memory);
    const store = await openStore(this.#chunks);
    const { index, counts } = await pack(image, store);
    writeFileSync(this.#index, index);
    const { bytes, ranges } = makeWorkingSet([this.#trace], image, index, false);
    const touched = ranges.reduce((sum, { length }) => sum + length, 0);
    if (touched !== this.#workingSet)
      throw new WrongAnswer(`${touched} bytes of the working set were recorded`);
    writeFileSync(workingSetPlace(this.#index), bytes);
    this.#compressed = counts.storedBytes / this.#image;
    image.close();
    store.close();
  }

  // ---- rows ----------------------------------------------------------------------------------------------

  async #cold(store: Helper, url: string): Promise<void> {
    const { helper } = await Helper.start<object>('store-serving.js');
    const { helper: client } = await Helper.start<object>('store-serving.js');
    const chunks = this.#workingSet / CHUNK_DEFAULT;
    const download: Round = async () => {
      const begun = performance.now();
      await client.ask({ do: 'download', index: this.#index, store: url, chunks } satisfies ServingOrder);
      const ms = performance.now() - begun;
      await this.#expect(store, chunks);
      return ms;
    };
    const about = {
      ...{
        where: FREE,
        unit: 'ms',
        to: `its chunks downloaded over ${CONNECTIONS} connections, not decoded`,
      },
    };
    await this.#withStored(helper, store, url, async (empty, socket) => {
      const guest: Round = async () => {
        await empty();
        const { ns } = await this.#touch(socket);
        await this.#expect(store, chunks);
        return ns / 1e6;
      };
      for (let round = 0; round < WARM_ROUNDS; round++) for (const one of [guest, download]) await one();
      const figure = 'working set resident, from an empty cache';
      await this.#comparison.compare({ ...about, figure, aim: 1.4, atMost: true }, guest, download);
    });
    const begin: Round = async () => {
      const cache = this.#cache();
      const ms = await this.#fromStart(helper, this.#stored(url, cache));
      this.#cut(this.#moveAway(cache));
      await this.#expect(store, chunks);
      return ms;
    };
    const figure = 'the same, and the start of the server before it';
    await this.#comparison.compare({ ...about, figure }, begin, download);
    helper.end();
    client.end();
  }

  async #warm(store: Helper, url: string): Promise<void> {
    const { helper: stored } = await Helper.start<object>('store-serving.js');
    const { helper: local } = await Helper.start<object>('store-serving.js');
    const file = { vms: [this.#vm(this.#memory)], prefetch: [this.#trace] };
    const cached = this.#stored(url, this.#cache());
    const about = { where: FREE, unit: 'ms', to: 'the local memory file', aim: 1.1, atMost: true } as const;
    const begin: [Round, Round] = [() => this.#fromStart(stored, cached), () => this.#fromStart(local, file)];
    for (let round = 0; round < WARM_ROUNDS; round++) for (const one of begin) await one();
    const [ours, theirs] = [await this.#serve(stored, cached), await this.#serve(local, file)];
    const guest =
      (helper: Helper, { socket }: { socket: string }): Round =>
      async () => {
        const { ns } = await this.#touch(socket);
        await helper.ask({ do: 'rest' } satisfies ServingOrder);
        return ns / 1e6;
      };
    const later: [Round, Round] = [guest(stored, ours), guest(local, theirs)];
    for (let round = 0; round < WARM_ROUNDS; round++) for (const one of later) await one();
    const figure = 'working set resident, from what the server has mapped';
    await this.#comparison.compare({ ...about, figure }, ...later);
    await ours.end();
    await theirs.end();
    const restarted = 'the same from a filled cache, and the start of the server before it';
    await this.#comparison.compare({ ...about, figure: restarted }, ...begin);
    await store.ask<StoreUse>('');
    stored.end();
    local.end();
  }

  async #crowd(store: Helper, url: string): Promise<void> {
    const { helper } = await Helper.start<object>('store-serving.js');
    const { helper: files } = await Helper.start<object>('store-serving.js');
    const { helper: sharing } = await Helper.start<object>('store-serving.js');
    const local = await this.#serve(files, { vms: [this.#vm(this.#memory)], prefetch: [this.#trace] });
    const aim = { to: 'one guest', atMost: true } as const;
    await this.#withStored(helper, store, url, async (empty, socket) => {
      const cold =
        (guests: number, of: string, emptied: () => Promise<void>, share = false): Round =>
        async () => {
          await emptied();
          const ms = await this.#together(of, guests, share);
          await this.#expect(store, this.#workingSet / CHUNK_DEFAULT);
          return ms;
        };
      const [crowd, one] = [cold(CROWD, socket, empty), cold(1, socket, empty)];
      for (let round = 0; round < WARM_ROUNDS; round++) await crowd();
      const figure = `working set resident in the last of ${CROWD} guests, from an empty cache`;
      const about = { figure, where: FREE, unit: 'ms' };
      await this.#comparison.compare({ ...about, ...aim, aim: 2.5 }, crowd, one);
      const beside: Round = async () => {
        const ms = await this.#together(local.socket, CROWD, false);
        await files.ask({ do: 'rest' } satisfies ServingOrder);
        return ms;
      };
      for (let round = 0; round < WARM_ROUNDS; round++) await beside();
      const to = `${CROWD} guests of the local memory file`;
      await this.#comparison.compare({ ...about, to }, crowd, beside);
      await this.#withStored(
        sharing,
        store,
        url,
        async (emptyShared, shared) => {
          const together = cold(CROWD, shared, emptyShared, true);
          for (let round = 0; round < WARM_ROUNDS; round++) await together();
          const named = { ...about, figure: `the same, of ${CROWD} guests that share pages` };
          await this.#comparison.compare(
            { ...named, ...aim, to: 'one guest with COPY', aim: 1.3 },
            together,
            one,
          );
          await this.#comparison.compare({ ...named, to: `${CROWD} guests with COPY` }, together, crowd);
        },
        { sharePages: true },
      );
    });
    await local.end();
    for (const one of [helper, files, sharing]) one.end();
  }

  /** The private memory of fresh servers, at its most while one guest comes. */
  async #memoryAbove(store: Helper, url: string): Promise<void> {
    const most = async (options: ServeOptions): Promise<number> => {
      const { helper } = await Helper.start<object>('store-serving.js');
      const looked = { mib: 0 };
      const look = setInterval(() => {
        looked.mib = Math.max(looked.mib, anonymousMiB(helper.pid));
      }, LOOK_MS);
      const { socket, end } = await this.#serve(helper, options);
      await this.#touch(socket);
      clearInterval(look);
      await end();
      helper.end();
      await store.ask<StoreUse>('');
      return looked.mib;
    };
    const ours: number[] = [];
    const theirs: number[] = [];
    for (let round = 0; round < this.#comparison.rounds; round++) {
      ours.push(await most(this.#stored(url, this.#cache())));
      theirs.push(await most({ vms: [this.#vm(this.#memory)], prefetch: [this.#trace] }));
    }
    this.#comparison.add(
      {
        ...{
          figure:
            'private memory (RssAnon), the most while the cache is filled, above a server of the local memory file',
        },
        ...{ where: 'one guest', unit: 'MiB', to: '', aim: 60, atMost: true },
      },
      ours.map((mib, round) => mib - (theirs[round] ?? Number.NaN)),
    );
  }

  async #pack(): Promise<void> {
    let packed = 0;
    const perSecond = (ms: number): number => this.#image / MIB / (ms / 1000);
    const ours: Round = async () => {
      const target = join(this.#folder, 'packed');
      const ms = await timed([
        ...UFFD.slice(0, -1),
        'pack',
        this.#memory,
        '--store',
        target,
        '-o',
        `${target}.caibx`,
      ]);
      // Removed at the end, because of the time that ext4 then takes to make files.
      renameSync(target, `${target}-${packed++}`);
      return perSecond(ms);
    };
    const theirs: Round = async () => {
      const target = join(this.#folder, 'vm.zst');
      const ms = await timed(['zstd', '-q', '-f', '-3', '-T2', this.#memory, '-o', target]);
      rmSync(target);
      return perSecond(ms);
    };
    try {
      execFileSync('zstd', ['--version'], { stdio: 'ignore' });
    } catch {
      this.#leftOut.push('packing beside zstd: there is no command zstd');
      return;
    }
    await this.#comparison.compare(
      { figure: '`uffd pack` into a folder', where: FREE, unit: 'MiB/s', to: '`zstd -3 -T2`', aim: 0.6 },
      ours,
      theirs,
    );
  }

  async #packToS3(store: Helper, url: string): Promise<void> {
    const env = {
      ...process.env,
      AWS_ACCESS_KEY_ID: 'bench',
      AWS_SECRET_ACCESS_KEY: 'bench',
      NO_PROXY: '127.0.0.1',
    };
    const index = join(this.#folder, 's3.caibx');
    const command = [...UFFD.slice(0, -1), 'pack', this.#memory, '--store', 's3://bench/chunks', '-o', index];
    const rates: number[] = [];
    for (let round = -1; round < this.#comparison.rounds; round++) {
      const ms = await timed([...command, '--endpoint', url], env);
      const { putBytes } = await store.ask<StoreUse>('forget');
      if (putBytes === 0) throw new WrongAnswer('nothing was packed');
      if (round >= 0) rates.push(this.#image / MIB / (ms / 1000));
    }
    this.#comparison.add({ figure: '`uffd pack` to S3', where: FREE, unit: 'MiB/s', to: '' }, rates);
  }

  async #secondGenerations(): Promise<void> {
    const bytes = this.#quick ? GENERATION_BYTES / 8 : GENERATION_BYTES;
    const [first, second, chunks] = ['first', 'second', 'generations'].map((name) =>
      join(this.#folder, name),
    ) as [string, string, string];
    writeImage(first, bytes, 2);
    const packed = async (path: string, chunkSize: number): Promise<{ newBytes: number; sent: number }> => {
      const image = new MemoryImage(path);
      const store = await openStore(join(chunks, `${chunkSize}`));
      const { counts } = await pack(image, store, { chunkSize });
      store.close();
      image.close();
      return { newBytes: counts.storedChunks * chunkSize, sent: counts.storedBytes };
    };
    for (const chunk of CHUNKS) await packed(first, chunk);
    for (const run of RUNS) {
      copyFileSync(first, second);
      const changed = changeImage(second, bytes, run, bytes * CHANGED, run);
      for (const chunk of CHUNKS)
        this.#generations.push({ run, chunk, changed, ...(await packed(second, chunk)) });
    }
    for (const path of [first, second, chunks]) rmSync(path, { recursive: true });
  }

  // ---- help ----------------------------------------------------------------------------------------------

  /** Calls `body` with a server, and with what empties its cache. */
  async #withStored(
    helper: Helper,
    store: Helper,
    url: string,
    body: (empty: () => Promise<void>, socket: string) => Promise<void>,
    options: Partial<ServeOptions> = {},
  ): Promise<void> {
    const cache = this.#cache();
    const { socket, end } = await this.#serve(helper, { ...this.#stored(url, cache), ...options });
    const rest = { do: 'rest' } satisfies ServingOrder;
    await this.#touch(socket);
    const empty = async (): Promise<void> => {
      await helper.ask(rest);
      const removed = this.#moveAway(cache);
      await this.#touch(socket, 1);
      await helper.ask(rest);
      this.#cut(removed);
      await store.ask<StoreUse>('');
    };
    await body(empty, socket);
    await end();
  }

  #moveAway(cache: string): string {
    const removed = this.#cache();
    for (const name of readdirSync(cache)) renameSync(join(cache, name), join(removed, name));
    return removed;
  }

  /** Cuts the files of a cache, which no server has mapped. */
  #cut(removed: string): void {
    for (const name of readdirSync(removed, { recursive: true, encoding: 'utf8' }))
      if (name.length > 3) truncateSync(join(removed, name));
  }

  /** Milliseconds from the start of a server until a guest has its working set. */
  async #fromStart(helper: Helper, options: ServeOptions): Promise<number> {
    const begun = performance.now();
    const { socket, end } = await this.#serve(helper, options);
    await this.#touch(socket);
    const ms = performance.now() - begun;
    await end();
    return ms;
  }

  /** Milliseconds until the last of some guests that come at once has its working set. */
  async #together(socket: string, guests: number, share: boolean): Promise<number> {
    const begun = performance.now();
    await Promise.all(Array.from({ length: guests }, () => this.#touch(socket, undefined, share)));
    return performance.now() - begun;
  }

  /** The store was asked for so many chunks, for each once. */
  async #expect(store: Helper, chunks: number): Promise<void> {
    const { gets, repeated } = await store.ask<StoreUse>('');
    if (gets !== chunks || repeated > 0)
      throw new WrongAnswer(`${gets} chunks were asked for, ${repeated} again; ${chunks} are needed`);
  }

  #vm(memory: string): { socket: string; memory: string } {
    return { socket: join(this.#folder, `socket-${++this.#sockets}`), memory };
  }

  #cache(): string {
    const cache = join(this.#folder, `cache-${++this.#caches}`);
    mkdirSync(cache);
    return cache;
  }

  #stored(store: string, cache: string): ServeOptions {
    return {
      vms: [this.#vm(this.#index)],
      store,
      storeOptions: { parallel: CONNECTIONS, proxy: 'none' },
      cache,
    };
  }

  async #serve(helper: Helper, options: ServeOptions): Promise<{ socket: string; end: () => Promise<void> }> {
    await helper.ask({ do: 'serve', options } satisfies ServingOrder);
    const socket = options.vms[0]?.socket ?? '';
    return {
      socket,
      async end() {
        await helper.ask({ do: 'end' } satisfies ServingOrder);
      },
    };
  }

  /** A guest that touches its working set, or so many pages, in ascending order. */
  #touch(socket: string, touches = this.#workingSet / PAGE, share = false): Promise<Told> {
    const pages = this.#image / PAGE;
    const options = { threads: 1, order: 'ascending', pageSize: PAGE, balloon: false, cpu: -1 } as const;
    return this.#guest.runBeside(socket, { ...options, pages, touches, share });
  }
}

/** Milliseconds of a command. */
async function timed([program = '', ...args]: readonly string[], env = process.env): Promise<number> {
  const begun = performance.now();
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'inherit'], env });
  const [code] = await once(child, 'exit');
  if (code !== 0) throw new Error(`${program} has ended with ${code}`);
  return performance.now() - begun;
}
