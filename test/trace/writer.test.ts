// A recording that fails ends with a warning, and the recorded program continues: a full disk, a limit on file sizes, a
// sink that throws, at any write.

import { strict as assert } from 'node:assert';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Userfaultfd } from '../../src/index.js';
import { type Program, read, SimulatedKernel } from '../../src/sim/index.js';
import { TraceReader, type TraceSink, TraceWriter } from '../../src/trace/index.js';
import { skip, suite } from '../support/harness.js';
import { P, textOf } from './support/traces.js';

const test = suite('trace/writer');

/** Serves `pages` pages, recording to a writer; returns how many were served. */
function serve(record: TraceWriter, pages: number): number {
  const kernel = new SimulatedKernel({ seed: 1 });
  const uffd = Userfaultfd.open({ kernel, record });
  const base = kernel.map(pages);
  uffd.register(base, pages * P);
  let served = 0;
  kernel.thread(
    (function* (): Program {
      for (let page = 0; page < pages; page++) yield read(base + BigInt(page * P));
      uffd.stop();
    })(),
  );
  const handler = {
    pagefault({ page }: { page: bigint }) {
      served++;
      uffd.zero(page, P);
    },
  };
  uffd.start(handler, { wait: 'block' });
  uffd.close();
  return served;
}

const MANY = 20_000;

test('a sink that fails at any of its writes ends the recording, and nothing else', () => {
  for (let good = 0; good < 4; good++) {
    const written: Uint8Array[] = [];
    const warnings: string[] = [];
    let closes = 0;
    const sink: TraceSink = {
      write(bytes) {
        if (written.length === good) throw new Error('no room left');
        written.push(bytes.slice());
      },
      close() {
        closes++;
      },
    };
    const writer = new TraceWriter(sink, { warn: (message) => void warnings.push(message) });
    assert.equal(serve(writer, MANY), MANY);
    assert.deepEqual(warnings, ['the recording of a trace has ended: no room left']);
    assert.equal(closes, 1);
    assert.equal(writer.failure?.message, 'no room left');
    assert.equal(writer.recording, false);
    if (good < 2) continue;
    assert.match(textOf(Buffer.concat(written)).at(-1) as string, /no end/);
  }
});

test('a sink that cannot be closed is no failure of what is recorded', () => {
  const sink: TraceSink = {
    write() {},
    close() {
      throw new Error('it stays open');
    },
  };
  const writer = new TraceWriter(sink);
  assert.equal(serve(writer, 3), 3);
  assert.equal(writer.failure?.message, 'it stays open');
});

test('a full disk', () => {
  if (!existsSync('/dev/full')) skip('there is no /dev/full');
  const warnings: string[] = [];
  const writer = TraceWriter.toFile('/dev/full', { warn: (message) => void warnings.push(message) });
  assert.equal(serve(writer, 100), 100);
  assert.match(warnings.join('|'), /^the recording of a trace has ended: ENOSPC[^|]*$/);
});

