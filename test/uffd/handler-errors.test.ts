// Handlers that answer later, and handlers that fail: no fault is lost, no error is silent, and a process whose threads
// sleep in page faults can end.

import { spawn } from 'node:child_process';
import * as assert from 'uvu/assert';
import { type FaultHandler, type Pagefault, Userfaultfd } from '../../src/index.js';
import { suite } from '../support/harness.js';
import { at, map, needKernel, P, pageOf, until, withUffd } from '../support/real-kernel.js';

const test = suite('uffd/handler-errors');
const BLOCKING = ['block', 'spin', 'adaptive'] as const;
const LATER = { pagefault: async () => {} };

/** The next uncaught exception of this process. */
function uncaught(): Promise<Error> {
  return new Promise((resolve) => process.once('uncaughtException', resolve));
}

/** Hides from the types that a handler answers later: with such a handler, they allow no wait that blocks. */
function anyOf(handler: FaultHandler): FaultHandler {
  return handler;
}

/** The error that a call throws. */
function errorOf(call: () => unknown): Error & { code?: string } {
  try {
    call();
  } catch (error) {
    return error as Error;
  }
  throw new Error('nothing was thrown');
}

// ---- promises under waits that block -----------------------------------------------------------------------

for (const wait of BLOCKING) {
  test(`${wait}: a promise without an answer ends the loop, and the next start is offered the fault`, async () => {
    await withUffd([], async (uffd, thread) => {
      const base = map(1);
      uffd.register(base, P);
      const read = thread.read(base);
      await thread.asleep();
      let late = false;
      const handler = {
        async pagefault({ page }: Pagefault) {
          await null;
          late = true;
          assert.is(uffd.pageState(page), 'missing');
        },
      };
      const error = errorOf(() => uffd.start(anyOf(handler), { wait }));
      assert.is(error.code, 'ERR_INVALID_RETURN_VALUE');
      assert.match(error.message, `wait: '${wait}'`);
      assert.match(error.message, "wait: 'poll'");
      assert.match(error.message, `0x${base.toString(16)}`);
      assert.is(uffd.waiting, false);
      await until(() => late);

      uffd.start({ pagefault: async ({ page }) => void uffd.copy(page, await Promise.resolve(pageOf(7))) });
      assert.equal(await read, [7]);
    });
  });

  test(`${wait}: a handler that resolves the fault before its first await serves`, async () => {
    await withUffd([], async (uffd, thread) => {
      const base = map(4);
      uffd.register(base, 4 * P);
      const calls = [
        (page: bigint) => uffd.copy(page, pageOf(7)),
        (page: bigint) => uffd.copy(base, pageOf(7), P) + uffd.zero(page, P),
        (page: bigint) => {
          uffd.copy(page, pageOf(9), P, { dontWake: true });
          uffd.wake(page, P);
        },
        (page: bigint) => uffd.unregister(page, P),
      ];
      const reads = thread.read(...calls.map((_, index) => at(base, index)));
      let served = 0;
      const handler = {
        async pagefault({ page }: Pagefault) {
          calls[served++]?.(page);
          if (served === calls.length) uffd.stop();
          await null;
        },
      };
      uffd.start(anyOf(handler), { wait });
      assert.equal(await reads, [7, 0, 9, 0]);
    });
  });

  test(`${wait}: a fill that wakes no thread, and one of another page, are no answers`, async () => {
    for (const fill of ['asleep', 'elsewhere', 'throws']) {
      await withUffd([], async (uffd, thread) => {
        const base = map(2);
        uffd.register(base, 2 * P);
        const read = thread.read(base);
        await thread.asleep();
        const handler = {
          async pagefault({ page }: Pagefault) {
            if (fill === 'asleep') uffd.copy(page, pageOf(3), P, { dontWake: true });
            else if (fill === 'elsewhere') uffd.copy(at(base, 1), pageOf(3));
            else uffd.copy(page, 4096n, P);
          },
        };
        const error = errorOf(() => uffd.start(anyOf(handler), { wait }));
        assert.is(error.code, 'ERR_INVALID_RETURN_VALUE');
        if (fill === 'throws') assert.match(error.message, 'EFAULT');
        uffd.start({ pagefault: ({ page }) => uffd.copy(page, pageOf(3)) === P });
        assert.equal(await read, [3]);
      });
    }
  });

  test(`${wait}: a promise that has rejected ends the loop, though the page was filled`, async () => {
    await withUffd([], async (uffd, thread) => {
      const base = map(1);
      uffd.register(base, P);
      const read = thread.read(base);
      const handler = {
        async pagefault({ page }: Pagefault) {
          uffd.copy(page, pageOf(5));
          throw new Error('planted');
        },
      };
      const error = errorOf(() => uffd.start(anyOf(handler), { wait }));
      assert.match(error.message, 'Error: planted');
      assert.equal(await read, [5]);
    });
  });
}

