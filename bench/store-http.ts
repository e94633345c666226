// The store of the benchmark, a process of its own: a web server that delays each answer, with the objects of a folder,
// and with what is put into it, which it keeps in memory. Takes any S3 signature.
//
//   store-http FOLDER DELAY_MS
//
// It sends its port when it listens, and on each message its counts since the last one.

import { existsSync, readFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';

/** What was asked for since the last message. */
export interface StoreUse {
  /** Requests for the bytes of an object, and how many of them were for one that was asked for before. */
  gets: number;
  repeated: number;
  /** Bytes that were sent, and that were put. */
  bytes: number;
  putBytes: number;
}

const [, , folder = '', delay = ''] = process.argv;
const objects = new Map<string, Buffer>();
const asked = new Set<string>();
let use = fresh();

function fresh(): StoreUse {
  return { gets: 0, repeated: 0, bytes: 0, putBytes: 0 };
}

function objectOf(path: string): Buffer | undefined {
  const known = objects.get(path);
  if (known) return known;
  const file = join(folder, path);
  if (!existsSync(file)) return undefined;
  const bytes = readFileSync(file);
  objects.set(path, bytes);
  return bytes;
}

async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
  const path = new URL(request.url ?? '', 'http://host').pathname;
  if (request.method === 'PUT') {
    const bytes = await buffer(request);
    objects.set(path, bytes);
    use.putBytes += bytes.length;
    respond(response, 200);
    return;
  }
  const object = objectOf(path);
  if (request.method === 'GET') {
    use.gets++;
    if (asked.has(path)) use.repeated++;
    asked.add(path);
    use.bytes += object?.length ?? 0;
  }
  respond(response, object ? 200 : 404, object, request.method === 'HEAD');
}

function respond(response: ServerResponse, status: number, object?: Buffer, head = false): void {
  setTimeout(() => {
    response.writeHead(status, { 'content-length': object?.length ?? 0 });
    response.end(head ? undefined : object);
  }, Number(delay));
}

const server = createServer((request, response) => void answer(request, response));
server.keepAliveTimeout = 60_000;
server.listen(0, '127.0.0.1', () => process.send?.((server.address() as AddressInfo).port));
process.on('message', (what) => {
  process.send?.(use);
  use = fresh();
  asked.clear();
  // What was put is forgotten, so that it can be put again.
  if (what === 'forget') objects.clear();
});
process.once('disconnect', () => process.exit());
