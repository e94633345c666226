// The server of the benchmark of stores, a process of its own that stays, so that V8 has compiled its code: serves a
// memory, or downloads the chunks of an index with the client that it serves with.

import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { type ServeOptions, type Server, serve } from '../src/serve/index.js';
import { chunkId, chunkKey, openStore, parseIndex, type Store } from '../src/store/index.js';

export type ServingOrder =
  | { readonly do: 'serve'; readonly options: ServeOptions }
  /** Downloads the first chunks of an index, without decoding them. */
  | { readonly do: 'download'; readonly index: string; readonly store: string; readonly chunks: number }
  /** Waits until no guest is served. */
  | { readonly do: 'rest' }
  | { readonly do: 'end' };

/** Connections to the store, for guests as for downloads. */
export const CONNECTIONS = 16;

let server: Server | undefined;
/** Stays open, as that of a server does. */
let store: Store | undefined;

async function obey(order: ServingOrder): Promise<void> {
  if (order.do === 'serve') server = await serve(order.options);
  else if (order.do === 'download') await download(order.index, order.store, order.chunks);
  else if (order.do === 'rest') await rest();
  else {
    await server?.close();
    server = undefined;
    globalThis.gc?.();
  }
}

async function download(path: string, place: string, chunks: number): Promise<void> {
  const index = parseIndex(readFileSync(path), path);
  store ??= await openStore(place, { parallel: CONNECTIONS, proxy: 'none' });
  const from = store;
  let next = 0;
  const one = async (): Promise<void> => {
    while (next < chunks) await from.get(chunkKey(chunkId(index, next++)), 2 * index.chunkSize);
  };
  await Promise.all(Array.from({ length: CONNECTIONS }, one));
}

async function rest(): Promise<void> {
  const { sessions } = server as Server;
  while (sessions.size > 0) await once(server as Server, 'ended');
}

if (process.send) {
  process.on('message', (order: ServingOrder) => {
    obey(order).then(
      () => process.send?.({}),
      (error) => process.send?.({ error: `${(error as Error).stack}` }),
    );
  });
  process.once('disconnect', () => process.exit());
  process.send({});
}