test('onError goes on behind a promise under a wait that blocks', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(1);
    uffd.register(base, P);
    const read = thread.read(base);
    const codes: unknown[] = [];
    const started = uffd.start(anyOf(LATER), {
      wait: 'block',
      onError(error, fault) {
        codes.push((error as { code?: string }).code);
        if (codes.length < 3) return 'continue';
        uffd.copy(fault?.page as bigint, pageOf(4));
        uffd.stop();
        return 'continue';
      },
    });
    assert.is(started, true);
    assert.equal(codes, Array(3).fill('ERR_INVALID_RETURN_VALUE'));
    assert.equal(await read, [4]);
  });
});

// ---- promises that reject ----------------------------------------------------------------------------------

test('a promise that rejects ends the loop with its error, and the next start is offered the fault', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(2);
    uffd.register(base, 2 * P);
    const first = uncaught();
    uffd.start({
      async pagefault() {
        await null;
        throw new Error('planted');
      },
    });
    const read = thread.read(base);
    assert.is((await first).message, 'planted');
    assert.is(uffd.waiting, false);
    await thread.asleep();
    const pages: bigint[] = [];
    uffd.start({
      pagefault({ page }) {
        pages.push(page);
        return uffd.copy(page, pageOf(6)) === P;
      },
    });
    assert.equal(await read, [6]);
    assert.equal(pages, [base]);
  });
});

test('onError goes on behind a promise that rejects: the fault comes again, and comes no more once it is resolved', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(1);
    uffd.register(base, P);
    const reported: unknown[] = [];
    let offered = 0;
    uffd.start(
      {
        async pagefault({ page }) {
          await null;
          if (++offered < 4) throw new Error(`planted ${offered}`);
          uffd.copy(page, pageOf(8));
        },
      },
      {
        onError(error, fault) {
          reported.push((error as Error).message, fault?.page);
          return 'continue';
        },
      },
    );
    assert.equal(await thread.read(base), [8]);
    assert.equal(reported, ['planted 1', base, 'planted 2', base, 'planted 3', base]);
    assert.is(uffd.waiting, true);
  });
});

test('onError may resolve the fault that a callback threw for: it is not offered again', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(2);
    uffd.register(base, 2 * P);
    let offered = 0;
    uffd.start(
      {
        pagefault({ page }) {
          offered++;
          if (page === base) throw new Error('planted');
          return uffd.copy(page, pageOf(2)) === P;
        },
      },
      {
        onError(_, fault) {
          uffd.zero(fault?.page as bigint, P);
          return 'continue';
        },
      },
    );
    assert.equal(await thread.read(base, at(base, 1)), [0, 2]);
    assert.is(offered, 2);
  });
});

test('what onError throws is the error that ends the loop', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(1);
    uffd.register(base, P);
    const read = thread.read(base);
    const planted = (): never => {
      throw new Error('planted');
    };
    const onError = (): void => {
      throw new Error('of onError');
    };
    assert.throws(() => uffd.start({ pagefault: planted }, { wait: 'block', onError }), /of onError/);
    const later = uncaught();
    uffd.start({ pagefault: async () => planted() }, { onError });
    assert.is((await later).message, 'of onError');
    uffd.start({ pagefault: ({ page }) => uffd.zero(page, P) === P });
    assert.equal(await read, [0]);
  });
});

test('a promise that never settles holds up neither other faults nor close', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(2);
    uffd.register(base, 2 * P);
    let waiting = false;
    let closed = 0;
    uffd.start({
      pagefault({ page }) {
        if (page !== base) return uffd.copy(page, pageOf(1)) === P;
        waiting = true;
        return new Promise<void>(() => {});
      },
      closed: () => void closed++,
    });
    const read = thread.read(base);
    await until(() => waiting);
    uffd.close();
    assert.is(closed, 1);
    assert.equal(await read, [0]);
  });
});

