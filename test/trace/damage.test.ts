// A damaged trace is a clear error, or a valid shorter trace: every byte changed, every prefix, and random changes
// after which the checksums are corrected.

import { strict as assert } from 'node:assert';
import { SimulatedKernel } from '../../src/sim/index.js';
import { replay, TraceError, TraceReader } from '../../src/trace/index.js';
import { seed, suite } from '../support/harness.js';
import { decode, fuzzDecoder, seal } from './support/decoder.js';
import { inMemory, record, textOf } from './support/traces.js';

const test = suite('trace/damage');

const NOT_UNDERSTOOD = {
  name: 'TraceError',
  code: 'ERR_UFFD_TRACE',
  message: /description.*cannot be understood/,
};

function small(): Uint8Array {
  return record(new SimulatedKernel({ seed: 5 }), { touches: 8, threads: 2, pages: 8 });
}

/** A damaged trace must be a TraceError, or read as the beginning of the whole trace and report the damage. */
function assertShorter(whole: readonly string[], bytes: Uint8Array, what: string): void {
  let read: string[];
  try {
    read = textOf(bytes);
  } catch (error) {
    assert.ok(error instanceof TraceError, `${what}: ${(error as Error).stack}`);
    return;
  }
  const damage = read.pop();
  assert.notEqual(damage, 'whole', `${what}: nothing was noticed`);
  assert.deepEqual(read, whole.slice(0, read.length), what);
}

test('every prefix', () => {
  const trace = small();
  const whole = textOf(trace);
  assert.equal(whole.at(-1), 'whole');
  for (let length = 0; length < trace.length; length++) {
    assertShorter(whole, trace.subarray(0, length), `${length} bytes of ${trace.length}`);
  }
});

test('every byte changed, in one bit and in all', () => {
  const trace = small();
  const whole = textOf(trace);
  for (let at = 0; at < trace.length; at++) {
    for (const change of [1, 0x80, 0xff]) {
      const bytes = trace.slice();
      bytes[at] = (bytes[at] as number) ^ change;
      assertShorter(whole, bytes, `byte ${at} changed by ${change}`);
    }
  }
}, 240_000);

test('bytes behind the end are damage; a trace that was not closed has no end', () => {
  const trace = small();
  assert.match(textOf(Buffer.concat([trace, Buffer.from([0])])).at(-1) as string, /behind its end/);
  const { writer, bytes } = inMemory();
  writer.start({ pageSize: 4096 });
  for (let i = 0; i < 100_000; i++) writer.append(13, i * 300);
  const read = textOf(bytes());
  assert.ok(read.length > 50_000);
  assert.match(read.at(-1) as string, /no end/);
});

test('a trace of version 1, which has no notes of sources, is read and replayed like one of today', async () => {
  const bytes = small();
  const today = textOf(bytes);
  assert.equal(bytes[7], 2);
  bytes[7] = 1;
  assert.deepEqual(textOf(bytes), today);
  const { identical, difference, damage } = await replay(TraceReader.of(bytes));
  assert.deepEqual([identical, difference, damage], [true, undefined, undefined]);
});

test('what is no trace, or of another version, is refused by name', () => {
  for (const [bytes, message] of [
    [new Uint8Array(), /no trace/],
    [Buffer.from('UFFDTRC'), /no trace/],
    [Buffer.from('\u007fELF and so on and on'), /no trace/],
    [Buffer.from('UFFDTRC\u0003 and so on'), /version 3.*versions 1 to 2/],
    [Buffer.from('UFFDTRC\u0000 and so on'), /version 0.*versions 1 to 2/],
    [Buffer.from('UFFDTRC\u0001'), /no description/],
  ] as const) {
    assert.throws(() => TraceReader.of(bytes), { name: 'TraceError', code: 'ERR_UFFD_TRACE', message });
  }
});

test('a description that makes no sense is refused', async () => {
  const described = (meta: Record<string, unknown>): TraceReader => {
    const { writer, bytes } = inMemory();
    writer.start(meta);
    writer.append(13, 0);
    writer.close();
    return TraceReader.of(bytes());
  };
  for (const pageSize of [undefined, 0, 4097, 'x', 2 ** 60]) {
    assert.throws(() => described({ pageSize }), NOT_UNDERSTOOD, `pageSize: ${pageSize}`);
  }
  const range = { start: '4096', length: 4096, modes: ['missing'], operations: [], pageSize: 4096 };
  const wrapped = { how: 'wrap', fd: 3, options: {}, features: [], ranges: [range] };
  described({ pageSize: 4096, origin: wrapped });
  for (const origin of [
    null,
    7,
    { ...wrapped, how: 'guess' },
    { ...wrapped, fd: -1 },
    { ...wrapped, options: 'x' },
    { ...wrapped, features: 8 },
    { ...wrapped, features: [8] },
    { ...wrapped, optional: {} },
    { ...wrapped, ranges: {} },
    ...[
      { start: 'x' },
      { start: 7 },
      { length: -1 },
      { modes: ['missin'] },
      { operations: 1 },
      { pageSize: '1' },
    ].map((change) => ({ ...wrapped, ranges: [{ ...range, ...change }] })),
  ]) {
    assert.throws(() => described({ pageSize: 4096, origin }), NOT_UNDERSTOOD, JSON.stringify(origin));
  }
  for (const origin of [undefined, { how: 'open', options: {}, features: ['no-such'] }]) {
    const reader = described({ pageSize: 4096, origin });
    await assert.rejects(replay(reader), { name: 'TraceError' }, JSON.stringify(origin));
  }
});

test('replays of damaged traces end, with what they found', async () => {
  const trace = small();
  const first = seed();
  for (let at = 0; at < 400; at++) {
    const bytes = trace.slice();
    const place = 300 + ((first + at * 7919) % (trace.length - 300));
    bytes[place] = (bytes[place] as number) ^ (1 + (at % 255));
    const sealed = seal(bytes);
    if (decode(sealed) instanceof TraceError) continue;
    const result = await replay(TraceReader.of(sealed));
    assert.equal(typeof result.identical, 'boolean');
  }
}, 120_000);

/** Seeds that once caused another error than TraceError: `features` in the description was not a list. */
const FOUND_BEFORE = [2040626517];

test('random changes, with checksums that are right again: no crash, no hang, no memory', () => {
  const first = seed();
  const samples = [
    small(),
    record(new SimulatedKernel({ seed: 9 }), { wait: 'spin', touches: 20, threads: 3 }),
  ];
  for (const seed of [...FOUND_BEFORE, ...Array.from({ length: 4000 }, (_, index) => first + index)]) {
    try {
      fuzzDecoder(samples, seed);
    } catch (error) {
      throw new Error(`UFFD_SEED=${seed}: ${(error as Error).stack}`);
    }
  }
}, 120_000);

test.run();
