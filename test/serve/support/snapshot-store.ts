// A packed snapshot on a web server in this process, whose answers a test can change, and servers and guests of it.

import { strict as assert } from 'node:assert';
import { once } from 'node:events';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer, type Server as HttpServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { Guest } from '../../../src/cli/guest/guest.js';
import type { GuestOptions } from '../../../src/cli/guest/protocol.js';
import { type ServeOptions, type Server, type SessionEnd, serve } from '../../../src/serve/index.js';
import { MemoryImage, openStore, pack } from '../../../src/store/index.js';
import { inDirectory } from '../../cli/support/command.js';
import { needKernel } from '../../support/real-kernel.js';
import { P, writeMemory } from './serve-process.js';

/** Bytes of a chunk, and the same in pages. */
export const CHUNK = 64 * 1024;
export const CHUNK_PAGES = CHUNK / P;
/** Pages of the memory: 16 chunks, of which the holes below make two zero, and a last one that is short. */
export const PAGES = 15 * CHUNK_PAGES + 5;
/** Chunks that are not zeros. */
export const CHUNKS = 14;

export const isHole = (page: number): boolean =>
  (page >= 3 * CHUNK_PAGES && page < 5 * CHUNK_PAGES) || page % 50 === 49;

/** Answers a request. False: the usual answer is given. */
export type Answer = (response: ServerResponse, bytes: Buffer, url: string) => boolean | undefined;

export class SnapshotStore {
  /** Paths of the requests, in order. */
  readonly requests: string[] = [];
  answer: Answer = () => false;
  readonly #folder: string;
  #server: HttpServer | undefined;
  #port = 0;

  constructor(folder: string) {
    this.#folder = folder;
  }

  get url(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  /** Listens, at the same port as before. */
  async open(): Promise<void> {
    const server = createServer((request, response) => {
      const url = request.url as string;
      this.requests.push(url);
      const bytes = readFileSync(join(this.#folder, url));
      if (this.answer(response, bytes, url)) return;
      response.writeHead(200, { 'content-length': bytes.length }).end(bytes);
    });
    await once(server.listen(this.#port, '127.0.0.1'), 'listening');
    this.#port = (server.address() as AddressInfo).port;
    this.#server = server;
  }

  async close(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    if (!server) return;
    server.closeAllConnections();
    server.close();
    await once(server, 'close');
  }

  /** Paths that were asked for more than once. */
  get repeated(): string[] {
    return this.requests.filter((url, at) => this.requests.indexOf(url) !== at);
  }
}

export interface Served {
  readonly server: Server;
  readonly ends: SessionEnd[];
  guest(options?: Partial<GuestOptions>): Promise<Guest>;
}

export interface StoreScene {
  readonly directory: string;
  readonly memory: string;
  readonly index: string;
  /** The folder of the store. */
  readonly chunks: string;
  readonly cache: string;
  readonly store: SnapshotStore;
  /**
   * Starts a server of the index, or of memory at another place, which needs no store. It, and its guests, have ended when
   * `body` of the scene has returned.
   */
  serve(options?: Partial<ServeOptions>, place?: string): Promise<Served>;
}

let servers = 0;

export async function withSnapshot(body: (scene: StoreScene) => Promise<void>): Promise<void> {
  needKernel();
  await inDirectory(async (directory) => {
    const [memory, index, chunks, cache] = ['memory', 'vm.caibx', 'chunks', 'cache'].map((name) =>
      join(directory, name),
    ) as [string, string, string, string];
    writeMemory(memory, PAGES, 7, isHole);
    await packInto(memory, index, chunks);
    const store = new SnapshotStore(chunks);
    await store.open();
    const guests = new Set<Guest>();
    const running: Server[] = [];
    const kill = (): void => {
      for (const guest of guests) guest.kill();
    };
    process.once('exit', kill);
    try {
      await body({
        ...{ directory, memory, index, chunks, cache, store },
        async serve(options = {}, place = index) {
          const socket = join(directory, `socket${++servers}`);
          const server = await serve({
            ...{ vms: [{ socket, memory: place }], cache, ...(place === index && { store: store.url }) },
            storeOptions: { attempts: 1 },
            ...options,
          });
          running.push(server);
          const ends: SessionEnd[] = [];
          server.on('ended', (_session, end) => ends.push(end));
          return {
            ...{ server, ends },
            async guest(more = {}) {
              const guest = new Guest({ socket, memory, ...more });
              guests.add(guest);
              await guest.handedOver;
              return guest;
            },
          };
        },
      });
    } finally {
      kill();
      process.off('exit', kill);
      await Promise.all([...guests].map(({ ended }) => ended));
      for (const server of running) await server.close();
      await store.close();
    }
  });
}

async function packInto(memory: string, index: string, chunks: string): Promise<void> {
  const image = new MemoryImage(memory);
  const store = await openStore(chunks);
  try {
    const packed = await pack(image, store, { chunkSize: CHUNK });
    writeFileSync(index, packed.index);
  } finally {
    store.close();
    image.close();
  }
}

/** All pages are right. */
export async function assertRight(guest: Guest, threads = 2): Promise<void> {
  const { wrong, wrongCount } = await guest.verify(threads);
  assert.equal(wrongCount, 0, wrong.join('\n'));
}

/** The chunk files of a cache. */
export function cachedFiles(cache: string): string[] {
  return readdirSync(cache, { recursive: true, encoding: 'utf8' })
    .filter((name) => /^..\/[0-9a-f]{64}$/.test(name))
    .map((name) => join(cache, name));
}
