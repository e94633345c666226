// Traces in a runtime: replays a trace that was recorded elsewhere, writes it again record by record, and records
// random worlds. Prints the results as a line of JSON.

import { simulate } from '../../src/testing/index.js';
import {
  replay,
  summarize,
  type TraceMeta,
  type TraceOptions,
  TraceReader,
  TraceWriter,
} from '../../src/trace/index.js';
import { memoryTrace, randomWorld } from '../testing/support/worlds.js';

/** The prefix of the line. */
export const TRACES = 'uffd-traces ';
/** How many worlds are simulated. */
export const SEEDS = 60;

export interface TraceResults {
  identical: boolean;
  records: number;
  faults: number;
  /** SHA-256 of the trace as it was written again, of the summary as JSON, and of the worlds' traces. */
  again: string;
  summary: string;
  worlds: string;
}

async function sha256(bytes: Uint8Array): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes.slice()));
  return [...digest].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** Reads a trace, and writes all of its records again. */
function writtenAgain(trace: Uint8Array): Uint8Array {
  const reader = TraceReader.of(trace);
  const blocks: Uint8Array[] = [];
  const { contents, about, ...meta } = reader.meta as TraceMeta & Required<TraceOptions>;
  const sink = { write: (bytes: Uint8Array) => void blocks.push(bytes.slice()), close() {} };
  const writer = new TraceWriter(sink, { contents, about });
  writer.start(meta);
  while (reader.next()) {
    const { kind, time, words } = reader.call;
    for (const [index, word] of words.entries()) writer.setWord(index, word);
    if (reader.payload.length > 0) writer.payload(reader.payload.length).set(reader.payload);
    writer.append(kind, time);
  }
  writer.close();
  return Buffer.concat(blocks);
}

export async function printResults(base64: string): Promise<void> {
  const trace = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const { identical, records, faults } = await replay(TraceReader.of(trace));
  const worlds: string[] = [];
  for (let seed = 1; seed <= SEEDS; seed++) {
    const world = memoryTrace();
    await simulate({ ...randomWorld(seed), record: world.record });
    worlds.push(await sha256(world.bytes()));
  }
  const text = new TextEncoder();
  const summary = JSON.stringify(summarize(TraceReader.of(trace)), (_, value) =>
    typeof value === 'bigint' ? `${value}` : value,
  );
  const results: TraceResults = {
    identical,
    records,
    faults,
    again: await sha256(writtenAgain(trace)),
    summary: await sha256(text.encode(summary)),
    worlds: await sha256(text.encode(worlds.join())),
  };
  console.log(TRACES + JSON.stringify(results));
}
