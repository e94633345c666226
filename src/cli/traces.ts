// Traces that commands are given: opened, or refused with the file's name; and what is made of them, streamed.

import { createWriteStream, realpathSync } from 'node:fs';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { TraceError, TraceReader } from '../trace/index.js';
import { EXIT, Refusal, Usage } from './exit.js';
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

/** @throws Usage where what is made of a trace would take its place */
export function checkOther(file: string, output: string): void {
  if (output !== '-' && isSame(file, output)) throw new Usage(`${printable(output)} is the trace itself`);
}

function isSame(one: string, other: string): boolean {
  try {
    return realpathSync(one) === realpathSync(other);
  } catch {
    return false;
  }
}

/** Writes text to a file, or where that is '-' to stdout. A reader of stdout that has seen enough is no failure. */
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

/** For what has no place of its own to say it. */
export function tellDamage(file: string, damage: string | undefined): void {
  if (damage === undefined) return;
  process.stderr.write(`uffd: ${printable(file)} is not whole: ${damage}\n`);
  process.exitCode = EXIT.failed;
}
