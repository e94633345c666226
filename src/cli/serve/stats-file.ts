// The file of --stats-json.
//
// Rule: a file that is served, read or recorded to is never overwritten, by whatever link or second name. This is
// checked before a monitor can connect, and again when the file is written, because names may have changed by then.

import {
  accessSync,
  type BigIntStats,
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  openSync,
  readdirSync,
  realpathSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import type { ServeOptions } from '../../serve/index.js';
import { Refusal } from '../exit.js';

/** The options that say which files are served, read and recorded to. */
type Files = Pick<ServeOptions, 'vms' | 'prefetch' | 'record'>;

/**
 * Checks that the file can be written, without changing it.
 *
 * @throws Refusal
 */
export function checkStats(file: string, files: Files): void {
  refusing(file, () => {
    const { record } = files;
    if (record !== undefined && isRecording(file, record)) throw new Refusal('a session is recorded to it');
    const stat = statSync(file, { bigint: true, throwIfNoEntry: false });
    if (stat === undefined) accessSync(dirname(file), constants.W_OK | constants.X_OK);
    else if (stat.isDirectory()) throw new Refusal('it is a directory');
    else {
      refuseKept(stat, files);
      // Opening and closing a pipe would signal the end of the output to its reader.
      if (stat.isFile()) closeSync(openSync(file, constants.O_WRONLY));
    }
  });
}

/** Writes the file. @throws Refusal, with nothing changed */
export function writeStats(file: string, text: string, files: Files): void {
  refusing(file, () => {
    const fd = openSync(file, constants.O_WRONLY | constants.O_CREAT | constants.O_NOCTTY, 0o666);
    try {
      const stat = fstatSync(fd, { bigint: true });
      refuseKept(stat, files);
      if (stat.isFile()) ftruncateSync(fd);
      writeFileSync(fd, text);
    } finally {
      closeSync(fd);
    }
  });
}

function refuseKept({ dev, ino }: BigIntStats, { vms, prefetch = [], record }: Files): void {
  const kept = [
    ...vms.map(({ memory }) => [memory, 'the memory file'] as const),
    ...vms.flatMap(({ layers = [] }) => layers.map((layer) => [layer, 'the diff snapshot'] as const)),
    ...prefetch.map((trace) => [trace, 'the trace'] as const),
    ...(record === undefined ? [] : recordings(record)).map((trace) => [trace, 'the recording'] as const),
  ];
  for (const [path, what] of kept) {
    const stat = statSync(path, { bigint: true, throwIfNoEntry: false });
    if (stat?.dev === dev && stat.ino === ino) throw new Refusal(`it is ${what} ${path}`);
  }
}

/** The traces of sessions that exist. */
function recordings(record: string): string[] {
  const folder = dirname(record);
  try {
    const paths = readdirSync(folder).map((name) => join(folder, name));
    return paths.filter((path) => isRecording(path, record));
  } catch {
    // The folder is missing, or cannot be listed.
    return [record];
  }
}

/**
 * Whether a session may be recorded to a file: the first to the path that was given, the second to PATH.2, and so on.
 */
function isRecording(file: string, record: string): boolean {
  const [name, first] = [basename(file), basename(record)];
  const isNamed =
    name === first || (name.startsWith(`${first}.`) && /^\d+$/.test(name.slice(first.length + 1)));
  return isNamed && realpathSync(dirname(file)) === realpathSync(dirname(record));
}

function refusing(file: string, body: () => void): void {
  try {
    body();
  } catch (error) {
    throw new Refusal(`cannot write statistics to ${file}: ${(error as Error).message}`);
  }
}
