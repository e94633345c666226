// Sources that fail, lie, stall and change, and programs that die of it: SIGBUS or SIGSEGV, never zeros as data, and
// never silence.

import { strict as assert } from 'node:assert';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { httpSource, moduleSource, type Pager } from '../../src/pager/index.js';
import { inDirectory, needKernel } from '../cli/support/command.js';
import { suite } from '../support/harness.js';
import { type Answer, FileServer } from './support/http-server.js';
import { controlOf, DOES, Does, READS, SOURCE } from './support/pager-source.js';
import { dataOf, KIB, MIB, memfdBytes, program, type Ran, withPager } from './support/pager-tools.js';

const test = suite('pager/failures');

/** Runs a case with a file of 4 MiB. */
async function withFile(what: string, ...more: unknown[]): Promise<Ran> {
  needKernel();
  let ran: Ran | undefined;
  await inDirectory(async (directory) => {
    const path = join(directory, 'data');
    writeFileSync(path, dataOf(4 * MIB));
    ran = await program(what, [path, ...more]);
  });
  return ran as Ran;
}

for (const what of ['truncated', 'truncated-below', 'rewritten']) {
  test(`a file that was ${what} while it is open: SIGBUS, and no zeros`, async () => {
    const { code, stdout, stderr } = await withFile(what);
    assert.equal(stdout, 'before -1\nkept -1\n', stderr);
    assert.equal(code, 'SIGBUS');
    assert.match(
      stderr,
      /^userfaultfd: bytes 2097152 to \d+ cannot be read: .*data .*(changed|shorter).*SIGBUS\n$/,
    );
  });
}

test('memory of a pager that only reads cannot be written to', async () => {
  const { code, stdout } = await withFile('write-to-read-only');
  assert.match(stdout, /^\d+\n$/);
  assert.equal(code, 'SIGSEGV');
});

test("onError 'poison': SIGBUS at once, and told", async () => {
  needKernel();
  const { code, stdout, stderr } = await program('poison');
  assert.equal(stdout, '-1\n');
  assert.equal(code, 'SIGBUS');
  assert.match(stderr, /cannot be read: the test has said so; threads that touch them get SIGBUS\n$/);
});

test('deadlineMs: tried again until then, and poisoned', async () => {
  needKernel();
  const { code, stdout } = await program('deadline');
  assert.equal(stdout, `poisoned ${64 * KIB}, true, true\n`);
  assert.equal(code, 'SIGBUS');
});

test('an error that is permanent poisons', async () => {
  needKernel();
  const { code, stdout, stderr } = await program('permanent');
  assert.equal(stdout, '');
  assert.equal(code, 'SIGBUS');
  assert.match(stderr, /said so for good; threads that touch them get SIGBUS\n$/);
});

test('a function decides each time, until it says poison', async () => {
  needKernel();
  const { code, stdout } = await program('decides');
  assert.equal(stdout, `${MIB} ${64 * KIB} the test has said so\n`.repeat(3));
  assert.equal(code, 'SIGBUS');
});

test('a temporary failure is reported once for each reason, and the bytes are right', async () => {
  needKernel();
  const { code, stdout, stderr } = await program('passes');
  assert.equal(stdout, 'failures true\nread -1\nclosed\n', stderr);
  assert.equal(code, 0);
  const lines = stderr.split('\n').slice(0, -1);
  assert.equal(
    lines.filter((line) => line.includes('cannot be read: the test has said so;')).length,
    1,
    stderr,
  );
  assert.equal(lines.at(-1), 'userfaultfd: the data can be read again');
});

test('a failure whose message differs in a number alone is printed once', async () => {
  needKernel();
  const { code, stdout, stderr } = await program('fails-by-numbers');
  assert.equal(stdout, 'byte 1, reads true\n', stderr);
  assert.equal(code, 0, stderr);
  assert.match(
    stderr,
    /^userfaultfd: bytes 0 to \d+ cannot be read: attempt 1 came to nothing; it is tried again[^\n]*\nuserfaultfd: the data can be read again\n$/,
  );
});

