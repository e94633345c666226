// A remote file: the bytes are right, failures that pass are retried from the byte that was reached, and no byte of a
// wrong or changed file enters memory.

import { strict as assert } from 'node:assert';
import { setImmediate as turn } from 'node:timers/promises';
import { retryAfter } from '../../src/pager/http-answer.js';
import { httpSource, type OpenHttpSource, openHttpSource } from '../../src/pager/http-source.js';
import { generator, seed, suite } from '../support/harness.js';
import {
  type Answer,
  assertFails,
  assertNotOpened,
  Memory,
  NEVER,
  readBytes,
  someBytes,
  status,
  withServer,
  withSource,
} from './support/http-server.js';

const test = suite('pager/http-source');
const LENGTH = 300_000;
/** After this long without a byte, a read goes on: longer than this process may be kept from running. */
const STALLED_MS = 2000;

/** For reads that must not receive a byte. */
function unexpected(): void {
  assert.fail('a byte arrived');
}

test('a description is plain data, and wrong arguments are named', () => {
  const options = { headers: { 'X-One': '1' }, ca: [], attempts: 2, proxy: 'none' };
  const source = httpSource(new URL('http://host/file?a=b#part'), options);
  assert.deepEqual(source, { kind: 'http', url: 'http://host/file?a=b', options });
  assert.deepEqual(structuredClone(source), source);
  options.headers['X-One'] = '2';
  assert.equal(source.options.headers?.['X-One'], '1');
  const wrong: [url: unknown, options: unknown, message: RegExp][] = [
    [5, {}, /^url must be a URL; it is number/],
    ['file', {}, /^url must be an absolute URL/],
    ['ftp://host/', {}, /^url's protocol must be one of http:, https:; it is ftp:/],
    ['http://%ff:x@host/', {}, /^url's user name/],
    ['http://host/', null, /^options must be an object/],
    ['http://host/', { headers: { 'a b': '' } }, /Header name/],
    ['http://host/', { headers: { a: 'b\nc' } }, /Invalid character/],
    ['http://host/', { headers: { a: 5 } }, /^headers: a must be a string; it is number/],
    ['http://host/', { headers: { Range: 'bytes=0-1' } }, /^headers must not contain Range/],
    [
      'http://host/',
      { headers: { 'Proxy-Authorization': 'x' } },
      /put the user name and password into proxy/,
    ],
    ['http://host/', { ca: '/etc/ca.pem' }, /^ca must be certificates in PEM format/],
    [
      'http://host/',
      { ca: ['-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----'] },
      /^ca must be certificates/,
    ],
    ['http://host/', { ca: 5 }, /^ca must be a string or an array of strings; it is number/],
    ['http://host/', { proxy: 'socks5://host' }, /^proxy must be .* it is socks5:/],
    ['http://host/', { timeoutMs: 0 }, /^timeoutMs must be an integer from 1/],
    ['http://host/', { attempts: 0 }, /^attempts must be/],
    ['http://host/', { redirects: -1 }, /^redirects must be/],
    ['http://host/', { parallel: 1.5 }, /^parallel must be/],
  ];
  for (const [url, given, message] of wrong)
    assert.throws(() => httpSource(url as string, given as object), { message });
});

test('sizes and bytes are right over many random ranges, several at a time', async () => {
  const random = generator(seed());
  await withServer(LENGTH, async (server) => {
    await withSource(server.url(), { parallel: 4 }, async (source) => {
      assert.deepEqual([source.size, source.parallel, source.pinned], [LENGTH, 4, 'etag']);
      const one = async (): Promise<void> => {
        const offset = random(LENGTH);
        const length = random(LENGTH - offset + 1);
        const bytes = await (length === 0
          ? source.read(offset, new Uint8Array(0), NEVER, unexpected)
          : readBytes(source, offset, length));
        assert.ok(server.file.subarray(offset, offset + length).equals(bytes ?? Buffer.alloc(0)));
      };
      for (let round = 0; round < 40; round++) await Promise.all([one(), one(), one(), one()]);
      await readBytes(source, LENGTH - 1, 1);
      await assert.rejects(
        async () => source.read(LENGTH - 1, new Uint8Array(2), NEVER, () => {}),
        RangeError,
      );
      assert.ok(server.sockets.size <= 4, 'no more connections than requests at once');
      for (const { headers } of server.requests) assert.equal(headers['accept-encoding'], 'identity');
      for (const { headers } of server.requests.slice(1)) assert.equal(headers['if-match'], '"first"');
    });
  });
});

test('bytes and headers are right in whatever pieces they arrive', async () => {
  const random = generator(seed());
  await withServer(LENGTH, async (server) => {
    await withSource(server.url(), {}, async (source) => {
      // Headers and body in pieces of 1 to `most` bytes, each in a turn of the event loop of its own.
      const inPieces =
        (most: number): Answer =>
        (request, _, range) => {
          const headers = Object.entries({ ...server.headers(range), connection: 'close' });
          const head = [
            'HTTP/1.1 206 Partial Content',
            ...headers.map(([name, value]) => `${name}: ${value}`),
          ];
          const body = server.file.subarray(range.first, range.last + 1);
          const all = Buffer.concat([Buffer.from(`${head.join('\r\n')}\r\n\r\n`), body]);
          let sent = 0;
          const more = (): void => {
            if (sent >= all.length) return void request.socket.end();
            const piece = all.subarray(sent, sent + 1 + random(most));
            sent += piece.length;
            request.socket.write(piece, () => setImmediate(more));
          };
          more();
        };
      const chunked: Answer = (_, response, range) => {
        const { 'content-length': __, ...headers } = server.headers(range);
        response.writeHead(206, headers);
        for (let at = range.first; at <= range.last; ) {
          const piece = server.file.subarray(at, Math.min(at + 1 + random(50_000), range.last + 1));
          at += piece.length;
          response.write(piece);
        }
        response.end();
      };
      for (let round = 0; round < 5; round++) {
        // A large read before leaves buffers that are used again.
        assert.ok((await readBytes(source, 0, LENGTH)).equals(server.file));
        const answer: Answer = (request, response, range) => {
          const length = range.last - range.first + 1;
          const kind = length < 1000 ? inPieces(3) : length < LENGTH ? inPieces(100) : inPieces(30_000);
          kind(request, response, range);
        };
        server.answers.push(answer, answer, chunked, answer);
        const reads = [400, 3000, LENGTH - 1, LENGTH].map((length) => readBytes(source, 0, length));
        for (const bytes of await Promise.all(reads))
          assert.ok(bytes.equals(server.file.subarray(0, bytes.length)));
      }
    });
  });
});

test('the strongest validator is pinned', async () => {
  const date = 'Mon, 30 Nov 2026 10:00:00 GMT';
  await withServer(100, async (server) => {
    Object.assign(server, { etag: 'W/"weak"', modified: date });
    await withSource(server.url(), {}, async (source) => {
      assert.equal(source.pinned, 'last-modified');
      await readBytes(source, 5, 10);
      assert.equal(server.requests.at(-1)?.headers['if-unmodified-since'], date);
      server.modified = 'Mon, 30 Nov 2026 10:00:01 GMT';
      await assertFails(readBytes(source, 0, 5), /has changed since it was opened/, true);
    });
    Object.assign(server, { etag: 'W/"one"', modified: undefined });
    await withSource(server.url(), {}, async (source) => {
      assert.equal(source.pinned, 'size');
      server.etag = undefined;
      await readBytes(source, 5, 10);
      server.etag = 'W/"two"';
      await assertFails(readBytes(source, 0, 5), /has changed since it was opened/, true);
    });
    Object.assign(server, { etag: undefined, modified: undefined });
    await withSource(server.url(), {}, async (source) => {
      assert.equal(source.pinned, 'size');
      server.file = someBytes(101);
      await assertFails(readBytes(source, 0, 5), /has changed since it was opened/, true);
    });
  });
});

/** Answers with a status, and the message that opening must fail with. */
const REFUSALS: readonly [answer: Answer, message: RegExp][] = [
  [status(401), /the server answered 401 Unauthorized$/],
  [status(403), /the server answered 403 Forbidden$/],
  [status(404), /the server answered 404 Not Found$/],
  [status(416), /the server answered 416 Range Not Satisfiable$/],
  [status(416, { 'content-range': 'bytes */0' }), /the file is empty/],
  [status(304), /the server answered 304 Not Modified$/],
  [(_, response) => void response.writeHead(200, { 'content-length': 0 }).end(), /the file is empty/],
];

test('what the server refuses after it was opened may be read later', async () => {
  await withServer(100, async (server) => {
    await withSource(server.url(), { attempts: 1 }, async (source) => {
      for (const code of [401, 403, 404, 410]) {
        server.answers.push(status(code));
        await assertFails(readBytes(source, 0, 10), new RegExp(`the server answered ${code}`), false);
      }
      server.answers.push(
        (_, response) => void response.writeHead(200, { 'content-length': 100 }).end(server.file),
      );
      await assertFails(readBytes(source, 0, 10), /ignored the Range header/, false);
      assert.ok((await readBytes(source, 0, 10)).equals(server.file.subarray(0, 10)));
    });
  });
});

test('a refusal is permanent, and the message has the URL without secrets', async () => {
  await withServer(100, async (server) => {
    for (const [answer, message] of REFUSALS) {
      server.answers.push(answer);
      const url = server.url('/file?secret=1').replace('//', '//user:password@');
      const whole = new RegExp(`^cannot read http://127\\.0\\.0\\.1:\\d+/file: ${message.source}`);
      await assertNotOpened(url, {}, whole, true);
    }
    assert.equal(server.requests.length, REFUSALS.length);
    const expected = `Basic ${Buffer.from('user:password').toString('base64')}`;
    for (const { headers } of server.requests) assert.equal(headers.authorization, expected);
  });
});

test('a server without ranges is refused, and its body is not read', async () => {
  await withServer(100, async (server) => {
    const ended = new Promise<void>((resolve) => {
      server.answers.push((_, response) => {
        response.on('close', resolve);
        response.writeHead(200, { 'content-length': 2 ** 40 });
        response.write(Buffer.alloc(1000));
      });
    });
    await assertNotOpened(
      server.url(),
      {},
      /ignored the Range header and answered 200 OK; use a server/,
      true,
    );
    await ended;
  });
});

/** Wrong answers to a request for bytes 10 to 59 of 100, and why the read fails. */
const WRONG: readonly [headers: Record<string, string | undefined>, message: RegExp, permanent: boolean][] = [
  [{ 'content-range': undefined }, /answered bytes 10-59 with Content-Range: ""/, true],
  [{ 'content-range': 'bytes 0-49/100' }, /answered bytes 10-59 with Content-Range: "bytes 0-49\/100"/, true],
  [{ 'content-range': 'bytes 10-58/100', 'content-length': undefined }, /answered bytes 10-59 with/, true],
  [{ 'content-range': 'bytes 10-59/200' }, /has changed since it was opened/, true],
  [{ 'content-range': 'bytes 10-59/*' }, /does not send the size/, true],
  [{ 'content-length': '49' }, /announced "49" bytes for a range of 50/, false],
  [{ 'content-length': '51' }, /announced "51" bytes for a range of 50/, true],
  [{ 'content-type': 'multipart/byteranges; boundary=x' }, /with several parts/, true],
  [{ 'content-encoding': 'gzip' }, /compressed the answer \(Content-Encoding: "gzip"\)/, true],
  [{ etag: '"second"' }, /has changed since it was opened/, true],
  [{ etag: undefined }, /has changed since it was opened/, true],
];

test('wrong headers of an answer are found before a byte of it is used', async () => {
  await withServer(100, async (server) => {
    await withSource(server.url(), { attempts: 1 }, async (source) => {
      for (const [headers, message, permanent] of WRONG) {
        const memory = new Memory(50);
        server.answers.push((_, response, range) => {
          // Node sends at most as many bytes as it announces.
          response.strictContentLength = false;
          server.serve(response, range, headers);
        });
        const read = source.read(10, memory.into, NEVER, unexpected);
        await assertFails(read, message, permanent);
        assert.equal(memory.filled(server.file, 10), 0);
      }
      assert.ok((await readBytes(source, 10, 50)).equals(server.file.subarray(10, 60)));
    });
  });
});

test('a body that is longer than its range does not enter memory; the rest of a shorter one is requested', async () => {
  await withServer(LENGTH, async (server) => {
    await withSource(server.url(), { attempts: 2 }, async (source) => {
      const memory = new Memory(1000);
      const chunked =
        (bytes: number): Answer =>
        (_, response, range) => {
          const { 'content-length': __, ...headers } = server.headers(range);
          response.writeHead(206, headers);
          response.end(server.file.subarray(range.first, range.first + bytes));
        };
      server.answers.push(chunked(1500));
      await assertFails(
        source.read(10, memory.into, NEVER, () => {}),
        /sent more bytes than it announced/,
        true,
      );
      memory.assertGuards();
      server.answers.push(chunked(400));
      assert.ok((await readBytes(source, 10, 1000)).equals(server.file.subarray(10, 1010)));
      assert.equal(server.requests.at(-1)?.headers.range, 'bytes=410-1009');
      server.answers.push(chunked(400), chunked(100));
      const failed = /the body ended 500 bytes early \(attempt 2 of 2\)/;
      await assertFails(
        source.read(10, new Memory(1000).into, NEVER, () => {}),
        failed,
        false,
      );
    });
  });
});

test('a connection that is cut, and one that stalls, go on from the byte that was reached', async () => {
  await withServer(LENGTH, async (server) => {
    await withSource(server.url(), { timeoutMs: STALLED_MS }, async (source) => {
      server.answers.push(
        (_, response, range) => server.serveSome(response, range, 70_000, () => response.socket?.destroy()),
        (_, response, range) => server.serveSome(response, range, 80_000, () => {}),
        // No answer, and no connection.
        () => {},
        (request) => void request.socket.destroy(),
      );
      const before = server.requests.length;
      assert.ok((await readBytes(source, 5, LENGTH - 5)).equals(server.file.subarray(5)));
      const starts = server.requests
        .slice(before)
        .map(({ headers }) => Number(/\d+/.exec(headers.range ?? '')?.[0]));
      assert.deepEqual(starts, [5, 70_005, 150_005, 150_005, 150_005]);
    });
  });
});

test('after the last attempt, the error says what happened, and a later read works', async () => {
  await withServer(100, async (server) => {
    const assertFailing = async (
      source: OpenHttpSource,
      failing: readonly [answer: Answer, message: RegExp][],
    ): Promise<void> => {
      for (const [answer, message] of failing) {
        server.answers.push(answer, answer);
        await assertFails(readBytes(source, 0, 50), message, false);
        assert.equal(server.answers.length, 0);
      }
      await readBytes(source, 0, 50);
    };
    await withSource(server.url(), { attempts: 2 }, async (source) => {
      await assertFailing(source, [
        [status(500), /the server answered 500 Internal Server Error \(attempt 2 of 2\)$/],
        [status(408), /the server answered 408 Request Timeout/],
        [(request) => void request.socket.destroy(), /the connection was (closed|reset)/],
        [(request) => void request.socket.resetAndDestroy(), /the connection was (closed|reset)/],
        [(request) => void request.socket.end('nonsense\r\n\r\n'), /does not speak HTTP|not match the HTTP/],
      ]);
    });
    await withSource(server.url(), { attempts: 2, timeoutMs: STALLED_MS }, async (source) => {
      await assertFailing(source, [
        [() => {}, /the server did not answer in time/],
        [(_, response, range) => server.serveSome(response, range, 5, () => {}), /no further byte/],
      ]);
    });
  });
});

test('a server that cannot be connected to fails after the last attempt', async () => {
  let url = '';
  await withServer(100, async (server) => {
    url = server.url();
  });
  await assertNotOpened(url, { attempts: 2 }, /the connection was refused \(attempt 2 of 2\)$/, false);
});

test('500 and 429 are retried, also while opening, and Retry-After is respected', async () => {
  await withServer(100, async (server) => {
    server.answers.push(status(500), status(503));
    await withSource(server.url(), {}, async (source) => {
      assert.equal(server.requests.length, 3);
      server.answers.push(status(500), status(429, { 'retry-after': '1' }));
      const begun = performance.now();
      assert.ok((await readBytes(source, 0, 100)).equals(server.file));
      // Timers may fire up to 1 ms early.
      assert.ok(performance.now() - begun >= 999);
    });
  });
});

test('Retry-After is a number of seconds or a date, and at most a minute', () => {
  const now = Date.parse('Mon, 30 Nov 2026 10:00:00 GMT');
  const after = (value?: string): number => retryAfter({ 'retry-after': value }, now);
  assert.equal(after('7'), 7000);
  assert.equal(after('3600'), 60_000);
  assert.equal(after('Mon, 30 Nov 2026 10:00:30 GMT'), 30_000);
  assert.equal(after('Mon, 30 Nov 2026 11:00:00 GMT'), 60_000);
  assert.equal(after('Mon, 30 Nov 2026 09:00:00 GMT'), 0);
  for (const value of [undefined, '', 'soon', '-5']) assert.equal(after(value), 0);
});

test('if the file changes, a read fails, and no byte of the new file enters memory', async () => {
  await withServer(LENGTH, async (server) => {
    const old = server.file;
    const changed = someBytes(LENGTH, 2);
    await withSource(server.url(), {}, async (source) => {
      const memory = new Memory(LENGTH);
      // The file is replaced after a part of it was sent.
      server.answers.push((_, response, range) => {
        server.serveSome(response, range, 100_000, () => {
          Object.assign(server, { file: changed, etag: '"second"' });
          response.socket?.destroy();
        });
      });
      const read = source.read(0, memory.into, NEVER, () => {});
      await assertFails(read, /: the file has changed since it was opened \(attempt 2 of 5\)$/, true);
      assert.equal(memory.filled(old, 0), 100_000);
      // A server that checks the precondition.
      server.answer = status(412);
      await assertFails(readBytes(source, 0, 10), /: the file has changed since it was opened$/, true);
      server.answer = status(416, { 'content-range': 'bytes */5' });
      await assertFails(readBytes(source, 0, 10), /: the file has changed since it was opened$/, true);
    });
  });
});

test('after an abort, no byte is written', async () => {
  await withServer(LENGTH, async (server) => {
    await withSource(server.url(), {}, async (source) => {
      const memory = new Memory(LENGTH);
      const abort = new AbortController();
      const reason = new Error('enough');
      let ended: Promise<void> | undefined;
      server.answers.push((_, response, range) => {
        ended = new Promise((resolve) => response.on('close', resolve));
        response.writeHead(206, server.headers(range));
        // Goes on until the client ends the connection.
        let sent = 0;
        const more = (): void => {
          if (response.destroyed || sent >= LENGTH) return;
          response.write(server.file.subarray(sent, sent + 1000));
          sent += 1000;
          setImmediate(more);
        };
        more();
      });
      let calls = 0;
      const read = source.read(0, memory.into, abort.signal, (bytes) => {
        calls++;
        if (bytes >= 50_000) abort.abort(reason);
      });
      await assert.rejects(async () => read, reason);
      const [filled, called] = [memory.filled(server.file, 0), calls];
      assert.ok(filled < LENGTH);
      await ended;
      for (let i = 0; i < 20; i++) await turn();
      assert.deepEqual([memory.filled(server.file, 0), calls], [filled, called]);
      await assert.rejects(async () => source.read(0, memory.into, abort.signal, unexpected), reason);
      await readBytes(source, 0, 10);
    });
  });
});

test('an abort ends a pause, a request that is not answered, and opening', async () => {
  await withServer(100, async (server) => {
    const reason = new Error('enough');
    const abortOn = (answer: Answer): AbortSignal => {
      const abort = new AbortController();
      server.answers.push((...given) => {
        answer(...given);
        setTimeout(() => abort.abort(reason), 50);
      });
      return abort.signal;
    };
    const waits: Answer[] = [() => {}, status(503, { 'retry-after': '60' })];
    for (const answer of waits)
      await assert.rejects(openHttpSource(httpSource(server.url()), abortOn(answer)), reason);
    await withSource(server.url(), {}, async (source) => {
      for (const answer of waits)
        await assert.rejects(
          async () => source.read(0, new Uint8Array(9), abortOn(answer), unexpected),
          reason,
        );
    });
  });
});

test('close rejects the reads that are under way, and those that follow', async () => {
  await withServer(100, async (server) => {
    await withSource(server.url(), {}, async (source) => {
      const asked = new Promise<void>((resolve) => server.answers.push(() => resolve()));
      const read = source.read(0, new Uint8Array(9), NEVER, unexpected);
      await asked;
      source.close();
      await assertFails(read, /^http:\/\/127\.0\.0\.1:\d+\/file was closed$/, true);
      await assertFails(source.read(0, new Uint8Array(9), NEVER, unexpected), /was closed$/, true);
      source.close();
      while (server.sockets.size > 0) await turn();
    });
  });
});

test.run();
