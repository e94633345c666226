// HTTP servers of a file, for tests of the pager's remote files. Each test can change how a server answers.

import { strict as assert } from 'node:assert';
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import {
  createServer,
  type IncomingMessage,
  request as requestOver,
  type Server,
  type ServerResponse,
} from 'node:http';
import { createServer as createSecureServer } from 'node:https';
import { type AddressInfo, connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  type HttpSourceOptions,
  httpSource,
  type OpenHttpSource,
  openHttpSource,
} from '../../../src/pager/http-source.js';
import { SourceError } from '../../../src/pager/source.js';
import { generator } from '../../support/harness.js';

// Requests of the tests must not go to a proxy of the machine.
export const PROXY_VARIABLES = [
  'http_proxy',
  'https_proxy',
  'no_proxy',
  'HTTP_PROXY',
  'HTTPS_PROXY',
  'NO_PROXY',
];
for (const name of PROXY_VARIABLES) delete process.env[name];

export interface Range {
  first: number;
  last: number;
}

export type Answer = (request: IncomingMessage, response: ServerResponse, range: Range) => void;

/** Bytes that differ from place to place. */
export function someBytes(length: number, start = 1): Buffer {
  const next = generator(start);
  return Buffer.from(Uint8Array.from({ length }, () => next(256)));
}

/** A server of one file, which it answers with ranges of. */
export class FileServer {
  file: Buffer;
  etag: string | undefined = '"first"';
  modified: string | undefined;
  /** Answers the next requests, one each; undefined for the usual answer. */
  readonly answers: (Answer | undefined)[] = [];
  /** Answers requests after those of `answers`. */
  answer: Answer = (_, response, range) => this.serve(response, range);
  readonly requests: IncomingMessage[] = [];
  readonly sockets = new Set<Socket>();
  readonly #server: Server;
  readonly #protocol: string;

  constructor(file: Buffer, tls?: { key: string; cert: string }) {
    this.file = file;
    this.#protocol = tls ? 'https' : 'http';
    this.#server = tls ? createSecureServer(tls) : createServer();
    this.#server.on('request', (request: IncomingMessage, response: ServerResponse) => {
      this.requests.push(request);
      const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
      assert.ok(range, 'each request asks for a range');
      const answer = this.answers.shift() ?? this.answer;
      answer(request, response, { first: Number(range[1]), last: Number(range[2]) });
    });
    this.#server.on('connection', (socket: Socket) => {
      this.sockets.add(socket);
      socket.on('close', () => this.sockets.delete(socket));
    });
  }

  async listen(): Promise<void> {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
  }

  /** Does not keep the process alive any more. */
  unref(): void {
    this.#server.unref();
    for (const socket of this.sockets) socket.unref();
    this.#server.on('connection', (socket: Socket) => socket.unref());
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  url(path = '/file', host = '127.0.0.1'): string {
    return `${this.#protocol}://${host}:${this.port}${path}`;
  }

  /** The headers of a right answer. */
  headers({ first, last }: Range): Record<string, string> {
    return {
      'content-range': `bytes ${first}-${last}/${this.file.length}`,
      'content-length': String(last - first + 1),
      ...(this.etag && { etag: this.etag }),
      ...(this.modified && { 'last-modified': this.modified }),
    };
  }

  /** Sends a right answer, with other headers if they are given; undefined removes one. */
  serve(response: ServerResponse, range: Range, others: Record<string, string | undefined> = {}): void {
    const headers = Object.entries({ ...this.headers(range), ...others });
    for (const [name, value] of headers) if (value !== undefined) response.setHeader(name, value);
    response.writeHead(206);
    response.end(this.file.subarray(range.first, range.last + 1));
  }

  /** Sends the headers and so many bytes, and calls back when they have left. */
  serveSome(response: ServerResponse, range: Range, bytes: number, then: () => void): void {
    response.writeHead(206, this.headers(range));
    response.write(this.file.subarray(range.first, range.first + bytes), () => then());
  }

  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
    for (const socket of this.sockets) socket.destroy();
  }
}

/** Runs with a server of a file of `length` bytes. */
export async function withServer(
  length: number,
  body: (server: FileServer) => Promise<void>,
  tls?: { key: string; cert: string },
): Promise<void> {
  const server = new FileServer(someBytes(length), tls);
  await server.listen();
  try {
    await body(server);
  } finally {
    server.close();
  }
}

/** Answers with a status and a short body. */
export function status(code: number, headers: Record<string, string> = {}): Answer {
  return (_, response) => {
    response.writeHead(code, headers);
    response.end('no');
  };
}

/** A signal that is not aborted. */
export const NEVER = new AbortController().signal;
const GUARD = 32;
const UNTOUCHED = 0xee;

/** Memory to read into, between guards that no read may change. */
export class Memory {
  readonly #all: Buffer;
  readonly into: Uint8Array;

  constructor(length: number) {
    this.#all = Buffer.alloc(length + 2 * GUARD, UNTOUCHED);
    this.into = this.#all.subarray(GUARD, GUARD + length);
  }

