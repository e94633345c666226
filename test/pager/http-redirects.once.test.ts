// Redirects of a remote file: where they may lead, what is sent there, and what happens if their target expires.

import { strict as assert } from 'node:assert';
import type { IncomingHttpHeaders } from 'node:http';
import { suite } from '../support/harness.js';
import {
  type Answer,
  assertFails,
  assertNotOpened,
  type FileServer,
  makeCertificates,
  readBytes,
  status,
  withServer,
  withSource,
} from './support/http-server.js';

const test = suite('pager/http-redirects');
const LENGTH = 1000;

/** Two servers with the same file. */
async function withTwo(body: (first: FileServer, second: FileServer) => Promise<void>): Promise<void> {
  await withServer(LENGTH, (first) => withServer(LENGTH, (second) => body(first, second)));
}

function redirect(location: string, code = 302): Answer {
  return status(code, { location });
}

test('a redirect is followed once, and later reads go to its target', async () => {
  await withTwo(async (first, second) => {
    first.answer = redirect(second.url('/moved?a=b', 'localhost'));
    await withSource(first.url(), {}, async (source) => {
      for (let i = 0; i < 3; i++)
        assert.ok((await readBytes(source, i, 99)).equals(second.file.subarray(i, i + 99)));
    });
    assert.equal(first.requests.length, 1);
    assert.deepEqual(
      second.requests.map(({ url }) => url),
      Array(4).fill('/moved?a=b'),
    );
  });
});

test('all kinds of redirects, and relative ones', async () => {
  await withServer(LENGTH, async (server) => {
    const hops = [
      redirect('/b', 301),
      redirect('c', 303),
      redirect('?d', 307),
      redirect(server.url('/e'), 308),
    ];
    server.answers.push(...hops);
    await withSource(server.url('/dir/a'), {}, async () => {});
    assert.deepEqual(
      server.requests.map(({ url }) => url),
      ['/dir/a', '/b', '/c', '/c?d', '/e'],
    );
  });
});

test('credentials are not sent to another origin, nor back from there', async () => {
  await withTwo(async (first, second) => {
    const headers = {
      ...{ Authorization: 'Bearer a', Cookie: 'b=c', 'X-Api-Key': 'd', 'x-amz-security-token': 'e' },
      'X-Plain': 'f',
    };
    first.answers.push(redirect('/same'), redirect(second.url('/other')));
    second.answers.push(redirect(first.url('/back')));
    await withSource(first.url(), { headers }, async (source) => {
      await readBytes(source, 0, 10);
    });
    const sent = ({ headers }: { headers: IncomingHttpHeaders }): unknown[] =>
      ['authorization', 'cookie', 'x-api-key', 'x-amz-security-token', 'x-plain'].map(
        (name) => headers[name],
      );
    const without = [undefined, undefined, undefined, undefined, 'f'];
    assert.deepEqual(first.requests.map(sent), [
      ['Bearer a', 'b=c', 'd', 'e', 'f'],
      ['Bearer a', 'b=c', 'd', 'e', 'f'],
      without,
      without,
    ]);
    assert.deepEqual(second.requests.map(sent), [without]);
  });
});

test('redirects that lead nowhere are permanent errors', async () => {
  await withServer(LENGTH, async (server) => {
    const wrong: readonly [answer: Answer, message: RegExp][] = [
      [redirect('/again'), /redirected more than 3 times$/],
      [status(302), /answered 302 Found without a Location$/],
      [redirect('http://'), /redirected to an invalid URL$/],
      [redirect('file:///etc/passwd'), /redirected to a URL of file:$/],
    ];
    for (const [answer, message] of wrong) {
      server.answer = answer;
      await assertNotOpened(server.url(), { redirects: 3 }, message, true);
    }
    assert.equal(server.requests.length, 4 + 3);
  });
});

test('https may not lead to http, and http may lead to https', async () => {
  const { ca, ...tls } = makeCertificates();
  await withServer(LENGTH, async (plain) => {
    await withServer(
      LENGTH,
      async (encrypted) => {
        plain.answers.push(redirect(encrypted.url()));
        await withSource(plain.url(), { ca }, async (source) => {
          await readBytes(source, 0, 10);
        });
        encrypted.answers.push(redirect(plain.url('/file?secret')));
        const before = plain.requests.length;
        const message = /redirected from https to http:\/\/127\.0\.0\.1:\d+\/file$/;
        await assertNotOpened(encrypted.url(), { ca }, message, true);
        assert.equal(plain.requests.length, before);
      },
      tls,
    );
  });
});

test('if the target of a redirect expires, the original URL is asked for another one, once', async () => {
  await withTwo(async (first, second) => {
    let valid = 1;
    let given = 1;
    first.answer = (...all) => redirect(second.url(`/file?signature=${given}`))(...all);
    second.answer = (request, response, range) => {
      if (request.url === `/file?signature=${valid}`) second.serve(response, range);
      else status(403)(request, response, range);
    };
    await withSource(first.url(), {}, async (source) => {
      await readBytes(source, 0, 10);
      assert.equal(first.requests.length, 1);
      for (const next of [2, 3]) {
        valid = given = next;
        const reads = [0, 1, 2, 3].map((offset) => readBytes(source, offset, 100));
        for (const [offset, bytes] of (await Promise.all(reads)).entries())
          assert.ok(bytes.equals(second.file.subarray(offset, offset + 100)));
      }
      // The new URL is refused too.
      valid = 4;
      const before = first.requests.length;
      await assertFails(readBytes(source, 0, 10), /the server answered 403 Forbidden$/, false);
      assert.equal(first.requests.length, before + 1);
    });
  });
});

test('if the target of a redirect fails, a retry asks the original URL, which may lead to another server', async () => {
  await withTwo(async (first, second) => {
    await withServer(LENGTH, async (third) => {
      first.answers.push(redirect(second.url()), redirect(third.url()));
      await withSource(first.url(), {}, async (source) => {
        second.close();
        await readBytes(source, 0, 100);
        await readBytes(source, 100, 100);
        assert.deepEqual([first.requests.length, third.requests.length], [2, 2]);
      });
    });
  });
});

test('a redirect to another file is noticed', async () => {
  await withTwo(async (first, second) => {
    second.etag = '"other"';
    await withSource(first.url(), {}, async (source) => {
      first.answer = redirect(second.url());
      await assertFails(readBytes(source, 0, 10), /has changed since it was opened$/, true);
    });
  });
});

test.run();
