// A small HTTP server for metrics and health. Its clients are not trusted.
//
// Rules:
//  - No request and no connection ends the process: an error of a handler is answered with 500; an error of the
//    listener or of a connection is dropped.
//  - A connection carries one request and lives for LIFE_MS at most, however slowly it sends or reads.
//  - At most CONNECTIONS_MOST connections are open. One more closes the oldest, so idle connections neither take the
//    descriptors that monitors need nor keep other clients out.

import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import { Refusal } from '../exit.js';

/** The answer to a request. */
export interface HttpAnswer {
  readonly status: number;
  readonly text: string;
  readonly type?: string;
}

/** Answers for GET, by path. */
export type Routes = Readonly<Record<string, () => HttpAnswer | Promise<HttpAnswer>>>;

const CONNECTIONS_MOST = 32;
const LIFE_MS = 10_000;
const HEADER_BYTES = 8192;

/** Listens. @throws Refusal if the address cannot be used */
export async function serveHttp(
  { host, port }: { host: string; port: number },
  routes: Routes,
): Promise<{ close(): void }> {
  const waiting = new Set<Socket>();
  const http = createServer({ maxHeaderSize: HEADER_BYTES }, (request, response) => {
    // Bytes after the first request are not answered.
    if (waiting.delete(request.socket)) void respond(routes, request, response);
  });
  const all = limitConnections(http, waiting);
  await new Promise<void>((resolve, reject) => {
    http.once('error', (error) => reject(new Refusal(`metrics cannot be served: ${error.message}`)));
    http.listen(port, host, resolve);
  });
  // Without a free descriptor the listener reports an error; the client may try again.
  http.on('error', () => {});
  return {
    close() {
      http.close();
      for (const socket of all) socket.destroy();
    },
  };
}

/**
 * Limits the number of connections and the life of each. Returns the open connections. `waiting`: the connections that
 * have sent no request yet.
 */
function limitConnections(http: Server, waiting: Set<Socket>): ReadonlySet<Socket> {
  const all = new Set<Socket>();
  http.on('connection', (socket: Socket) => {
    const [oldest] = all.size < CONNECTIONS_MOST ? [] : waiting.size > 0 ? waiting : all;
    if (oldest) end(oldest);
    all.add(socket);
    waiting.add(socket);
    const limit = setTimeout(() => end(socket), LIFE_MS).unref();
    socket.on('error', () => end(socket));
    socket.once('close', () => {
      clearTimeout(limit);
      end(socket);
    });
  });
  return all;

  // Stop counting the connection now: its end may be reported after the next connections have come.
  function end(socket: Socket): void {
    all.delete(socket);
    waiting.delete(socket);
    socket.destroy();
  }
}

async function respond(routes: Routes, request: IncomingMessage, response: ServerResponse): Promise<void> {
  let answer: HttpAnswer;
  try {
    answer = await answerTo(routes, request);
  } catch (error) {
    answer = { status: 500, text: `${(error as Error).message}\n` };
  }
  const { status, text, type = 'text/plain' } = answer;
  const allow = status === 405 ? { allow: 'GET, HEAD' } : {};
  const length = { 'content-length': Buffer.byteLength(text) };
  response.on('error', () => {});
  response.writeHead(status, { 'content-type': type, connection: 'close', ...length, ...allow }).end(text);
}

async function answerTo(routes: Routes, { method, url = '/' }: IncomingMessage): Promise<HttpAnswer> {
  if (method !== 'GET' && method !== 'HEAD') return { status: 405, text: 'only GET and HEAD\n' };
  const path = pathOf(url);
  const route = Object.hasOwn(routes, path) ? routes[path] : undefined;
  return route?.() ?? { status: 404, text: `see ${Object.keys(routes).join(', ')}\n` };
}

/** The path of a request's target. The target may be any text, and `new URL` does not accept every text. */
function pathOf(target: string): string {
  const path = /^https?:\/\/[^/?#]*/i.test(target) ? target.replace(/^https?:\/\/[^/?#]*/i, '') : target;
  return path.split(/[?#]/, 1)[0] || '/';
}
