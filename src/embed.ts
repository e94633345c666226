// The entry `userfaultfd/embed`: for programs that are bundled into one file. Importing it never fails.

import { type KoffiBinary, koffiFile, koffiVersion, useKoffi } from '../shim/koffi.js';
import { checkOptions } from './errors/arguments.js';
import { SESSION_THREAD } from './serve/session-thread.js';
import {
  type Entry,
  type OwnFile,
  type Parts,
  startEarly,
  startProcess,
  startThread,
  startWith,
  takePart,
} from './workers/launcher.js';

export type { Entry, KoffiBinary, OwnFile, Parts };
export { koffiFile, koffiVersion, startProcess, startThread };

export interface EmbedOptions {
  /**
   * The file that the library's threads are started with: the bundle, as `import.meta.url` or `__filename` names it. Or
   * the bundle's text, if it is a CommonJS module without a file, as in a single executable.
   */
  entry: Entry;
  /**
   * koffi's binary: a file, or its bytes. Bytes are written to a file in the system's temporary folder, which is deleted
   * right after loading. Without this option the package `koffi` is loaded from `node_modules`.
   */
  koffi?: KoffiBinary | undefined;
  /** The program's own parts, by name, which `startThread` and `startProcess` start. */
  parts?: Parts;
  /**
   * Whether this program will call `serve`: its first thread is started at once, while the program loads its other code.
   * `serve` then resolves some 30 ms sooner. Default false.
   */
  serves?: boolean;
}

/** The library's own parts. */
const PARTS: Parts = {
  session: async () => (await import('./serve/session-worker.js')).serveSessions(),
  checker: async () => (await import('./serve/chunk-checker-thread.js')).checkChunks(),
  pager: async () => (await import('./pager/pager-thread.js')).servePager(),
  'conformance-guest': async () => (await import('./conformance/guest-process.js')).runGuest(),
  launcher: async () => (await import('./supervisor/launcher-process.js')).runLauncher(),
  connector: async () => (await import('./supervisor/launcher-process.js')).runConnector(),
  'handler-search': async () => (await import('./supervisor/check-simulated.js')).runSearch(),
  'handler-recorder': async () => (await import('./supervisor/record-run.js')).runRecording(),
  lifter: async () => (await import('./dirty/unprotect-worker.js')).unprotectPages(),
};

/**
 * Tells the library that it is part of a bundle: where koffi's binary is, and what to start threads with. Call it
 * first, in every thread and process that is started with the bundle. docs/guides/embed.md shows a whole program.
 *
 * @returns true in a thread or process that was started for a part: the part runs, and the program must do nothing there.
 *
 * @example
 * ```ts
 * import { embed, startThread } from 'userfaultfd/embed';
 *
 * const greet = () => console.log('a thread that was started with the same file');
 * if (!embed({ entry: import.meta.url, parts: { greet } })) startThread('greet');
 * ```
 */
export function embed(options: EmbedOptions): boolean {
  checkOptions(options, 'options');
  const { entry, koffi, parts = {}, serves = false } = options;
  startWith(entry);
  if (koffi !== undefined) useKoffi(koffi);
  const name = takePart();
  if (name === undefined) {
    if (serves) startEarly(SESSION_THREAD);
    return false;
  }
  const run = { ...parts, ...PARTS }[name];
  if (!run) throw new RangeError(`this program has no part '${name}'`);
  // An error of the part ends the thread or process, and the code that started it gets the error.
  void (async () => run())();
  return true;
}