test('a promise that rejects after close is no less an error', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(1);
    uffd.register(base, P);
    let reject: ((error: Error) => void) | undefined;
    uffd.start({
      pagefault: () =>
        new Promise<void>((_, no) => {
          reject = no;
        }),
    });
    const read = thread.read(base);
    await until(() => reject !== undefined);
    uffd.close();
    const late = uncaught();
    reject?.(new Error('planted'));
    assert.is((await late).message, 'planted');
    assert.equal(await read, [0]);
  });
});

test('poll() takes a handler that answers later, and loses no fault of one that rejects', async () => {
  await withUffd([], async (uffd, thread) => {
    const base = map(2);
    uffd.register(base, 2 * P);
    const read = thread.read(base, at(base, 1));
    await thread.asleep();
    const late = uncaught();
    uffd.poll({
      async pagefault() {
        await null;
        throw new Error('planted');
      },
    });
    assert.is((await late).message, 'planted');
    await thread.asleep();
    const reported: unknown[] = [];
    const options = {
      onError(error: unknown): 'continue' {
        reported.push((error as Error).message);
        return 'continue';
      },
    };
    let tries = 0;
    const handler = {
      async pagefault({ page }: Pagefault) {
        await null;
        if (tries++ === 0) throw new Error('again');
        uffd.copy(page, pageOf(3));
      },
    };
    let done = false;
    void read.then(() => {
      done = true;
    });
    while (!done) {
      uffd.poll(handler, options);
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    assert.equal(await read, [3, 3]);
    assert.equal(reported, ['again']);
  });
});

test('the rejection of another asynchronous callback is reported, too', async () => {
  await withUffd(['event-remove'], async (uffd, thread) => {
    const base = map(1, 1);
    uffd.register(base, P);
    const late = uncaught();
    uffd.start({
      pagefault: ({ page }) => uffd.zero(page, P) === P,
      async removed() {
        throw new Error('planted');
      },
    });
    assert.is(await thread.madvise(base, P, 4), 0);
    assert.is((await late).message, 'planted');
    assert.is(uffd.waiting, false);
  });
});

test('errors for arguments of start and poll name them', () => {
  needKernel();
  const uffd = Userfaultfd.open();
  const handler = { pagefault: () => false };
  assert.throws(() => uffd.start(handler, null as never), /options must be an object; it is null/);
  assert.throws(
    () => uffd.start(handler, { onError: 'kill' as never }),
    /onError must be a function; it is string/,
  );
  assert.throws(
    () => uffd.poll(handler, { onError: 1 as never }),
    /onError must be a function; it is number/,
  );
  uffd.close();
});

// ---- the end of a process ----------------------------------------------------------------------------------

/** A program with two watched pages; `touch(...)` starts a worker that reads the first page and prints its byte. */
const PROGRAM = `
import { Worker } from 'node:worker_threads';
const library = new URL('./src/index.js', BASE);
const { Mapping, Userfaultfd } = await import(library);
const memory = Mapping.anonymous(2 * 4096);
const uffd = Userfaultfd.open();
uffd.register(memory.address, memory.length);
const inWorker = (body, data = {}) => new Worker(
  \`const { workerData } = require('node:worker_threads');
    import(\${JSON.stringify(library.href)}).then(async ({ Mapping, Userfaultfd }) => {
      const memory = Mapping.attach(workerData.memory);
      \${body}
    });\`,
  { eval: true, execArgv: [], workerData: { memory: memory.share(), ...data } });
const touch = () => inWorker("require('node:fs').writeSync(1, 'read ' + memory.bytes[0]);");
`;

/** Runs a program that ends by itself. Returns its exit code and its output. */
async function ended(body: string): Promise<{ code: number | null; out: string; err: string }> {
  const base = JSON.stringify(new URL('../../', import.meta.url).href);
  const program = `const BASE = ${base};${PROGRAM}${body}`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', program]);
  const said = { out: '', err: '' };
  child.stdout.on('data', (data) => {
    said.out += data;
  });
  child.stderr.on('data', (data) => {
    said.err += data;
  });
  const stop = (): void => void child.kill('SIGKILL');
  process.once('exit', stop);
  try {
    return await new Promise((resolve) => child.on('close', (code) => resolve({ code, ...said })));
  } finally {
    process.removeListener('exit', stop);
  }
}

/** Asserts that the process ended with the worker's error, and that its main thread has read nothing. */
function assertLost({ code, out, err }: Awaited<ReturnType<typeof ended>>): void {
  assert.is(code, 1);
  assert.is(out, '');
  assert.match(err, 'Error: a bug');
  assert.match(err, 'the main thread sleeps in a page fault');
}

for (const [what, pagefault] of [
  ['throws', "pagefault() { throw new Error('a bug'); }"],
  ['rejects', "async pagefault() { await null; throw new Error('a bug'); }"],
]) {
  test(`a handler on the main thread ${what} while a worker sleeps in a fault: the process ends with the error`, async () => {
    needKernel();
    const { code, out, err } = await ended(`
      uffd.start({ ${pagefault} });
      touch();
      process.on('exit', (code) => console.log('exit listener', code));
    `);
    assert.is(code, 1);
    assert.is(out, 'exit listener 1\n', 'no thread has read anything');
    assert.match(err, 'Error: a bug');
  });

  test(`a handler in a worker ${what} while the main thread sleeps in a fault: the process ends with the error`, async () => {
    needKernel();
    const wait = what === 'throws' ? 'block' : 'poll';
    const result = await ended(`
      const { features, ranges } = uffd;
      const worker = inWorker(\`
        const uffd = Userfaultfd.wrap(workerData.fd, workerData);
        require('node:worker_threads').parentPort.postMessage('ready');
        uffd.start({ ${pagefault} }, { wait: '${wait}' });
      \`, { fd: uffd.release(), features, ranges });
      worker.on('error', () => console.log('error event'));
      await new Promise((resolve) => worker.once('message', resolve));
      console.log('read ' + memory.bytes[0]);
    `);
    assertLost(result);
  });
}

test('a serving worker dies of an error, and the main thread faults a moment later: the process ends with the error', async () => {
  needKernel();
  const result = await ended(`
    const { features, ranges } = uffd;
    const worker = inWorker(\`
      const uffd = Userfaultfd.wrap(workerData.fd, workerData);
      uffd.start({ pagefault() {} });
      require('node:worker_threads').parentPort.postMessage('ready');
      setImmediate(() => { throw new Error('a bug'); });
    \`, { fd: uffd.release(), features, ranges });
    worker.on('error', () => console.log('error event'));
    await new Promise((resolve) => worker.once('message', resolve));
    // Busy: it receives nothing meanwhile.
    for (const begun = Date.now(); Date.now() < begun + 200; );
    console.log('read ' + memory.bytes[0]);
  `);
  assertLost(result);
});

test('the error of a loop in a worker ends the process by way of the main thread, with a third thread asleep', async () => {
  needKernel();
  const { code, out, err } = await ended(`
    const { features, ranges } = uffd;
    inWorker(\`
      const uffd = Userfaultfd.wrap(workerData.fd, workerData);
      uffd.start({ pagefault() { throw new Error('a bug'); } }, { wait: 'block' });
    \`, { fd: uffd.release(), features, ranges });
    touch();
  `);
  assert.is(code, 1);
  assert.is(out, '');
  assert.match(err, 'Error: a bug');
});

test('process.exit ends a process whose workers sleep in faults, with its code', async () => {
  needKernel();
  const { code, out } = await ended(`
    uffd.start({ pagefault() { process.exit(7); } });
    touch();
  `);
  assert.is(code, 7);
  assert.is(out, '');
});

test('a program that handles an uncaught exception goes on, and serves the fault that is left', async () => {
  needKernel();
  const { code, out } = await ended(`
    process.on('uncaughtException', () => {
      uffd.start({ pagefault: ({ page }) => uffd.copy(page, new Uint8Array(4096).fill(9)) === 4096 });
    });
    uffd.start({ pagefault() { throw new Error('a bug'); } });
    touch().on('exit', () => uffd.close());
  `);
  assert.is(code, 0);
  assert.is(out, 'read 9');
});

test.run();
