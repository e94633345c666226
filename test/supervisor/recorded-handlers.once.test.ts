// Handlers as binaries, recorded on the real kernel: the handler works as without recording, the trace has what the guest
// did and keeps the kernel's rules, and it is complete however the run ends.

import { strict as assert } from 'node:assert';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as memory from '../../shim/memory.js';
import { handOver } from '../../src/serve/index.js';
import { checkHandler, recordHandler } from '../../src/testing/index.js';
import { replay, summarize, TraceReader, type TraceSummary } from '../../src/trace/index.js';
import { commandLine, UNPRIVILEGED, uffd } from '../cli/support/command.js';
import { handler } from '../conformance/support/handlers.js';
import { skip, suite } from '../support/harness.js';
import {
  at,
  compileProgram,
  map,
  needKernel,
  openWith,
  P,
  type Toucher,
  until,
  withOpened,
} from '../support/real-kernel.js';

const test = suite('recorded handlers');
const PAGES = 64;

const folder = mkdtempSync(join(tmpdir(), 'uffd-recorded-'));
// Another user writes to it.
chmodSync(folder, 0o777);
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));

let files = 0;
const newPath = (name: string): string => join(folder, `${++files}-${name}`);

/** The beginning of a command that records the handler that follows. */
const recorder = (trace: string): string[] => commandLine(['record-handler', '--trace', trace, '--']);

async function summaryOf(trace: string): Promise<TraceSummary> {
  const { identical, difference, damage } = await replay(TraceReader.fromFile(trace));
  assert.deepEqual(
    { identical, difference, damage },
    { identical: true, difference: undefined, damage: undefined },
  );
  return summarize(TraceReader.fromFile(trace));
}

/** The recorders that have not ended: those of a test that has failed. */
const running = new Set<ChildProcess>();
const endAllRecorders = (): void => {
  for (const child of running) child.kill('SIGKILL');
};
process.on('exit', endAllRecorders);

/** A recorded handler, as a child. */
class Recorded {
  readonly socket = newPath('socket');
  readonly trace = newPath('trace');
  readonly child: ChildProcess;
  readonly ended: Promise<{ code: number | null; stderr: string }>;

  constructor(command: readonly string[], under: readonly string[] = []) {
    const file = newPath('memory');
    writeFileSync(file, Buffer.concat(Array.from({ length: PAGES }, (_, page) => Buffer.alloc(P, page + 1))));
    chmodSync(file, 0o644);
    const words = command.map((word) => word.replace('{socket}', this.socket).replace('{memory}', file));
    const [program = '', ...rest] = [...under, ...recorder(this.trace), ...words];
    this.child = spawn(program, rest, { stdio: ['ignore', 'ignore', 'pipe'] });
    running.add(this.child);
    let stderr = '';
    this.child.stderr?.on('data', (bytes) => {
      stderr += bytes;
    });
    this.ended = once(this.child, 'close').then(([code]) => {
      running.delete(this.child);
      return { code, stderr };
    });
  }

  async ready(): Promise<void> {
    await until(() => existsSync(this.socket), 'the handler to listen');
  }
}

/** Runs a body with a guest's memory that a recorded handler serves. */
async function withGuest(
  recorded: Recorded,
  body: (thread: Toucher, base: bigint) => Promise<void>,
): Promise<void> {
  await recorded.ready();
  const base = map(PAGES);
  await withOpened(openWith(['event-remove']), async (uffd, thread) => {
    uffd.register(base, PAGES * P);
    const handed = handOver(
      recorded.socket,
      [{ start: base, length: PAGES * P, offset: 0, pageSize: P }],
      uffd.fd,
    );
    try {
      await body(thread, base);
    } catch (error) {
      endAllRecorders();
      throw error;
    } finally {
      handed.close();
    }
  });
}

test('a handler passes while it is recorded, and the trace has what the guest did', async () => {
  needKernel();
  const trace = newPath('trace');
  const command = [...recorder(trace), ...handler()];
  const report = await checkHandler({ command, scenarios: ['remove-after-write'] });
  assert.deepEqual(
    report.results.map(({ verdict, reason }) => [verdict, reason]),
    [['pass', undefined]],
  );
  const summary = await summaryOf(trace);
  // Five pages are written to, two of them are removed, and read again.
  const { how, faults, faultsByKind, changes, unresolved, features, ranges, calls } = summary;
  assert.deepEqual(
    { how, faults, missing: faultsByKind.missing, remove: changes.remove, unresolved, features },
    {
      how: 'handler',
      faults: 7,
      missing: { read: 2, write: 5 },
      remove: 1,
      unresolved: 0,
      features: ['event-remove'],
    },
  );
  assert.deepEqual(
    ranges.map(({ bytes, modes }) => [bytes, modes]),
    [[PAGES * P, ['missing']]],
  );
  assert.ok((calls.COPY ?? 0) >= 7, JSON.stringify(calls));
  assert.equal(summary.latencyUs.count, 7);
});

for (const way of ['blocking', 'threads', 'edge', 'sleep']) {
  test(`a handler that waits by ${way} works while it is recorded`, async () => {
    needKernel();
    const trace = newPath('trace');
    const command = [...recorder(trace), compileProgram('supervisor/waits.c'), '{socket}', '{memory}', way];
    const { results } = await checkHandler({ command, scenarios: ['remove-again'] });
    assert.equal(results[0]?.verdict, 'pass', JSON.stringify(results));
    const { changes, unresolved } = await summaryOf(trace);
    assert.deepEqual([changes.remove, unresolved], [60, 0]);
  });
}