for (const kind of ['file', 'module'] as const) {
  test(`if the recording of a ${kind} cannot be written, one line says so, and the pager goes on`, async () => {
    needKernel();
    await inDirectory(async (directory) => {
      const path = join(directory, 'data');
      writeFileSync(path, dataOf(4 * MIB));
      const { code, stdout, stderr } = await program('record-into-full-disk', [kind === 'file' ? path : '']);
      assert.equal(stdout, 'wrong -1\n', stderr);
      assert.equal(code, 0, stderr);
      assert.match(stderr, /^userfaultfd: the recording of a trace has ended: ENOSPC[^\n]*\n$/);
    });
  });
}

test('memory that was closed: no view, and SIGSEGV for a view of before', async () => {
  needKernel();
  const { code, stdout } = await program('touch-after-close');
  assert.match(stdout, /^\d+\nERR_INVALID_STATE\n$/);
  assert.equal(code, 'SIGSEGV');
});

test('close while a thread is asleep: SIGSEGV, and no zeros', async () => {
  needKernel();
  const { code, stdout } = await program('close-asleep');
  assert.equal(stdout, 'asleep\n');
  assert.equal(code, 'SIGSEGV');
});

test('poison is healed by a later prefetch, and a part that fails leaves the rest alone', async () => {
  needKernel();
  const control = controlOf(2 * MIB);
  const options = { source: moduleSource(SOURCE, control), resident: MIB, onError: 'poison' } as const;
  await withPager(options, 1, async (pager, user) => {
    Atomics.store(control.words, DOES, Does.FAIL);
    await pager.prefetch({ offset: 0, length: 200_000 });
    assert.equal(pager.stats.poisonedBytes, 4 * 64 * KIB);
    assert.equal(memfdBytes(), 0);
    await assert.rejects(
      () => pager.withPinned({ offset: 0, length: 1 }, () => {}),
      /block 0 cannot be read: the test/,
    );
    Atomics.store(control.words, DOES, Does.READ);
    assert.equal(await user?.wrong(300_000, MIB), -1);
    await pager.prefetch({ offset: 0, length: 200_000 });
    assert.equal(await user?.wrong(0, 2 * MIB), -1);
    assert.equal(await pager.withPinned({ offset: 0, length: 9 }, ({ length }) => length), 9);
  });
});

test('what is asked for together is read together, and one part of it that cannot be read spoils no other', async () => {
  needKernel();
  const server = new FileServer(Buffer.from(dataOf(4 * MIB)));
  await server.listen();
  try {
    const options = { source: httpSource(server.url()), resident: 8 * MIB, onError: 'poison' } as const;
    await withPager(options, 1, async (pager, user) => {
      const before = server.requests.length;
      await pager.prefetch({ length: 3 * MIB });
      assert.ok(server.requests.length - before <= 4, `${server.requests.length - before} requests`);
      assert.equal(pager.stats.residentBytes, 3 * MIB);
      // A block in the middle of the rest.
      const bad = 3 * MIB + 5 * pager.blockSize;
      server.answer = (_, response, range) => {
        if (range.first <= bad && bad <= range.last) response.destroy();
        else server.serve(response, range);
      };
      await pager.prefetch({ offset: 3 * MIB });
      assert.equal(pager.stats.poisonedBytes, pager.blockSize);
      assert.equal(await user?.wrong(0, bad), -1);
      assert.equal(await user?.wrong(bad + pager.blockSize, 4 * MIB - bad - pager.blockSize), -1);
    });
  } finally {
    server.close();
  }
});

test('a function that says poison is obeyed, also for read-ahead of which a thread wants the middle', async () => {
  needKernel();
  const control = controlOf(16 * MIB);
  let asked = 0;
  const onError = () => {
    asked++;
    return 'poison' as const;
  };
  await withPager({ source: moduleSource(SOURCE, control), resident: 8 * MIB, onError }, 0, async (pager) => {
    Atomics.store(control.words, DOES, Does.FAIL);
    // Nothing waits for ever: each is poisoned.
    await pager.prefetch({ offset: MIB, length: 3 * MIB });
    assert.equal(pager.stats.poisonedBytes, 3 * MIB);
    assert.ok(asked >= 3);
  });
});

