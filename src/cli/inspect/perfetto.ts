// A trace as JSON for Perfetto, streamed to a file or to stdout.

import { createWriteStream } from 'node:fs';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { perfettoJson, type TraceReader } from '../../trace/index.js';

/** Writes it, and closes the reader. Why the trace ends early, if it does. */
export async function writePerfetto(reader: TraceReader, output: string): Promise<string | undefined> {
  const json = Readable.from(perfettoJson(reader), { objectMode: false });
  try {
    if (output === '-') await pipeline(json, process.stdout, { end: false });
    else await pipeline(json, createWriteStream(output));
  } catch (error) {
    // Whoever reads stdout has seen enough.
    if ((error as NodeJS.ErrnoException).code !== 'EPIPE') throw error;
  }
  return reader.damage;
}