test('a handler that is stopped while faults and removals queue', async () => {
  needKernel();
  const trace = newPath('trace');
  const command = [...recorder(trace), ...handler()];
  const { results } = await checkHandler({ command, scenarios: ['remove-while-paused'] });
  assert.equal(results[0]?.verdict, 'pass', JSON.stringify(results));
  assert.ok((await summaryOf(trace)).changes.remove > 0);
});

test('the commands replay, inspect and report read the trace', async () => {
  needKernel();
  const recorded = new Recorded(handler());
  await withGuest(recorded, async (thread, base) => {
    assert.deepEqual(await thread.read(at(base, 0), at(base, 63)), [1, 64]);
    assert.equal(await thread.madvise(at(base, 63), P, memory.MADV_DONTNEED), 0);
    assert.deepEqual(await thread.read(at(base, 63)), [0]);
  });
  recorded.child.kill('SIGTERM');
  const { code, stderr } = await recorded.ended;
  assert.equal(code, 143, stderr);
  assert.match(stderr, /^uffd: \d+ records in .*-trace$/m);
  const replayed = await uffd(['replay', recorded.trace, '--json']);
  const { identical, faults, difference } = JSON.parse(replayed.stdout);
  assert.deepEqual(
    { code: replayed.code, identical, faults, difference },
    { code: 0, identical: true, faults: 3, difference: null },
  );
  const inspected = await uffd(['inspect', recorded.trace]);
  assert.match(inspected.stdout, /^faults +3 \(missing read 3\)$/m);
  assert.match(inspected.stdout, /^userfaultfd +by handler; event-remove$/m);
  const events = newPath('perfetto.json');
  assert.equal((await uffd(['inspect', recorded.trace, '--perfetto', events])).code, 0);
  assert.ok(JSON.parse(readFileSync(events, 'utf8')).traceEvents.length >= 3);
  const page = newPath('report.html');
  assert.equal((await uffd(['report', recorded.trace, '-o', page])).code, 0);
  assert.ok(readFileSync(page, 'utf8').includes('</html>'));
});

test('a handler that is killed while faults wait: the trace is complete', async () => {
  needKernel();
  const recorded = new Recorded(handler());
  await withGuest(recorded, async (thread, base) => {
    await thread.read(at(base, 5));
    const [pid = 0] = handlers();
    process.kill(pid, 'SIGKILL');
    const { code, stderr } = await recorded.ended;
    // As a shell says it: 128 and SIGKILL.
    assert.equal(code, 137, stderr);
  });
  assert.equal((await summaryOf(recorded.trace)).faults, 1);
});

/** The processes that run a handler of this test. */
function handlers(): number[] {
  return readdirSync('/proc').flatMap((name) => {
    try {
      const words = readFileSync(`/proc/${name}/cmdline`, 'latin1').split('\0');
      const isHandler = words[0]?.includes('/handler') && words.some((word) => word.startsWith(folder));
      return isHandler && Number(name) > 0 ? [Number(name)] : [];
    } catch {
      // It is no process, or it has ended.
      return [];
    }
  });
}

test('no process is left if the recorder is killed', async () => {
  needKernel();
  const recorded = new Recorded(handler());
  await recorded.ready();
  assert.equal(handlers().length, 1);
  recorded.child.kill('SIGKILL');
  await recorded.ended;
  await until(() => handlers().length === 0, 'the handler to end');
});

test('a full disk ends the recording, and not the handler', async () => {
  needKernel();
  const trace = '/dev/full';
  const command = [...recorder(trace), ...handler()];
  const { results } = await checkHandler({ command, scenarios: ['reads'] });
  assert.equal(results[0]?.verdict, 'pass', JSON.stringify(results));
});

test('a user without privileges records a handler of a privileged monitor', async () => {
  needKernel();
  if (process.getuid?.() !== 0) skip('only root can become another user');
  const [program = '', ...words] = handler();
  const readable = newPath('handler');
  copyFileSync(program, readable);
  const recorded = new Recorded([readable, ...words], UNPRIVILEGED);
  await withGuest(recorded, async (thread, base) => {
    assert.deepEqual(await thread.read(at(base, 7)), [8]);
  });
  recorded.child.kill('SIGTERM');
  const { code, stderr } = await recorded.ended;
  assert.equal(code, 143, stderr);
  assert.equal((await summaryOf(recorded.trace)).faults, 1);
});

test('a handler that uses no userfaultfd, one that is not there, and wrong options', async () => {
  const trace = newPath('trace');
  const idle = await uffd(['record-handler', '--trace', trace, '--', 'sh', '-c', 'echo "out"; exit 7']);
  assert.deepEqual([idle.code, idle.stdout], [7, 'out\n']);
  assert.match(idle.stderr, /no use of a userfaultfd was recorded, so there is no trace/);
  assert.equal((await uffd(['record-handler', '--trace', trace, '--', './nowhere'])).code, 127);
  const missing = await uffd(['record-handler', '--trace', trace]);
  assert.deepEqual([missing.code, /the handler's command is missing/.test(missing.stderr)], [2, true]);
  const refused = await uffd(['record-handler', '--trace', folder, '--', 'true']);
  assert.deepEqual([refused.code, /cannot record to/.test(refused.stderr)], [1, true]);
  await assert.rejects(recordHandler({ command: [], trace }), /command/);
  await assert.rejects(recordHandler({ command: ['true'], trace: 1 as never }), /trace/);
});

test.run();
