// Parts: pieces of a program that run in a thread or a process of their own. A part is started with a file, and the
// first argument names the part. In an installed package, the file belongs to the package. In a bundle, it is the
// bundle itself, which calls `embed`.

import { type ChildProcess, type ForkOptions, fork } from 'node:child_process';
import { isMainThread, Worker, type WorkerOptions } from 'node:worker_threads';
import { UnsupportedError } from '../kernel/port.js';

/** The functions that run parts, by name: called once, in the thread or process of the part. */
export type Parts = Readonly<Record<string, () => unknown>>;

/** The file that threads and processes are started with; or its text (CommonJS), if there is no file. */
export type Entry = string | URL | { readonly code: string };

const MARK = '--userfaultfd-part=';

let entry: Entry | undefined;

/** A part whose thread may be started early, with options that never differ. */
export interface EarlyThread {
  readonly name: string;
  readonly options: WorkerOptions;
  readonly own: OwnFile;
}

/** A thread that was started early and is not in use yet. */
let early: { readonly part: EarlyThread; readonly worker: Worker } | undefined;

/** Sets the file or text that all parts are started with. */
export function startWith(chosen: Entry): void {
  entry = chosen;
}

/**
 * Starts a part in a thread.
 *
 * @param own the file that runs the part, if `embed` was not called
 * @throws UnsupportedError if there is no file or text to start it with
 */
export function startThread(name: string, options: WorkerOptions = {}, own?: OwnFile): Worker {
  const chosen = entry ?? fileOf(name, own);
  const all = { ...options, ...inherited(), argv: [MARK + name] };
  return isText(chosen) ? new Worker(chosen.code, { ...all, eval: true }) : new Worker(urlOf(chosen), all);
}

/** A thread inherits Node's options, and none that is about a program without a file (`node --input-type=module -e …`). */
function inherited(): WorkerOptions {
  return process.execArgv.some((option) => option.startsWith('--input-type')) ? { execArgv: [] } : {};
}

/**
 * Starts the thread of a part before it is needed, for the next `takeThread` of that part. It does not keep the process
 * alive. If it fails, the failure is left to `takeThread`, which starts another one.
 */
export function startEarly(part: EarlyThread): void {
  try {
    const worker = startThread(part.name, part.options, part.own);
    early = { part, worker };
    const forget = (): void => {
      if (early?.worker === worker) early = undefined;
    };
    worker.on('error', forget).on('exit', forget).unref();
  } catch {
    // `takeThread` meets the same error.
  }
}

/**
 * The thread of a part: the one that was started early, or a new one.
 *
 * @throws UnsupportedError, as `startThread`; the errors of Worker
 */
export function takeThread(part: EarlyThread): Worker {
  const { worker } = early?.part === part ? early : { worker: undefined };
  early = undefined;
  return worker ?? startThread(part.name, part.options, part.own);
}

/**
 * Starts a part in a process, with a channel to it.
 *
 * @param own the file that runs the part, if `embed` was not called
 * @throws UnsupportedError if there is no file to start it with
 */
export function startProcess(
  name: string,
  args: readonly string[] = [],
  options: ForkOptions = {},
  own?: OwnFile,
): ChildProcess {
  const chosen = entry ?? fileOf(name, own);
  if (isText(chosen)) {
    throw new UnsupportedError(`the process '${name}' cannot be started with a text: pass a file to embed`);
  }
  return fork(urlOf(chosen), [MARK + name, ...args], options);
}

/** A file, and the module next to it (`import.meta.url`, which is undefined in some bundles). */
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
      `'${name}' cannot be started: in a bundle, call embed to say what threads are started with ` +
        '(embed, docs/guides/embed.md)',
    );
  }
  return new URL(file, module);
}

function urlOf(file: string | URL): string | URL {
  return typeof file === 'string' && file.startsWith('file:') ? new URL(file) : file;
}

/** Returns the part that this thread or process was started for, and removes its name from the arguments. */
export function takePart(): string | undefined {
  const [, , first] = process.argv;
  if (!first?.startsWith(MARK)) return undefined;
  // A process started as a part has a channel to its parent; a process started from a command line has none.
  if (isMainThread && process.send === undefined) return undefined;
  process.argv.splice(2, 1);
  return first.slice(MARK.length);
}
