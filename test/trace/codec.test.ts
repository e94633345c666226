// Everything that is written is read back: every kind of record, every size of payload, over any number of blocks.

import { strict as assert } from 'node:assert';
import { BAD, BLOCK_MOST, HEADER_BYTES, PAYLOAD_MOST } from '../../src/bindings/trace.js';
import { SimulatedKernel } from '../../src/sim/index.js';
import { Codec, Kind, NOTE_FIELDS } from '../../src/trace/codec.js';
import { TraceReader, type TraceWriter } from '../../src/trace/index.js';
import { generator, seed, suite } from '../support/harness.js';
import { inMemory, record, textOf } from './support/traces.js';

const test = suite('trace/codec');

interface Sample {
  kind: number;
  timeUs: number;
  words: bigint[];
  payload: Uint8Array;
}

/** Fields of each kind that is neither a note nor an ioctl. */
const FIELDS = [0, 2, 1, 4, 3, 2, 9, 4, 2, 1, 2, 2, 3, 0, 2, 2, 2, 1, 1, 1, 0];
const API = 0xc018aa3f;
const REQUESTS = [0xc020aa00, 0x8010aa01, 0xc028aa03, 0xc020aa04, 0xc018aa06, 0xc028aa05, API, 0xc0ffaa0e];

type Dice = (below: number) => number;

function word(dice: Dice): bigint {
  const bits = BigInt(dice(65));
  let value = 0n;
  for (let i = 0; i < 3; i++) value = (value << 24n) | BigInt(dice(2 ** 24));
  return bits === 0n ? 0n : value & ((1n << bits) - 1n);
}

function draw(dice: Dice, writer: TraceWriter, timeUs: number): Sample {
  const kind = [Kind.READ, Kind.READ, Kind.READ_EMPTY, Kind.IOCTL, Kind.NOTE, dice(21)][dice(6)] as number;
  if (kind === Kind.META) return draw(dice, writer, timeUs);
  if (kind === Kind.IOCTL) {
    const request = REQUESTS[dice(REQUESTS.length)] as number;
    const struct = Math.min((request >>> 19) & 0x7ff, 12);
    const words = [
      word(dice),
      BigInt(request),
      word(dice),
      ...Array.from({ length: 2 * struct }, () => word(dice)),
    ];
    const kind = Kind.IOCTL + (request === API ? 15 : request & 15);
    return { kind, timeUs, words, payload: new Uint8Array() };
  }
  if (kind === Kind.NOTE) {
    const code = dice(16);
    const words = Array.from({ length: NOTE_FIELDS[code] as number }, () => word(dice));
    return { kind: Kind.NOTE + code, timeUs, words, payload: new Uint8Array() };
  }
  const words = Array.from({ length: FIELDS[kind] as number }, () => word(dice));
  return { kind, timeUs, words, payload: payloadOf(dice, kind) };
}

function payloadOf(dice: Dice, kind: number): Uint8Array {
  if (kind === Kind.READ) {
    const bytes = new Uint8Array(([0, 1, 2, 128, 1024][dice(5)] as number) * 32);
    const view = new DataView(bytes.buffer);
    for (let at = 0; at < bytes.length; at += 32) {
      const fault = dice(4) > 0;
      view.setUint8(at, fault ? 0x12 : 0x10 + dice(16));
      if (dice(20) === 0) view.setUint8(at + 1 + dice(7), 1);
      view.setBigUint64(at + 8, fault ? BigInt(dice(8)) : word(dice), true);
      view.setBigUint64(at + 16, 0x7f00_0000_0000n + BigInt(dice(1000)) * (dice(3) ? 4096n : 8n), true);
      if (dice(3) === 0) view.setUint32(at + 24, dice(2 ** 32), true);
    }
    return bytes;
  }
  const length = kind === Kind.CONTENT ? ([0, 1, 31, 8, 4096, PAYLOAD_MOST][dice(6)] as number) : 0;
  return Uint8Array.from({ length }, () => dice(256));
}

function put(writer: TraceWriter, { kind, timeUs, words, payload }: Sample): void {
  for (const [index, value] of words.entries()) writer.setWord(index, value);
  if (payload.length > 0) writer.payload(payload.length).set(payload);
  writer.append(kind, timeUs);
}

function assertRead(bytes: Uint8Array, samples: readonly Sample[]): void {
  const reader = TraceReader.of(bytes);
  for (const [index, sample] of samples.entries()) {
    assert.ok(reader.next(), `record ${index} is not there: ${reader.damage}`);
    const { kind, time, words } = reader.call;
    assert.equal(kind, sample.kind, `record ${index}`);
    assert.deepEqual(words.slice(0, sample.words.length), sample.words, `record ${index} of kind ${kind}`);
    assert.ok(Buffer.from(reader.payload).equals(sample.payload), `the payload of record ${index}`);
    // The trace stores consecutive empty reads as one run, so their times are interpolated.
    if (kind !== Kind.READ_EMPTY) assert.equal(time, sample.timeUs, `the time of record ${index}`);
  }
  assert.equal(reader.next(), false);
  assert.equal(reader.damage, undefined);
}

