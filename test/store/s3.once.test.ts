// S3: a server that checks signatures (moto), and small servers for what it does not have.

import { strict as assert } from 'node:assert';
import { once } from 'node:events';
import { mkdirSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { openStore, type StoreOptions } from '../../src/store/index.js';
import { elementOf, parseListPage } from '../../src/store/s3-list.js';
import { inDirectory, sha256, uffd } from '../cli/support/command.js';
import { suite } from '../support/harness.js';
import { SPARSE_SIZE, writeSparse } from './support/memory.js';
import { BUCKET, withS3 } from './support/s3-server.js';

const test = suite('store/s3');

test('pack, verify, unpack and prune in a bucket; a wrong secret and a missing bucket are told', async () => {
  await withS3(async ({ env }) => {
    await inDirectory(async (folder) => {
      const store = ['--store', `s3://${BUCKET}/some chunks/(1)`];
      const index = `s3://${BUCKET}/indexes/memory.caibx`;
      const run = async (args: string[], more: NodeJS.ProcessEnv = {}) =>
        uffd(args, { cwd: folder, env: { ...env, ...more } });
      const must = async (...args: string[]): Promise<string> => {
        const { code, stdout, stderr } = await run(args);
        assert.equal(code, 0, stderr);
        return stdout;
      };
      writeSparse(join(folder, 'memory'), SPARSE_SIZE);
      const pack = ['pack', 'memory', ...store, '-o', index, '--chunk', '64K', '--json'];
      assert.equal(JSON.parse(await must(...pack)).storedChunks, 5);
      assert.equal(JSON.parse(await must(...pack)).storedChunks, 0);
      assert.match(await must('verify', index, ...store), /^5 chunks: all are there/);
      await must('unpack', index, 'copy', ...store);
      assert.equal(sha256(join(folder, 'copy')), sha256(join(folder, 'memory')));
      assert.match(await must('info', index), /none is recorded/);
      writeSparse(join(folder, 'other'), SPARSE_SIZE, 2);
      await must('pack', 'other', ...store, '--chunk', '64K');
      const pruned = await must('prune', index, ...store, '--grace', '0s');
      assert.match(pruned, /^4 chunks, .* removed; 5 are named/);
      assert.match(await must('verify', index, ...store), /^5 chunks: all are there/);
      const wrong = await run(['verify', index, ...store], { AWS_SECRET_ACCESS_KEY: 'wrong' });
      assert.equal(wrong.code, 1);
      assert.match(wrong.stderr, /^uffd: s3:\/\/snapshots\/indexes\/memory\.caibx: .*SignatureDoesNotMatch/);
      const refused = await run([...pack.slice(0, 2), ...store, '-o', 'new'], {
        AWS_SECRET_ACCESS_KEY: 'wrong',
      });
      assert.equal(refused.code, 1);
      assert.match(refused.stderr, /SignatureDoesNotMatch/);
      const nowhere = await run(['pack', 'memory', '--store', 's3://nowhere/x', '-o', 'new']);
      assert.match(nowhere.stderr, /NoSuchBucket: The specified bucket does not exist/);
      // The same keys from a file.
      mkdirSync(join(folder, '.aws'));
      const { AWS_ACCESS_KEY_ID: id, AWS_SECRET_ACCESS_KEY: secret, ...rest } = env;
      const text = `[default]\naws_access_key_id = none\n[ci]\naws_access_key_id=${id}\naws_secret_access_key = ${secret}\n`;
      writeFileSync(join(folder, '.aws/credentials'), text);
      const profile = await uffd(['info', index, '--profile', 'ci'], {
        cwd: folder,
        env: { ...rest, HOME: folder, AWS_ACCESS_KEY_ID: undefined, AWS_SECRET_ACCESS_KEY: undefined },
      });
      assert.equal(profile.code, 0, profile.stderr);
    });
  });
}, 300_000);

test('an object of a bucket becomes young without being sent', async () => {
  await withS3(async ({ env }) => {
    const before = { ...process.env };
    Object.assign(process.env, env);
    const store = await openStore(`s3://${BUCKET}/some chunks/(1)`, { proxy: 'none' });
    try {
      await store.put('a-key', Buffer.from('bytes'));
      const first = (await store.writtenMs('a-key')) as number;
      // S3 tells whole seconds.
      while ((await store.writtenMs('a-key')) === first) assert.equal(await store.refresh('a-key'), true);
      assert.equal(Buffer.from(await store.get('a-key', 100)).toString(), 'bytes');
      assert.equal(await store.refresh('none'), false);
    } finally {
      store.close();
      for (const name of Object.keys(env)) delete process.env[name];
      Object.assign(process.env, before);
    }
  });
}, 60_000);

type Handler = (request: IncomingMessage, response: ServerResponse) => void;

/** Calls `body` with the URL of a server, and the variables of AWS as given. */
async function withServer(
  handler: Handler,
  variables: Record<string, string>,
  body: (url: string) => Promise<void>,
): Promise<void> {
  const server = createServer(handler);
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const before = { ...process.env };
  for (const name of Object.keys(process.env)) if (name.startsWith('AWS_')) delete process.env[name];
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  Object.assign(process.env, {
    AWS_SHARED_CREDENTIALS_FILE: '/none',
    AWS_CONFIG_FILE: '/none',
    ...variables,
  });
  for (const [name, value] of Object.entries(variables)) process.env[name] = value.replace('URL', url);
  try {
    await body(url);
  } finally {
    for (const name of Object.keys(process.env)) if (name.startsWith('AWS_')) delete process.env[name];
    Object.assign(process.env, before);
    server.close();
    server.closeAllConnections();
  }
}

const KEYS = { AWS_ACCESS_KEY_ID: 'AKID', AWS_SECRET_ACCESS_KEY: 'secret' };
const error = (code: string, more = ''): string =>
  `<?xml version="1.0"?><Error><Code>${code}</Code><Message>It &amp; that</Message>${more}</Error>`;

async function get(url: string, options: StoreOptions = {}): Promise<string> {
  const store = await openStore(`s3://${BUCKET}/p`, { endpoint: url, proxy: 'none', ...options });
  try {
    return Buffer.from(await store.get('key', 1000)).toString();
  } finally {
    store.close();
  }
}

test('credentials of an instance are fetched with a token, and renewed when they expire or are refused', async () => {
  let issued = 0;
  let refusals = 1;
  const used: string[] = [];
  const handler: Handler = ({ method, url = '', headers }, response) => {
    const role = '/latest/meta-data/iam/security-credentials/';
    if (url === '/latest/api/token') {
      assert.equal(method, 'PUT');
      assert.ok(headers['x-aws-ec2-metadata-token-ttl-seconds']);
      response.end('TOKEN');
    } else if (url.startsWith(role)) {
      assert.equal(headers['x-aws-ec2-metadata-token'], 'TOKEN');
      if (url === role) return void response.end('role\n');
      // The second ones have an hour, the others are about to expire.
      const Expiration = new Date(Date.now() + (++issued === 2 ? 3600_000 : 1000)).toISOString();
      const keys = { AccessKeyId: `ID${issued}`, SecretAccessKey: 's', Token: `T${issued}`, Expiration };
      response.end(JSON.stringify(keys));
    } else {
      const id = /Credential=(\w+)\//.exec(headers.authorization ?? '')?.[1] ?? '';
      assert.equal(headers['x-amz-security-token'], id.replace('ID', 'T'));
      used.push(id);
      if (id === 'ID2' && refusals-- > 0) response.writeHead(400).end(error('ExpiredToken'));
      else response.end('right');
    }
  };
  await withServer(handler, { AWS_EC2_METADATA_SERVICE_ENDPOINT: 'URL' }, async (url) => {
    const store = await openStore(`s3://${BUCKET}`, { endpoint: url, proxy: 'none' });
    for (let round = 0; round < 2; round++) await store.get('key', 100);
    store.close();
    assert.deepEqual(used, ['ID1', 'ID2', 'ID3']);
  });
});

test('without credentials the error says what to do; anonymous requests have no signature', async () => {
  const seen: (string | undefined)[] = [];
  const handler: Handler = ({ headers }, response) => {
    seen.push(headers.authorization);
    response.end('right');
  };
  await withServer(handler, { AWS_EC2_METADATA_DISABLED: 'true' }, async (url) => {
    await assert.rejects(get(url), {
      kind: 'refused',
      message: /there are no credentials: set AWS_ACCESS_KEY_ID/,
    });
    assert.equal(await get(url, { anonymous: true }), 'right');
    assert.deepEqual(seen, [undefined]);
  });
});

test('the bucket is in the path or in the host name, the prefix is kept, another region is followed', async () => {
  const seen: string[] = [];
  const handler: Handler = ({ url, headers }, response) => {
    const region = /\/(\w+-\w+-\d)\/s3\//.exec(headers.authorization ?? '')?.[1];
    seen.push(`${headers.host?.replace(/:\d+$/, '')} ${url} ${region}`);
    if (region === 'eu-west-1') response.end('right');
    else response.writeHead(400).end(error('AuthorizationHeaderMalformed', '<Region>eu-west-1</Region>'));
  };
  await withServer(handler, KEYS, async (url) => {
    assert.equal(await get(url), 'right');
    // Names below localhost are the loopback interface.
    const named = url.replace('127.0.0.1', 'localhost');
    assert.equal(await get(named, { pathStyle: false, region: 'eu-west-1' }), 'right');
    assert.deepEqual(seen, [
      '127.0.0.1 /snapshots/p/key us-east-1',
      '127.0.0.1 /snapshots/p/key eu-west-1',
      'snapshots.localhost /p/key eu-west-1',
    ]);
  });
});

test('errors of S3: what passes is tried again, 403 may mean missing, the text is told', async () => {
  const answers: [number, string][] = [];
  const handler: Handler = ({ method }, response) => {
    const [status, body] = answers.shift() ?? [200, 'right'];
    response.writeHead(status).end(method === 'HEAD' ? undefined : body);
  };
  await withServer(handler, KEYS, async (url) => {
    answers.push([503, error('SlowDown')], [400, error('RequestTimeout')], [500, error('InternalError')]);
    assert.equal(await get(url), 'right');
    answers.push([403, error('AccessDenied')]);
    await assert.rejects(get(url), { kind: 'refused', message: /answered AccessDenied: It & that$/ });
    answers.push([404, error('NoSuchKey')]);
    await assert.rejects(get(url), { kind: 'missing', message: /answered NoSuchKey/ });
    const store = await openStore(`s3://${BUCKET}`, { endpoint: url, proxy: 'none' });
    answers.push([403, '']);
    assert.equal(await store.has('key'), false);
    assert.equal(await store.has('key'), true);
    // S3 can answer 200 to a copy, and find out later that it cannot copy.
    answers.push(
      [200, error('InternalError')],
      [403, error('AccessDenied')],
      [200, '<CopyObjectResult xmlns="x">'],
    );
    assert.equal(await store.refresh('key'), false);
    assert.equal(await store.refresh('key'), false);
    assert.equal(await store.refresh('key'), true);
    store.close();
  });
});

test('a list in pages; keys with any characters; what is no list is refused', async () => {
  const page = (keys: string[], next?: string): string =>
    `<ListBucketResult xmlns="x"><EncodingType>url</EncodingType><IsTruncated>${next !== undefined}</IsTruncated>` +
    (next === undefined ? '' : `<NextContinuationToken>${next}</NextContinuationToken>`) +
    keys
      .map(
        (key) =>
          `<Contents><Key>p/${key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><Size>5</Size></Contents>`,
      )
      .join('') +
    '</ListBucketResult>';
  const handler: Handler = ({ url = '' }, response) => {
    const query = new URL(url, 'http://x').searchParams;
    assert.equal(query.get('prefix'), 'p/');
    response.end(
      query.get('continuation-token') === 'a+b&' ? page(['c%2Bd+e']) : page(['one', 'two'], 'a+b&amp;'),
    );
  };
  await withServer(handler, KEYS, async (url) => {
    const store = await openStore(`s3://${BUCKET}/p`, { endpoint: url, proxy: 'none' });
    const found: string[] = [];
    for await (const { key, bytes, modifiedMs } of store.list()) {
      assert.deepEqual([bytes, modifiedMs], [5, Date.UTC(2026, 0)]);
      found.push(key);
    }
    assert.deepEqual(found, ['one', 'two', 'c+d e']);
    store.close();
  });
  for (const wrong of ['', '<html></html>', page(['one']).slice(0, -10), page(['one']).replace('>5<', '>x<')])
    assert.throws(() => parseListPage(wrong, ''), { message: /no list of objects/ });
  assert.equal(elementOf('<A>&lt;&#65;&#x42;&other;</A>', 'A'), '<AB&other;');
});

test('the bandwidth limit is kept', async () => {
  const handler: Handler = (_, response) => void response.end(Buffer.alloc(900));
  await withServer(handler, KEYS, async (url) => {
    const store = await openStore(`s3://${BUCKET}`, { endpoint: url, proxy: 'none', bytesPerSecond: 9000 });
    const begun = performance.now();
    for (let round = 0; round < 4; round++) await store.get('key', 1000);
    // The first three take 300 ms; a timer may be a little early.
    assert.ok(performance.now() - begun > 290);
    store.close();
  });
});

test.run();
