// Traces that commands are given: opened, or refused with the file's name.

import { TraceError, TraceReader } from '../trace/index.js';
import { Refusal } from './exit.js';
import { printable } from './text.js';

/** @throws Refusal where the file is no trace; what the file system throws */
export function openTrace(file: string): TraceReader {
  try {
    return TraceReader.fromFile(file);
  } catch (error) {
    if (error instanceof TraceError) throw new Refusal(`${printable(file)}: ${error.message}`);
    throw error;
  }
}