  assertGuards(): void {
    const guards = [this.#all.subarray(0, GUARD), this.#all.subarray(-GUARD)];
    for (const guard of guards) assert.ok(guard.every((byte) => byte === UNTOUCHED));
  }

  /** How many bytes at the start are those of the file; all others must be untouched. */
  filled(file: Buffer, offset: number): number {
    this.assertGuards();
    let end = this.into.length;
    while (end > 0 && this.into[end - 1] === UNTOUCHED) end--;
    assert.ok(Buffer.from(this.into.subarray(0, end)).equals(file.subarray(offset, offset + end)));
    return end;
  }
}

/** Reads bytes of a source; checks the guards, and that `arrived` rises to the end. */
export async function readBytes(source: OpenHttpSource, offset: number, length: number): Promise<Buffer> {
  const memory = new Memory(length);
  let reached = 0;
  await source.read(offset, memory.into, NEVER, (bytes) => {
    assert.ok(bytes > reached && bytes <= length);
    reached = bytes;
  });
  assert.equal(reached, length);
  memory.assertGuards();
  return Buffer.from(memory.into);
}

/** Opens a URL, and closes it at the end. */
export async function withSource(
  url: string,
  options: HttpSourceOptions,
  body: (source: OpenHttpSource) => Promise<void>,
): Promise<void> {
  const source = await openHttpSource(httpSource(url, options), NEVER);
  try {
    await body(source);
  } finally {
    source.close();
  }
}

/** Waits for a SourceError. */
export async function assertFails(
  promise: Promise<unknown> | void,
  message: RegExp,
  permanent: boolean,
): Promise<void> {
  await assert.rejects(
    async () => promise,
    (error) => {
      assert.ok(error instanceof SourceError, String(error));
      assert.match(error.message, message);
      assert.equal(error.permanent, permanent, error.message);
      return true;
    },
  );
}

export async function assertNotOpened(
  url: string,
  options: HttpSourceOptions,
  message: RegExp,
  permanent: boolean,
): Promise<void> {
  await assertFails(openHttpSource(httpSource(url, options), NEVER), message, permanent);
}

export interface Certificates {
  /** The certificate of an authority, and a key and a certificate that it signed. */
  ca: string;
  key: string;
  cert: string;
}

/** Makes a private authority, and a certificate of it. */
export function makeCertificates(names = 'DNS:localhost,IP:127.0.0.1'): Certificates {
  const directory = mkdtempSync(join(tmpdir(), 'uffd-tls-'));
  const path = (name: string): string => join(directory, name);
  const openssl = (...args: string[]): void => {
    execFileSync('openssl', args, { stdio: 'pipe', cwd: directory });
  };
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2'];
  try {
    openssl('req', '-x509', ...key, '-keyout', 'ca.key', '-out', 'ca.pem', '-subj', '/CN=Test authority');
    openssl(
      ...['req', '-x509', ...key, '-keyout', 'key.pem', '-out', 'cert.pem', '-subj', '/CN=localhost'],
      ...['-CA', 'ca.pem', '-CAkey', 'ca.key', '-addext', `subjectAltName=${names}`],
      ...['-addext', 'basicConstraints=critical,CA:false'],
    );
    const read = (name: string): string => readFileSync(path(name), 'utf8');
    return { ca: read('ca.pem'), key: read('key.pem'), cert: read('cert.pem') };
  } finally {
    rmSync(directory, { recursive: true });
  }
}

/** A proxy: for absolute URLs, and for tunnels. */
export class TestProxy {
  /** The request lines, without the HTTP version. */
  readonly lines: string[] = [];
  readonly authorizations: (string | undefined)[] = [];
  /** A status to answer each request with. */
  refuse: number | undefined;
  readonly #server = createServer();
  readonly #sockets = new Set<Socket>();

  constructor() {
    this.#server.on('request', (request, response) => {
      this.#note(request);
      if (this.refuse !== undefined) {
        response.writeHead(this.refuse).end();
        return;
      }
      const onward = requestOver(request.url as string, { headers: request.headers }, (answer) => {
        response.writeHead(answer.statusCode as number, answer.headers);
        answer.pipe(response);
      });
      onward.on('error', () => response.destroy());
      onward.end();
    });
    this.#server.on('connect', (request: IncomingMessage, socket: Socket) => {
      this.#note(request);
      if (this.refuse !== undefined) {
        socket.end(`HTTP/1.1 ${this.refuse} No\r\nContent-Length: 0\r\n\r\n`);
        return;
      }
      const [host = '', port] = (request.url as string).split(':');
      const onward = connect({ host: host === 'localhost' ? '127.0.0.1' : host, port: Number(port) });
      this.#sockets.add(onward);
      onward.on('connect', () => {
        socket.write('HTTP/1.1 200 Connected\r\n\r\n');
        onward.pipe(socket).pipe(onward);
      });
      for (const end of [onward, socket]) {
        end.on('error', () => {});
        end.on('close', () => [onward, socket].forEach((other) => void other.destroy()));
      }
    });
    this.#server.on('connection', (socket) => this.#sockets.add(socket));
  }

  #note(request: IncomingMessage): void {
    this.lines.push(`${request.method} ${request.url}`);
    this.authorizations.push(request.headers['proxy-authorization']);
  }

  async listen(): Promise<void> {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
  }

  url(credentials = ''): string {
    return `http://${credentials && `${credentials}@`}127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }
}

export async function withProxy(body: (proxy: TestProxy) => Promise<void>): Promise<void> {
  const proxy = new TestProxy();
  await proxy.listen();
  try {
    await body(proxy);
  } finally {
    proxy.close();
  }
}