test('a limit on the size of files, in the middle of a block: a warning on stderr, and a trace up to there', () => {
  const folder = mkdtempSync(join(tmpdir(), 'uffd-trace-'));
  const file = join(folder, 'trace');
  try {
    const script = `
      import { Userfaultfd } from ${JSON.stringify(new URL('../../src/index.js', import.meta.url).href)};
      import { TraceWriter } from ${JSON.stringify(new URL('../../src/trace/index.js', import.meta.url).href)};
      import { SimulatedKernel, read } from ${JSON.stringify(new URL('../../src/sim/index.js', import.meta.url).href)};
      const kernel = new SimulatedKernel({ seed: 1 });
      const uffd = Userfaultfd.open({ kernel, record: TraceWriter.toFile(${JSON.stringify(file)}) });
      const base = kernel.map(30000);
      uffd.register(base, 30000 * 4096);
      let served = 0;
      kernel.thread((function* () {
        for (let page = 0; page < 30000; page++) yield read(base + BigInt(page * 4096));
        uffd.stop();
      })());
      uffd.start({ pagefault({ page }) { served++; uffd.zero(page, 4096); } }, { wait: 'block' });
      uffd.close();
      console.log(served);`;
    const ran = spawnSync(
      'sh',
      // 200 blocks of 512 bytes are 100 KiB.
      [
        '-c',
        'ulimit -f 200; exec "$@"',
        'sh',
        process.execPath,
        ...process.execArgv,
        '--input-type=module',
        '-e',
        script,
      ],
      { encoding: 'utf8' },
    );
    assert.equal(ran.stdout, '30000\n', ran.stderr);
    assert.match(ran.stderr, /UserfaultfdWarning: the recording of a trace has ended: EFBIG/);
    const text = textOf(readFileSync(file));
    assert.ok(text.length > 1000);
    assert.match(text.at(-1) as string, /cut or damaged/);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test('what is quiet is written out all the same: a block is at most a second old when the next call comes', () => {
  const blocks: Uint8Array[] = [];
  const writer = new TraceWriter({ write: (bytes) => void blocks.push(bytes.slice()), close() {} });
  writer.start({ pageSize: P });
  writer.append(13, 10);
  assert.equal(blocks.length, 1);
  writer.append(13, 1_000_020);
  // The signature, and the first block of records.
  assert.equal(blocks.length, 2);
  assert.equal(textOf(Buffer.concat(blocks)).length, 3);
});

test('a writer records one userfaultfd, once', () => {
  const writer = new TraceWriter({ write() {}, close() {} });
  serve(writer, 1);
  const kernel = new SimulatedKernel({ seed: 1 });
  assert.throws(() => Userfaultfd.open({ kernel, record: writer }), /one userfaultfd, once/);
});

test('a description that is too large is refused before anything is opened', () => {
  const kernel = new SimulatedKernel({ seed: 1 });
  const about = { text: 'x'.repeat(2 ** 24) };
  const writer = new TraceWriter({ write() {}, close() {} }, { about });
  const before = kernel.files.count;
  assert.throws(() => Userfaultfd.open({ kernel, record: writer }), /about must be less/);
  assert.equal(kernel.files.count, before);
});

for (const length of [32_768, 32_769, 65_536, 200_000]) {
  test(`a description of ${length} bytes is read as it was written`, () => {
    const bytesOf = (text: string): { blocks: Uint8Array[]; about: Record<string, unknown> } => {
      const blocks: Uint8Array[] = [];
      // A brace at the end of a record is not the end of the description.
      const about = { text, more: { brace: '}'.repeat(40_000) } };
      const writer = new TraceWriter(
        { write: (some) => void blocks.push(some.slice()), close() {} },
        { about },
      );
      serve(writer, 3);
      return { blocks, about };
    };
    const { meta } = TraceReader.of(Buffer.concat(bytesOf('').blocks));
    const { blocks, about } = bytesOf('x'.repeat(Math.max(0, length - JSON.stringify(meta).length)));
    const reader = TraceReader.of(Buffer.concat(blocks));
    assert.ok(JSON.stringify(reader.meta.about) === JSON.stringify(about));
    let records = 0;
    while (reader.next()) records++;
    assert.ok(records > 3);
    assert.equal(reader.damage, undefined);
  });
}

/** Less for the debug build of the codec, which is slow because of its assertions. */
const LARGE = process.env.UFFD_CORE === 'debug' ? 2 ** 25 : 2 ** 27;

test(`a trace of ${LARGE / 2 ** 20} MiB is read in little memory`, () => {
  const blocks: Uint8Array[] = [];
  const writer = new TraceWriter({ write: (bytes) => void blocks.push(bytes.slice()), close() {} });
  serve(writer, MANY);
  const [head, ...rest] = blocks.slice(0, 3) as [Uint8Array, Uint8Array, Uint8Array];
  // Blocks do not depend on each other, so the block after the description is repeated again and again.
  const [first, again] = rest as [Uint8Array, Uint8Array];
  let at = 0;
  const before = Buffer.concat([head, first]);
  const source = {
    read(into: Uint8Array): number {
      const part =
        at < before.length ? before.subarray(at) : again.subarray((at - before.length) % again.length);
      const some = part.subarray(0, Math.min(into.length, LARGE - at));
      into.set(some);
      at += some.length;
      return some.length;
    },
    close() {},
  };
  const reader = new TraceReader(source);
  globalThis.gc?.();
  const rssBefore = process.memoryUsage.rss();
  let most = 0;
  reader.onBlock = () => {
    if (reader.blocks % 100 === 0) most = Math.max(most, process.memoryUsage.rss());
  };
  while (reader.next());
  assert.ok(reader.blocks > LARGE / 131_072);
  assert.ok(reader.records > LARGE / 10, `${reader.records} records`);
  assert.ok(most - rssBefore < 50 * 2 ** 20, `${(most - rssBefore) / 2 ** 20} MiB more`);
}, 300_000);

test.run();
