// `uffd demo --pager` reads a file or a URL through little memory, and finds out whether every byte is right.

import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import type { PagerReport, Phase } from '../../src/cli/demo/pager-report.js';
import { suite } from '../support/harness.js';
import { type Ended, fileOf, inDirectory, needKernel, uffd } from './support/command.js';

const test = suite('cli/demo-pager');

const PHASE: Record<keyof Phase, string> = {
  readBytes: 'number',
  durationMs: 'number',
  faults: 'number',
  hits: 'number',
  fetchedBytes: 'number',
  aheadBytes: 'number',
  aheadUsedBytes: 'number',
  evictedBytes: 'number',
};
const FIELDS: Record<keyof PagerReport, string> = {
  source: 'string',
  resident: 'number',
  threads: 'number',
  seed: 'number',
  bytes: 'number',
  blockSize: 'number',
  userModeOnly: 'boolean',
  random: 'object',
  inOrder: 'object',
  residentMostBytes: 'number',
  failures: 'number',
  comparedWith: 'string',
  equal: 'boolean',
  wrong: 'object',
  wrongCount: 'number',
  pieceBytes: 'number',
};
const MIB = 2 ** 20;

/** Calls `body` with the URL of these bytes. `whole` is the body of an answer to a request without a range. */
async function served(bytes: Buffer, whole: Buffer, body: (url: string) => Promise<void>): Promise<void> {
  const server = createServer((request: IncomingMessage, response: ServerResponse) => {
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
    if (!range) {
      response.end(whole);
      return;
    }
    const [first, last] = [Number(range[1]), Math.min(Number(range[2]), bytes.length - 1)];
    response.writeHead(206, {
      etag: '"1"',
      'content-range': `bytes ${first}-${last}/${bytes.length}`,
      'content-length': last - first + 1,
    });
    response.end(bytes.subarray(first, last + 1));
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  try {
    await body(`http://127.0.0.1:${(server.address() as AddressInfo).port}/file`);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

async function report(args: readonly string[]): Promise<PagerReport> {
  const { code, stdout, stderr } = await uffd(['demo', '--json', ...args]);
  assert.is(code, 0, stderr);
  assert.is(stderr, '');
  return JSON.parse(stdout);
}

function assertPlain({ stdout, stderr }: Ended): void {
  for (const drawn of ['\u001b', '█', '░', '│', '\r'])
    assert.not((stdout + stderr).includes(drawn), stdout + stderr);
}

test('a file larger than what may be resident: every byte is right, and the limit holds', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const size = 9 * MIB + 5;
    const file = fileOf(directory, 'file', randomBytes(size));
    for (const threads of [1, 4]) {
      const found = await report(['--pager', file, '--resident', '2M', '--threads', `${threads}`]);
      assert.equal(
        [found.bytes, found.resident, found.threads, found.comparedWith],
        [size, 2 * MIB, threads, 'read(2)'],
      );
      assert.ok(found.equal && found.wrongCount === 0);
      assert.ok(found.residentMostBytes > 0 && found.residentMostBytes <= 2 * MIB);
      assert.is(found.inOrder.readBytes, size);
      assert.ok(found.random.evictedBytes > 0 && found.inOrder.evictedBytes > 0);
    }
  });
}, 120_000);

test('JSON: these fields and no others, of these types; the help names them', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const file = fileOf(directory, 'file', randomBytes(100_000));
    const found = await report(['--pager', file, '--seed', '3']);
    assert.is(found.seed, 3);
    assert.equal(Object.keys(found).sort(), Object.keys(FIELDS).sort());
    const help = (await uffd(['demo', '--help'])).stdout.split(/[\s(),]+/);
    for (const [field, type] of Object.entries(FIELDS)) {
      assert.is(typeof found[field as keyof PagerReport], type, field);
      assert.ok(help.includes(field), field);
    }
    for (const phase of [found.random, found.inOrder]) {
      assert.equal(Object.keys(phase).sort(), Object.keys(PHASE).sort());
      for (const [field, value] of Object.entries(phase)) {
        assert.ok(Number.isFinite(value) && value >= 0, field);
        assert.ok(help.includes(field), field);
      }
    }
  });
});

