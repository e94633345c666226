// Connections of a remote file: TLS with a private authority, proxies, names, and that neither libuv's thread pool is
// needed nor anything is left after closing.

import { strict as assert } from 'node:assert';
import { execFileSync } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { close, closeSync, constants, mkdtempSync, open, openSync, rmSync, stat } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { candidates, openNames, parseHosts, parseSearch } from '../../src/pager/http-names.js';
import { httpSource } from '../../src/pager/http-source.js';
import { suite } from '../support/harness.js';
import {
  assertFails,
  assertNotOpened,
  makeCertificates,
  PROXY_VARIABLES,
  readBytes,
  withProxy,
  withServer,
  withSource,
} from './support/http-server.js';
import type { Task } from './support/http-worker.js';

const test = suite('pager/http-connections');
const LENGTH = 100_000;
const { ca, ...tls } = makeCertificates();

test('a private authority is trusted if it is given, for the host names in the certificate', async () => {
  await withServer(
    LENGTH,
    async (server) => {
      const others = makeCertificates().ca;
      for (const host of ['localhost', '127.0.0.1']) {
        await withSource(server.url('/file', host), { ca: [others, ca] }, async (source) => {
          assert.ok((await readBytes(source, 5, 50_000)).equals(server.file.subarray(5, 50_005)));
        });
      }
      const untrusted = /the server's certificate is not trusted: /;
      await assertNotOpened(server.url(), {}, untrusted, true);
      await assertNotOpened(server.url(), { ca: others }, untrusted, true);
    },
    tls,
  );
  const { ca: authority, ...wrong } = makeCertificates('DNS:other.test');
  await withServer(
    LENGTH,
    async (server) => {
      const message = /the server's certificate is not trusted: .*IP: 127\.0\.0\.1 is not/;
      await assertNotOpened(server.url(), { ca: authority }, message, true);
    },
    wrong,
  );
});

/** Runs with variables of the environment that name a proxy. */
async function withEnvironment(variables: Record<string, string>, body: () => Promise<void>): Promise<void> {
  Object.assign(process.env, variables);
  try {
    await body();
  } finally {
    for (const name of PROXY_VARIABLES) delete process.env[name];
  }
}

test('a proxy of the environment gets absolute URLs for http, and tunnels for https', async () => {
  await withProxy(async (proxy) => {
    const variables = { http_proxy: proxy.url('a:b'), HTTPS_PROXY: proxy.url() };
    await withServer(LENGTH, async (server) => {
      await withEnvironment(variables, async () => {
        await withSource(server.url(), {}, async (source) => {
          assert.ok((await readBytes(source, 5, 50_000)).equals(server.file.subarray(5, 50_005)));
        });
        assert.deepEqual(proxy.lines, Array(2).fill(`GET ${server.url()}`));
        const expected = `Basic ${Buffer.from('a:b').toString('base64')}`;
        assert.deepEqual(proxy.authorizations, [expected, expected]);
        proxy.lines.length = 0;
        process.env.NO_PROXY = 'other.example,127.0.0.1';
        await withSource(server.url(), {}, async () => {});
        delete process.env.NO_PROXY;
        await withSource(server.url(), { proxy: 'none' }, async () => {});
        assert.deepEqual(proxy.lines, []);
      });
    });
    await withServer(
      LENGTH,
      async (server) => {
        await withEnvironment(variables, async () => {
          await withSource(server.url('/file', 'localhost'), { ca }, async (source) => {
            assert.ok((await readBytes(source, 5, 50_000)).equals(server.file.subarray(5, 50_005)));
          });
        });
        assert.deepEqual([...new Set(proxy.lines)], [`CONNECT localhost:${server.port}`]);
        for (const { headers } of server.requests) assert.equal(headers['proxy-authorization'], undefined);
      },
      tls,
    );
  });
});

test('a variable that does not name an HTTP proxy is an error without its value', async () => {
  for (const value of ['http://a:secret@', 'socks5://a:secret@host', 'http://a:secret@host:port']) {
    await withEnvironment({ http_proxy: value }, async () => {
      const message = /^the environment variable http_proxy is not the URL of an HTTP proxy$/;
      await assertNotOpened('http://127.0.0.1/', {}, message, true);
    });
  }
});

test('a proxy by option, and what it refuses', async () => {
  await withProxy(async (proxy) => {
    await withServer(LENGTH, async (server) => {
      await withSource(server.url(), { proxy: proxy.url() }, async (source) => {
        await readBytes(source, 0, 10);
        proxy.refuse = 407;
        await assertFails(readBytes(source, 0, 10), /the proxy demands a user name and password/, true);
        proxy.refuse = undefined;
        await readBytes(source, 0, 10);
      });
      assert.equal(proxy.lines.length, 4);
    });
    await withServer(
      LENGTH,
      async (server) => {
        const options = { proxy: proxy.url(), ca, attempts: 2 };
        proxy.refuse = 407;
        await assertNotOpened(server.url(), options, /the proxy answered 407$/, true);
        proxy.refuse = 502;
        await assertNotOpened(server.url(), options, /the proxy answered 502 \(attempt 2 of 2\)$/, false);
      },
      tls,
    );
  });
});