test('reads that stall are aborted when they are not needed any more', async () => {
  needKernel();
  const control = controlOf(64 * MIB);
  await withPager({ source: moduleSource(SOURCE, control), resident: 64 * MIB }, 1, async (pager, user) => {
    Atomics.store(control.words, DOES, Does.STALL);
    const reading = user?.wrong(0, 100_000);
    await user?.asleep();
    while (Atomics.load(control.words, READS) === 0) await sleep(1);
    await sleep(200);
    assert.equal(Atomics.load(control.words, READS), 1, 'a stalled read is not made again');
    Atomics.store(control.words, DOES, Does.READ);
    assert.equal(await reading, -1);
    Atomics.store(control.words, DOES, Does.STALL);
    void pager.prefetch({ offset: MIB, length: MIB }).catch(() => {});
    await sleep(20);
    await user?.end();
    await pager.close();
    assert.ok(pager.closed);
  });
});

// ---- HTTP --------------------------------------------------------------------------------------------------

async function withServed(
  answers: (server: FileServer) => (Answer | undefined)[],
  body: (pager: Pager, server: FileServer, wrong: () => Promise<number | undefined>) => Promise<void>,
): Promise<void> {
  needKernel();
  const server = new FileServer(Buffer.from(dataOf(3 * MIB + 11)));
  await server.listen();
  const options = { source: httpSource(server.url()), resident: MIB, onError: 'retry' } as const;
  try {
    await withPager(options, 1, async (pager, user) => {
      server.answers.push(...answers(server));
      await body(pager, server, async () => user?.wrong(0, pager.size));
    });
  } finally {
    server.close();
  }
}

test('an HTTP server that cuts, stops, and answers 500, 503 and half: the bytes are right', async () => {
  const status =
    (code: number): Answer =>
    (_, response) =>
      void response.writeHead(code).end('no');
  await withServed(
    (server) => [
      (_, response, range) => server.serveSome(response, range, 10_000, () => response.destroy()),
      status(500),
      undefined,
      status(503),
      status(502),
      (request) => void request.socket.destroy(),
      undefined,
      (_, response, range) => server.serveSome(response, range, 70_000, () => response.destroy()),
    ],
    async (pager, _, wrong) => {
      assert.equal(await wrong(), -1);
      assert.equal(pager.stats.poisonedBytes, 0);
    },
  );
});

for (const [name, answer] of [
  ['200 instead of 206', (_, response) => void response.writeHead(200).end(Buffer.alloc(4 * MIB))],
  ['416', (_, response) => void response.writeHead(416).end()],
  ['404', (_, response) => void response.writeHead(404).end()],
] as [string, Answer][]) {
  test(`an HTTP server that answers ${name} from some moment on: no byte of it gets into memory`, async () => {
    await withServed(
      () => [],
      async (pager, server, wrong) => {
        await pager.prefetch({ offset: 0, length: MIB });
        server.answer = answer;
        const asking = pager.prefetch({ offset: 2 * MIB, length: 1 });
        const over = await Promise.race([asking.then(() => true), sleep(1500).then(() => false)]);
        if (!over) server.answer = (_, response, range) => server.serve(response, range);
        await asking;
        // It may have been given up in the very moment at which the server was put right.
        if (pager.stats.poisonedBytes > 0) return;
        assert.ok(!over, 'it was read');
        assert.equal(await wrong(), -1);
      },
    );
  });
}

test('an HTTP file that changes while it is read poisons what is not in memory', async () => {
  await withServed(
    () => [],
    async (pager, server) => {
      await pager.prefetch({ offset: 0, length: 500_000 });
      server.etag = '"second"';
      server.file = Buffer.alloc(server.file.length, 7);
      await pager.prefetch({ offset: 2 * MIB, length: 256 * KIB });
      assert.equal(pager.stats.poisonedBytes, 256 * KIB);
      await pager.withPinned({ offset: 0, length: 500_000 }, (bytes) =>
        assert.ok(!bytes.subarray(0, 9).includes(7)),
      );
    },
  );
});

test('an HTTP file that got another length poisons, too', async () => {
  await withServed(
    () => [],
    async (pager, server) => {
      server.etag = undefined;
      server.file = server.file.subarray(0, 2 * MIB);
      await pager.prefetch({ offset: MIB, length: 1 });
      assert.ok(pager.stats.poisonedBytes > 0);
    },
  );
});

test.run();
