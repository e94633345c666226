// Parts: pieces of a program that run in a thread or a process of their own. Each is started with a file that is told by
// its first argument which part it is to run. As installed, that is a file of the package; in a bundle it is the bundle,
// which says so by `embed`.

import { type ChildProcess, type ForkOptions, fork } from 'node:child_process';
import { isMainThread, Worker, type WorkerOptions } from 'node:worker_threads';
import { UnsupportedError } from './kernel.js';

/** What runs a part, by its name: called once, in the thread or process that the part is for. */
export type Parts = Readonly<Record<string, () => unknown>>;

/** What threads and processes are started with: a file, or its text (CommonJS), where it lies in no file. */
export type Entry = string | URL | { readonly code: string };

const MARK = '--userfaultfd-part=';

let entry: Entry | undefined;

/** Has all parts started with this. */
export function startWith(chosen: Entry): void {
  entry = chosen;
}

/**
 * Starts a part in a thread.
 *
 * @param own where no `embed` has chosen anything: the file that runs the part
 * @throws UnsupportedError there is nothing to start it with
 */
export function startThread(name: string, options: WorkerOptions = {}, own?: OwnFile): Worker {
  const chosen = entry ?? fileOf(name, own);
  const argv = [MARK + name];
  return isText(chosen)
    ? new Worker(chosen.code, { ...options, argv, eval: true })
    : new Worker(urlOf(chosen), { ...options, argv });
}

/**
 * Starts a part in a process, with a channel to it.
 *
 * @param own where no `embed` has chosen anything: the file that runs the part
 * @throws UnsupportedError there is no file to start it with
 */
export function startProcess(
  name: string,
  args: readonly string[] = [],
  options: ForkOptions = {},
  own?: OwnFile,
): ChildProcess {
  const chosen = entry ?? fileOf(name, own);
  if (isText(chosen)) {
    throw new UnsupportedError(`the process '${name}' needs a file to be started with, and has a text only`);
  }
  return fork(urlOf(chosen), [MARK + name, ...args], options);
}

/** A file, and the module whose neighbour it is (`import.meta.url`, which some bundles have not). */
export interface OwnFile {
  readonly file: string;
  readonly module: string | undefined;
}

function isText(chosen: Entry): chosen is Extract<Entry, { code: string }> {
  return typeof chosen === 'object' && 'code' in chosen;
}

function fileOf(name: string, { file, module }: Partial<OwnFile> = {}): URL {
  if (file === undefined || module === undefined) {
    throw new UnsupportedError(
      `'${name}' cannot be started: in a bundle, the library has to be told what to start it with ` +
        '(embed, docs/embedding.md)',
    );
  }
  return new URL(file, module);
}

function urlOf(file: string | URL): string | URL {
  return typeof file === 'string' && file.startsWith('file:') ? new URL(file) : file;
}

/** The part that this thread or process was started for; its arguments are then those that it was given. */
export function takePart(): string | undefined {
  const [, , first] = process.argv;
  if (!first?.startsWith(MARK)) return undefined;
  // A process has a channel to whoever started it; a command line has none.
  if (isMainThread && process.send === undefined) return undefined;
  process.argv.splice(2, 1);
  return first.slice(MARK.length);
}
