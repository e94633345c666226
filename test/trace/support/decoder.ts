// A fuzz target: reading any bytes as a trace ends with its records, and a reason if the trace is not complete. Reading
// throws nothing but TraceError, comes to an end, and does not grow the codec's memory.

import { Random } from '../../../src/sim/index.js';
import { replay, summarize, TraceError, TraceReader } from '../../../src/trace/index.js';

/**
 * The limit of records for a byte. A run of records takes few bytes; only the count in the block's header limits it.
 */
const RECORDS_A_BYTE = 2 ** 20;

/** Reads a trace to its end. Returns the number of records and the damage, or the TraceError. */
export function decode(bytes: Uint8Array): { records: number; damage: string | undefined } | TraceError {
  let reader: TraceReader;
  try {
    reader = TraceReader.of(bytes);
  } catch (error) {
    if (error instanceof TraceError) return error;
    throw error;
  }
  const before = reader.codec.exports.memory.buffer.byteLength;
  while (reader.next()) {
    if (reader.records > bytes.length * RECORDS_A_BYTE) throw new Error('there is no end of records');
    if (reader.payload.length > 32768) throw new Error('a payload is larger than any may be');
  }
  if (reader.codec.exports.memory.buffer.byteLength !== before) throw new Error('the codec took memory');
  return { records: reader.records, damage: reader.damage };
}

/** Corrects the checksums of all blocks that can be found, so that the reader decodes their contents. */
export function seal(bytes: Uint8Array): Uint8Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 8; at + 24 <= bytes.length; ) {
    view.setUint32(at, 0x42544655, true);
    const length = Math.min(view.getUint32(at + 4, true), bytes.length - at - 24);
    view.setUint32(at + 4, length, true);
    view.setUint32(at + 8, checksum(bytes.subarray(at + 12, at + 24 + length)), true);
    at += 24 + length;
  }
  return bytes;
}

/** CRC-32. */
function checksum(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  }
  return ~crc >>> 0;
}

/** A trace with a few bytes changed, cut or doubled, most often with corrected checksums. */
function damaged(samples: readonly Uint8Array[], seed: number): Uint8Array {
  const random = new Random(seed);
  let bytes = (samples[random.below(samples.length)] as Uint8Array).slice();
  for (let changes = 1 + random.below(8); changes > 0; changes--) {
    // Most often keep the description, because nothing after a damaged description is read.
    const at = Math.min(
      bytes.length - 1,
      random.chance(0.1) ? random.below(bytes.length) : 200 + random.below(bytes.length),
    );
    switch (random.below(5)) {
      case 0:
        bytes = bytes.slice(0, at);
        break;
      case 1: {
        const part = bytes.subarray(at, at + random.below(64));
        bytes = Buffer.concat([bytes.subarray(0, at), part, bytes.subarray(at)]);
        break;
      }
      case 2:
        bytes.fill(random.below(256), at, Math.min(at + random.below(16), bytes.length));
        break;
      default:
        bytes[at] = random.below(256);
    }
    if (bytes.length === 0) break;
  }
  return random.chance(0.9) ? seal(Uint8Array.from(bytes)) : bytes;
}

/** One try: reads and summarises a damaged trace. */
export function fuzzDecoder(samples: readonly Uint8Array[], seed: number): void {
  const bytes = damaged(samples, seed);
  if (decode(bytes) instanceof TraceError) return;
  summarize(TraceReader.of(bytes));
}

/** One try: replays a damaged trace. Calls that cannot be replayed must throw a TraceError. */
export async function fuzzReplay(samples: readonly Uint8Array[], seed: number): Promise<void> {
  const bytes = damaged(samples, seed);
  if (decode(bytes) instanceof TraceError) return;
  try {
    await replay(TraceReader.of(bytes));
  } catch (error) {
    if (!(error instanceof TraceError)) throw error;
  }
}