test('into pipes go plain lines: the counts of each phase, then the table with the verdict', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    const file = fileOf(directory, 'file', randomBytes(3 * MIB));
    const ended = await uffd(['demo', '--pager', file, '--resident', '1M', '--seed', '7']);
    assert.is(ended.code, 0, ended.stderr);
    assertPlain(ended);
    assert.match(ended.stderr, /3\.0 MiB, of which 1\.0 MiB may be resident; 2 threads reading, seed 7$/m);
    const counts = /[\d.]+ MiB\/s, .* resident, [\d,]+ faults, .* hits, .* of the read-ahead used/;
    assert.match(ended.stderr, new RegExp(`^random: 3\\.0 MiB of 3\\.0 MiB, ${counts.source}$`, 'm'));
    assert.match(ended.stderr, new RegExp(`^in order: 3\\.0 MiB of 3\\.0 MiB, ${counts.source}$`, 'm'));
    assert.match(ended.stdout, /^verdict +every byte is right \(compared with read\(2\)\)$/m);
  });
});

test('a URL: its bytes are compared with a second download, and a password is not printed', async () => {
  needKernel();
  const bytes = randomBytes(3 * MIB + 1);
  await served(bytes, bytes, async (url) => {
    const ended = await uffd(['demo', '--pager', url.replace('//', '//me:secret@'), '--resident', '1M']);
    assert.is(ended.code, 0, ended.stderr);
    assertPlain(ended);
    assert.match(ended.stdout, /^verdict +every byte is right \(compared with a second download\)$/m);
    assert.not.match(ended.stdout + ended.stderr, /secret/);
  });
});

test('a byte that is not the same in the second download is found, and the exit code is 1', async () => {
  needKernel();
  const bytes = randomBytes(3 * MIB + 1);
  const other = Buffer.from(bytes);
  other[2 * MIB] = (other[2 * MIB] as number) ^ 1;
  await served(bytes, other, async (url) => {
    const { code, stdout } = await uffd(['demo', '--pager', url, '--resident', '1M']);
    assert.is(code, 1);
    assert.match(stdout, /^verdict +NOT RIGHT: 1 piece of 64\.0 KiB differ, the first at byte 2,097,152$/m);
  });
  await served(bytes, bytes.subarray(1), async (url) => {
    const { code, stdout, stderr } = await uffd(['demo', '--pager', url, '--resident', '1M']);
    assert.equal([code, stdout], [1, '']);
    assert.match(stderr, /^uffd: the second download has 3145728 bytes, and the pager 3145729$/m);
  });
});

test('a source that cannot be opened is one line on stderr, and the exit code is 1', async () => {
  needKernel();
  await inDirectory(async (directory) => {
    for (const [source, message] of [
      [join(directory, 'missing'), /ENOENT/],
      [directory, /neither a file nor a block device/],
      ['http://', /url/],
    ] as const) {
      const { code, stdout, stderr } = await uffd(['demo', '--pager', source]);
      assert.equal([code, stdout], [1, '']);
      assert.match(stderr, message);
      assert.match(stderr, /^uffd: .*\n$/);
    }
  });
});

test('Ctrl-C ends it, although threads wait for a server that does not answer', async () => {
  needKernel();
  let asked = 0;
  const server = createServer((_, response) => {
    if (asked++ > 0) return;
    response.writeHead(206, { etag: '"1"', 'content-range': 'bytes 0-0/9999999', 'content-length': 1 });
    response.end('x');
  });
  await once(server.listen(0, '127.0.0.1'), 'listening');
  try {
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/file`;
    const { code, stderr } = await uffd(['demo', '--pager', url], {
      started: async (pid, saw) => {
        await saw(/seed \d+\n/);
        while (asked < 2) await once(server, 'request');
        process.kill(pid, 'SIGINT');
      },
    });
    assert.is(code, 130, stderr);
    assert.match(stderr, /^uffd: interrupted$/m);
  } finally {
    server.closeAllConnections();
    server.close();
  }
});

test.run();