test('with all threads of the pool blocked, a file is opened and read by host name', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'uffd-fifo-'));
  const fifo = join(directory, 'fifo');
  execFileSync('mkfifo', [fifo]);
  const threads = Number(process.env.UV_THREADPOOL_SIZE ?? 4);
  // Opening it for reading blocks a thread until it is also opened for writing.
  const opened = Array.from(
    { length: threads },
    () => new Promise<number>((resolve) => open(fifo, 'r', (_, fd) => resolve(fd))),
  );
  let poolRan = false;
  const task = new Promise<void>((resolve) => {
    stat('/', () => {
      poolRan = true;
      resolve();
    });
  });
  try {
    for (const secrets of [undefined, tls]) {
      await withServer(
        LENGTH,
        async (server) => {
          await withSource(server.url('/file', 'localhost'), { ca }, async (source) => {
            assert.ok((await readBytes(source, 5, 50_000)).equals(server.file.subarray(5, 50_005)));
          });
        },
        secrets,
      );
    }
    assert.equal(poolRan, false);
  } finally {
    // It is opened for both, so that this call does not wait.
    const writer = openSync(fifo, constants.O_RDWR);
    for (const fd of await Promise.all(opened)) close(fd);
    await task;
    closeSync(writer);
    rmSync(directory, { recursive: true });
  }
});

const WORKER = fileURLToPath(new URL('support/http-worker.js', import.meta.url));

/** Runs a thread that must end by itself. */
async function runWorker(task: Task, closeOn?: Promise<void>): Promise<string[]> {
  const worker = new Worker(WORKER, { workerData: task });
  let results: string[] | undefined;
  worker.on('message', (message) => {
    results = message;
  });
  closeOn?.then(() => worker.postMessage('close'));
  const [code] = await once(worker, 'exit');
  assert.equal(code, 0);
  return results as string[];
}

test('after closing, nothing keeps the thread alive', async () => {
  for (const secrets of [undefined, tls]) {
    await withServer(
      LENGTH,
      async (server) => {
        const source = httpSource(server.url('/file', 'localhost'), { ca });
        const idle = await runWorker({ source, offsets: [0, 100, 200], closeEarly: false });
        assert.deepEqual(idle, Array(3).fill('fulfilled'));
        // A request without an answer, an answer that stalls, and a pause of a minute.
        const asked = new Promise<void>((resolve) => {
          server.answers.push(
            undefined,
            () => {},
            (_, response, range) => server.serveSome(response, range, 10, () => {}),
            (_, response) => {
              response.writeHead(503, { 'retry-after': '60' }).end(() => resolve());
            },
          );
        });
        const busy = await runWorker({ source, offsets: [0, 100, 200], closeEarly: true }, asked);
        assert.deepEqual(busy, Array(3).fill('rejected'));
      },
      secrets,
    );
  }
});

test('the files of the system that say how names are resolved', () => {
  const hosts = parseHosts('127.0.0.1 localhost # me\n::1\tLocalhost ip6\n#1.2.3.4 no\nbad name\n\n');
  assert.deepEqual(Object.fromEntries(hosts), {
    localhost: [
      { address: '127.0.0.1', family: 4 },
      { address: '::1', family: 6 },
    ],
    ip6: [{ address: '::1', family: 6 }],
  });
  const search = parseSearch('nameserver 1.2.3.4\nsearch a.b. c\noptions edns0 ndots:2 # x\n');
  assert.deepEqual(search, { domains: ['a.b', 'c'], dots: 2 });
  assert.deepEqual(candidates('x', search), ['x.a.b', 'x.c', 'x']);
  assert.deepEqual(candidates('x.y.z', search), ['x.y.z', 'x.y.z.a.b', 'x.y.z.c']);
  assert.deepEqual(candidates('x.', search), ['x']);
  assert.deepEqual(candidates('x', parseSearch('')), ['x']);
});

/** A name server that knows one name. */
async function withNameServer(
  known: string,
  body: (server: string, asked: string[]) => Promise<void>,
): Promise<void> {
  const socket = createSocket('udp4');
  const asked: string[] = [];
  socket.on('message', (query, { port, address }) => {
    const labels: string[] = [];
    let at = 12;
    for (; query[at] !== 0; at += 1 + (query[at] as number))
      labels.push(query.toString('latin1', at + 1, at + 1 + (query[at] as number)));
    const type = query.readUInt16BE(at + 1);
    const name = labels.join('.').toLowerCase();
    asked.push(`${name} ${type}`);
    const found = name === known;
    const header = Buffer.from(query.subarray(0, 12));
    header.writeUInt16BE(found ? 0x8180 : 0x8183, 2);
    header.writeUInt16BE(found && type === 1 ? 1 : 0, 6);
    header.fill(0, 8);
    const record = Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    const question = query.subarray(12, at + 5);
    socket.send(Buffer.concat([header, question, ...(found && type === 1 ? [record] : [])]), port, address);
  });
  socket.bind(0, '127.0.0.1');
  await once(socket, 'listening');
  try {
    await body(`127.0.0.1:${socket.address().port}`, asked);
  } finally {
    socket.close();
  }
}

test('names are looked up over DNS, in the domains of the search list', async () => {
  await withNameServer('store.cluster.test', async (server, asked) => {
    const search = { domains: ['ns.test', 'cluster.test'], dots: 1 };
    const names = openNames(5000, { hosts: new Map(), search, servers: [server] });
    const lookup = (name: string, all: boolean): Promise<unknown> =>
      new Promise((resolve, reject) => {
        names.lookup(name, { all }, (error, address, family) =>
          error ? reject(error) : resolve([address, family]),
        );
      });
    assert.deepEqual(await lookup('store', true), [[{ address: '127.0.0.1', family: 4 }], undefined]);
    const all = ['store.ns.test', 'store.cluster.test'].flatMap((name) => [`${name} 1`, `${name} 28`]);
    assert.deepEqual([...asked].sort(), all.sort());
    assert.deepEqual(await lookup('store.cluster.test', false), ['127.0.0.1', 4]);
    await assert.rejects(lookup('nothing', true), { code: 'ENOTFOUND' });
    // These do not reach the server.
    asked.length = 0;
    assert.deepEqual(await lookup('LOCALHOST', false), ['127.0.0.1', 4]);
    assert.deepEqual(asked, []);
    names.close();
  });
});

test.run();