test('random records come back as they were', () => {
  const first = seed();
  for (let round = 0; round < 60; round++) {
    const dice = generator(first + round);
    const { writer, bytes } = inMemory();
    writer.start({ pageSize: 4096 });
    const samples: Sample[] = [];
    let timeUs = 0;
    for (let i = 0; i < 1 + dice(400); i++) {
      timeUs += [0, 1, 5, 126, 127, 128, 100_000, 2 ** 33][dice(8)] as number;
      const again =
        samples.length > 0 && dice(3) > 0 ? samples[Math.max(0, samples.length - 1 - dice(4))] : undefined;
      samples.push(again ? { ...again, timeUs } : draw(dice, writer, timeUs));
      put(writer, samples.at(-1) as Sample);
    }
    writer.close();
    assertRead(bytes(), samples);
  }
}, 120_000);

test('reads that find nothing cost next to nothing, however many they are in a row', () => {
  const empty = { kind: Kind.READ_EMPTY, words: [3n, 4096n], payload: new Uint8Array() };
  const other = { kind: Kind.NOW, words: [], payload: new Uint8Array() };
  const samples: Sample[] = [];
  for (let round = 0; round < 20; round++) {
    samples.push({ ...other, timeUs: samples.length });
    for (let i = 0; i < 1000 * (round % 3); i++) samples.push({ ...empty, timeUs: samples.length });
    if (round % 2) samples.push({ ...other, kind: Kind.READY, words: [1n], timeUs: samples.length });
  }
  const { writer, bytes } = inMemory();
  writer.start({ pageSize: 4096 });
  for (const sample of samples) put(writer, sample);
  writer.close();
  assertRead(bytes(), samples);
  assert.ok(bytes().length < 1000, `${bytes().length} bytes`);
});

test('blocks: the largest payloads fit, and each block is as long as its header says', () => {
  const { writer, bytes } = inMemory();
  writer.start({ pageSize: 4096 });
  const payload = new Uint8Array(PAYLOAD_MOST).fill(0xff);
  const samples = Array.from({ length: 40 }, (_, i) => ({
    kind: i % 2 ? Kind.CONTENT : Kind.READ,
    timeUs: i,
    words: i % 2 ? [] : [3n, 32_768n, 32_768n],
    payload,
  }));
  for (const sample of samples) put(writer, sample);
  writer.close();
  assertRead(bytes(), samples);
  const view = new DataView(bytes().buffer, bytes().byteOffset, bytes().byteLength);
  let at = 8;
  let blocks = 0;
  for (; at < view.byteLength; blocks++) {
    assert.equal(view.getUint32(at, true), 0x42544655);
    const length = view.getUint32(at + 4, true);
    assert.ok(length <= BLOCK_MOST);
    at += HEADER_BYTES + length;
  }
  assert.equal(at, view.byteLength);
  assert.ok(blocks > 10);
});

test('a block has room for so many bytes and none more: a header that says more is damage, whatever follows', () => {
  const header = (bytes: number): Uint8Array => {
    const made = new Uint8Array(HEADER_BYTES);
    const view = new DataView(made.buffer);
    view.setUint32(0, 0x42544655, true);
    view.setUint32(4, bytes, true);
    return made;
  };
  const codec = new Codec();
  const measured = (bytes: number): number => {
    codec.block(HEADER_BYTES).set(header(bytes));
    return codec.exports.traceMeasure();
  };
  assert.equal(measured(BLOCK_MOST), HEADER_BYTES + BLOCK_MOST);
  for (const bytes of [BLOCK_MOST + 1, BLOCK_MOST + 24, 2 ** 20, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1]) {
    assert.equal(measured(bytes), BAD, `${bytes} bytes`);
    // The bytes of the block follow, so only the length is wrong.
    const trace = Buffer.concat([
      record(new SimulatedKernel({ seed: 5 }), { touches: 1, threads: 1, pages: 1 }).subarray(0, 8),
      header(bytes),
      new Uint8Array(2 * BLOCK_MOST),
    ]);
    assert.throws(() => textOf(trace), { name: 'TraceError' });
  }
});

test('a block stands for itself: without those before it, it is read as with them', () => {
  const trace = record(new SimulatedKernel({ seed: 3 }), { touches: 6000, threads: 2, pages: 4096 });
  const view = new DataView(trace.buffer, trace.byteOffset, trace.byteLength);
  const ends: number[] = [];
  for (let at = 8; at < trace.length; ends.push(at)) at += HEADER_BYTES + view.getUint32(at + 4, true);
  assert.ok(ends.length > 3);
  const whole = textOf(trace);
  // A first block must hold a description; this one needs nothing else.
  const { writer, bytes } = inMemory();
  writer.start({ pageSize: 4096 });
  writer.append(Kind.NOW, 2_000_000);
  for (const from of ends.slice(0, -1)) {
    const rest = textOf(Buffer.concat([bytes(), trace.subarray(from)]));
    assert.deepEqual(rest.slice(1), whole.slice(1 - rest.length));
  }
});

test('time never goes back, and what is above 32 bits is kept', () => {
  const { writer, bytes } = inMemory();
  writer.start({ pageSize: 4096 });
  const wide = 2 ** 45 + 3;
  writer.set(0, -5);
  writer.setWord(1, 2n ** 63n + 1n);
  writer.set(2, 2 ** 34);
  writer.append(Kind.PAGE_SIZE_AT, wide);
  writer.append(Kind.NOW, 3);
  writer.close();
  const reader = TraceReader.of(bytes());
  assert.ok(reader.next());
  assert.equal(reader.codec.time, wide);
  assert.deepEqual(
    [reader.codec.integer(0), reader.codec.words[1], reader.codec.integer(2)],
    [-5, 2n ** 63n + 1n, 2 ** 34],
  );
  assert.ok(reader.next());
  assert.equal(reader.codec.time, wide);
});

test.run();
