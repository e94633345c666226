// Opens the trace files of the commands, with errors that name the file. Writes the output of commands as a stream.

import { createWriteStream, realpathSync } from 'node:fs';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { Recorded } from '../serve/index.js';
import { TraceError, TraceReader, type TraceWriter } from '../trace/index.js';
import { EXIT, Refusal, Usage } from './exit.js';
import { printable } from './text.js';

/** @throws Refusal if the file is no trace; errors of the file system */
export function openTrace(file: string): TraceReader {
  try {
    return TraceReader.fromFile(file);
  } catch (error) {
    if (error instanceof TraceError) throw new Refusal(`${printable(file)}: ${error.message}`);
    throw error;
  }
}

/** How a recording ended. */
export function recordedBy({ records, bytesWritten, failure }: TraceWriter): Recorded {
  return { records, bytes: bytesWritten, failure: failure?.message ?? null };
}

/** @throws Usage if the output would replace the trace */
export function checkOther(file: string, output: string): void {
  if (output !== '-' && isSame(file, output)) throw new Usage(`${printable(output)} is the trace itself`);
}

/** Whether two paths lead to one file that is there. */
export function isSame(one: string, other: string): boolean {
  try {
    return realpathSync(one) === realpathSync(other);
  } catch {
    return false;
  }
}

/** Writes text to a file, or to stdout for '-'. If the reader of stdout closes it, that is no failure. */
export async function writeText(
  output: string,
  pieces: Iterable<string> | AsyncIterable<string>,
): Promise<void> {
  const text = Readable.from(pieces, { objectMode: false });
  try {
    if (output === '-') await pipeline(text, process.stdout, { end: false });
    else await pipeline(text, createWriteStream(output));
  } catch (error) {
    if (output !== '-' || (error as NodeJS.ErrnoException).code !== 'EPIPE') throw error;
  }
}

/** Reports damage of a trace on stderr. */
export function tellDamage(file: string, damage: string | undefined): void {
  if (damage === undefined) return;
  process.stderr.write(`uffd: ${printable(file)} is not whole: ${damage}\n`);
  process.exitCode = EXIT.failed;
}
