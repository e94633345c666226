// The demo's trace: whether its file can be written, and what became of it.

import { closeSync, openSync } from 'node:fs';
import type { TraceWriter } from '../../trace/index.js';

/** Where to record to, and what to write down of the run. Can be posted. */
export interface RecordTask {
  file: string;
  about: Record<string, unknown>;
}

/** What became of a recording. */
export interface Recorded {
  records: number;
  bytes: number;
  /** Why it ended before its time. */
  failure: string | null;
}

/** @throws where the file cannot be written, before anything else is begun */
export function checkWritable(file: string): void {
  closeSync(openSync(file, 'w'));
}

export function told({ records, bytesWritten, failure }: TraceWriter): Recorded {
  return { records, bytes: bytesWritten, failure: failure?.message ?? null };
}
