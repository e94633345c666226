// A store on a web server in this process, whose answers a test can change.

import { once } from 'node:events';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createSecureServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { dirname, join } from 'node:path';

export type Misbehave = (request: IncomingMessage, response: ServerResponse, body: Buffer) => void;

export class StoreServer {
  /** Answers the next requests, one each; undefined for the usual answer. */
  readonly answers: (Misbehave | undefined)[] = [];
  /** Answers all requests that this returns true for. */
  always: ((request: IncomingMessage, response: ServerResponse) => boolean) | undefined;
  /** Method and path of each request. */
  readonly requests: string[] = [];
  readonly headers: IncomingMessage['headers'][] = [];
  readonly #folder: string;
  readonly #server: Server;
  readonly #protocol: string;

  constructor(folder: string, tls?: { key: string; cert: string }) {
    this.#folder = folder;
    this.#protocol = tls ? 'https' : 'http';
    this.#server = tls ? createSecureServer(tls) : createServer();
    this.#server.on('request', (request: IncomingMessage, response: ServerResponse) => {
      const parts: Buffer[] = [];
      request.on('data', (part: Buffer) => parts.push(part));
      request.on('error', () => {});
      request.on('end', () => {
        this.requests.push(`${request.method} ${request.url}`);
        this.headers.push(request.headers);
        const body = Buffer.concat(parts);
        const answer = this.answers.shift();
        if (answer) answer(request, response, body);
        else if (!this.always?.(request, response)) this.serve(request, response, body);
      });
    });
  }

  async listen(): Promise<void> {
    await once(this.#server.listen(0, '127.0.0.1'), 'listening');
  }

  get url(): string {
    return `${this.#protocol}://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** The file of a request. */
  fileOf(request: IncomingMessage): string {
    return join(this.#folder, new URL(request.url as string, 'http://host').pathname);
  }

  serve(request: IncomingMessage, response: ServerResponse, body: Buffer): void {
    const file = this.fileOf(request);
    if (request.method === 'PUT') {
      mkdirSync(dirname(file), { recursive: true });
      writeFileSync(file, body);
      response.writeHead(201).end();
    } else if (existsSync(file)) {
      const bytes = readFileSync(file);
      response.writeHead(200, { 'content-length': bytes.length });
      response.end(request.method === 'HEAD' ? undefined : bytes);
    } else {
      response.writeHead(404).end();
    }
  }

  /** How many requests had this method. */
  count(method: string): number {
    return this.requests.filter((request) => request.startsWith(`${method} `)).length;
  }

  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }
}

export async function withStoreServer(
  folder: string,
  body: (server: StoreServer) => Promise<void>,
  tls?: { key: string; cert: string },
): Promise<void> {
  const server = new StoreServer(folder, tls);
  await server.listen();
  try {
    await body(server);
  } finally {
    server.close();
  }
}
