// The metrics port with untrusted clients: monitors are served, whatever such clients send and however many connect.

import { spawnSync } from 'node:child_process';
import { connect, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { serveMetrics } from '../../src/cli/serve/metrics.js';
import { ServedTotals } from '../../src/cli/serve/totals.js';
import { type Server, type Session, Tally } from '../../src/serve/index.js';
import { atRest } from '../serve/support/serve-process.js';
import { P, until } from '../serve/support/server.js';
import { freePort } from '../support/free-port.js';
import { generator, seed, skip, suite } from '../support/harness.js';
import { PAGES, served, touchAll } from './support/serve-command.js';

const test = suite('cli/metrics');

/** Sends bytes as they are. Returns everything that the server answers before the connection ends. */
function ask(port: number, bytes: string | Uint8Array): Promise<string> {
  return new Promise((resolve) => {
    let received = '';
    const socket = connect(port, '127.0.0.1', () => socket.end(bytes));
    socket.setEncoding('latin1').on('data', (text: string) => {
      received += text;
    });
    socket.on('error', () => {}).once('close', () => resolve(received));
  });
}

const request = (target: string, method = 'GET'): string => `${method} ${target} HTTP/1.1\r\nHost: x\r\n\r\n`;

/** Calls `body` with the metrics port of a made-up server. */
async function metricsOf(server: Partial<Server>, body: (port: number) => Promise<void>): Promise<void> {
  const port = await freePort();
  const { close } = await serveMetrics(
    { host: '127.0.0.1', port },
    { problems: new Map(), sessions: new Set<Session>(), served: 0, ...server } as Server,
    new ServedTotals(),
  );
  try {
    await body(port);
  } finally {
    close();
  }
}

test('metrics and health over HTTP', async () => {
  const port = await freePort();
  await served(['--metrics', `${port}`], async (it) => {
    const get = (path: string, init?: RequestInit): Promise<Response> =>
      fetch(`http://127.0.0.1:${port}${path}`, init);
    assert.is(await (await get('/healthz')).text(), 'ok\n');
    assert.is(await (await get('/readyz')).text(), 'ok\n');
    assert.is((await get('/')).status, 404);
    assert.is((await get('/metrics', { method: 'POST' })).status, 405);
    await touchAll(it);
    let text = '';
    // By the end of the guest all of its faults are counted.
    do text = await (await get('/metrics')).text();
    while (!/^uffd_guests 0$/m.test(text));
    const value = (name: string): number => {
      const line = text.split('\n').find((one) => one.startsWith(`${name} `));
      assert.ok(line, `${name} in\n${text}`);
      return Number(line?.slice(name.length + 1));
    };
    assert.is(value('uffd_guests_total'), 1);
    assert.is(value('uffd_problems'), 0);
    assert.is(value('uffd_faults_total{result="answered"}'), PAGES);
    assert.is(value('uffd_installed_bytes_total{class="copied"}'), PAGES * P);
    assert.is(value('uffd_fault_latency_seconds_count'), PAGES);
    assert.is(value('uffd_fault_latency_seconds_bucket{le="+Inf"}'), PAGES);
    assert.ok(value('uffd_fault_latency_seconds_sum') > 0);
  });
});

test('targets that are no URL, and other forms of one', async () => {
  await metricsOf({}, async (port) => {
    const status = async (bytes: string): Promise<string> =>
      (await ask(port, bytes)).split('\r\n', 1)[0]?.replace('HTTP/1.1 ', '') ?? '';
    for (const target of [
      '//',
      '///',
      '*',
      'http://',
      'http://[',
      '/%',
      '/__proto__',
      '/constructor',
      '//healthz',
      'x:',
    ])
      assert.match(await status(request(target)), /^(404|400)/, target);
    for (const target of [
      '/healthz',
      '/healthz?a=1',
      '/healthz#b',
      'http://host:1/healthz',
      'http://[::1]/healthz?',
    ])
      assert.is(await status(request(target)), '200 OK', target);
    assert.is(await status(request('/metrics', 'HEAD')), '200 OK');
    for (const method of ['POST', 'DELETE', 'OPTIONS', 'TRACE'])
      assert.match(await status(request('/metrics', method)), /^405/, method);
    // The second request of a connection gets no answer.
    const both = await ask(port, request('/healthz') + request('/healthz'));
    assert.is(both.split('200 OK').length - 1, 1);
  });
});

test('requests at random: each is answered or dropped, and the next is answered', async () => {
  const below = generator(seed());
  const pick = (from: readonly string[]): string => from[below(from.length)] as string;
  const parts = [
    'GET',
    'POST',
    'CONNECT',
    'HEAD',
    ' ',
    '/',
    '//',
    '/metrics',
    ' HTTP/1.1',
    ' HTTP/9',
    '\r\n',
    '\n',
    '\0',
  ];
  const headers = [
    'Host: x',
    'Upgrade: y',
    'Connection: upgrade',
    'Expect: 100-continue',
    'Transfer-Encoding: chunked',
  ];
  const lengths = [
    'Content-Length: -1',
    'Content-Length: 999999999999',
    `X: ${'y'.repeat(20_000)}`,
    'Expect: pigs',
    ':',
  ];
  await metricsOf({}, async (port) => {
    for (let round = 0; round < 400; round++) {
      let text =
        below(3) === 0
          ? ''
          : `${pick(['GET', 'POST', 'CONNECT'])} ${pick(['//', '/', 'http://[/', '*'])} HTTP/1.1\r\n`;
      for (let part = below(6); part > 0; part--) {
        text += below(2) === 0 ? pick(parts) : `${pick([...headers, ...lengths])}\r\n`;
      }
      const noise = Uint8Array.from({ length: below(60) }, () => below(256));
      await ask(port, below(5) === 0 ? noise : `${text}\r\n`);
    }
    assert.match(await ask(port, request('/healthz')), /200 OK/);
  });
});

test('a metric that cannot be made is an error of its request alone', async () => {
  const sessions = new Proxy(new Set<Session>(), {
    get() {
      throw new Error('thrown on purpose');
    },
  });
  await metricsOf({ sessions }, async (port) => {
    assert.match(await ask(port, request('/metrics')), /^HTTP\/1.1 500.*thrown on purpose/s);
    assert.match(await ask(port, request('/healthz')), /200 OK/);
  });
});

test('chunks that came from the cache and from the store, with an index only', async () => {
  const tier = (chunks: number) => ({ chunks, bytes: 4096 * chunks, seconds: 2, latencies: [chunks, 1] });
  const storage = {
    ...{ cache: tier(3), store: tier(5), failed: 7, keptBytes: 8, fetching: 9, waiting: 10 },
    ...{ evicted: 11, damaged: 12, cacheBytes: 13 },
  };
  await metricsOf({ storage }, async (port) => {
    const text = await ask(port, request('/metrics'));
    for (const line of [
      'uffd_chunks_total{tier="cache"} 3',
      'uffd_chunks_total{tier="store"} 5',
      'uffd_chunk_bytes_total{tier="store"} 20480',
      'uffd_chunk_latency_seconds_count{tier="store"} 6',
      'uffd_chunk_latency_seconds_sum{tier="cache"} 2',
      'uffd_chunk_failures_total 7',
      'uffd_chunk_kept_bytes_total 8',
      'uffd_chunks_fetching 9',
      'uffd_chunks_waiting 10',
      'uffd_cache_evicted_total 11',
      'uffd_cache_damaged_total 12',
      'uffd_cache_bytes 13',
    ])
      assert.ok(text.includes(`\n${line}\n`), line);
  });
  await metricsOf({}, async (port) => {
    assert.ok(!(await ask(port, request('/metrics'))).includes('uffd_chunk'));
  });
});

test('what guests share, with --share-pages only', async () => {
  const tally = new Tally();
  for (const [count, bytes] of [
    ['copied', 40],
    ['hole', 3],
    ['prefetched', 10],
    ['shared', 45],
  ] as const)
    tally.add(count, bytes);
  const sessions = new Set([{ tally, resident: 0 } as unknown as Session]);
  await metricsOf({ sessions, sharing: { guests: 2, memoryBytes: 8192 } }, async (port) => {
    const text = await ask(port, request('/metrics'));
    for (const line of [
      'uffd_sharing_guests 2',
      'uffd_shared_memory_bytes 8192',
      'uffd_shared_bytes_total 45',
      'uffd_unshared_bytes_total 8',
    ])
      assert.ok(text.includes(`\n${line}\n`), line);
  });
  await metricsOf({}, async (port) => {
    assert.ok(!(await ask(port, request('/metrics'))).includes('shared'));
  });
});

test('not ready while there are problems, with their reasons; alive all the while', async () => {
  const problems = new Map([['vm 3', 'no 2 MiB page is free']]);
  await metricsOf({ problems }, async (port) => {
    assert.match(await ask(port, request('/readyz')), /^HTTP\/1.1 503.*\r\nvm 3: no 2 MiB page is free\n$/s);
    assert.match(await ask(port, request('/healthz')), /200 OK/);
    assert.match(await ask(port, request('/metrics')), /\nuffd_problems 1\n/);
    problems.clear();
    assert.match(await ask(port, request('/readyz')), /200 OK.*ok\n/s);
  });
});

test('idle connections, and readers that do not read: the oldest give way, monitors and others are served', async () => {
  const port = await freePort();
  await served(['--metrics', `${port}`], async (it) => {
    // With so few descriptors, a monitor would have to wait if all these connections stayed open.
    const { status, stderr } = spawnSync('prlimit', ['--pid', `${it.child.pid}`, '--nofile=256:256']);
    if (status !== 0) skip(`prlimit: ${stderr}`);
    let closed = 0;
    const sockets: Socket[] = Array.from({ length: 400 }, (_, index) => {
      const socket = connect(port, '127.0.0.1', () => {
        if (index % 2 === 0) socket.write(request('/metrics'));
        // A paused socket does not see that the server has closed its half, because of the unread data before that.
        if (index % 4 === 0) socket.pause();
      });
      return socket
        .on('error', () => {})
        .on('close', () => closed++)
        .resume();
    });
    try {
      await until(() => closed >= 250);
      await touchAll(it);
      assert.match(await ask(port, request('/healthz')), /200 OK/);
      assert.not.ok(it.log().some(({ msg }) => msg === 'monitors wait'));
    } finally {
      for (const socket of sockets) socket.destroy();
    }
  });
});

test('no descriptor is left for a connection: the server lives on, and answers when there is one', async () => {
  const port = await freePort();
  await served(['--metrics', `${port}`], async (it) => {
    const limit = (most: number): void => {
      const { status, stderr } = spawnSync('prlimit', ['--pid', `${it.child.pid}`, `--nofile=${most}:4096`]);
      if (status !== 0) skip(`prlimit: ${stderr}`);
    };
    // The thread for the first guest has opened all descriptors that it needs.
    await atRest(it.child.pid as number);
    // libuv keeps one descriptor to refuse connections with. With this limit it cannot even use that one.
    limit(1);
    const asked = Array.from({ length: 5 }, () => ask(port, request('/healthz')));
    await sleep(500);
    limit(4096);
    for (const answer of await Promise.all(asked)) assert.match(answer, /^$|200 OK/);
    assert.match(await ask(port, request('/healthz')), /200 OK/);
    await touchAll(it);
  });
});

test('the reader of the log is gone: guests are still served', async () => {
  await served([], async (it) => {
    it.child.stderr?.destroy();
    await touchAll(it);
    await touchAll(it);
    it.child.kill('SIGTERM');
    assert.is(await it.ended, 0);
  });
});

test.run();
