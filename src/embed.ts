// The entry `userfaultfd/embed`: for programs that are bundled into one file. Importing it never fails.

import { type KoffiBinary, koffiFile, koffiVersion, useKoffi } from '../shim/koffi.js';
import { checkOptions } from './arguments.js';
import {
  type Entry,
  type OwnFile,
  type Parts,
  startProcess,
  startThread,
  startWith,
  takePart,
} from './parts.js';

export type { Entry, KoffiBinary, OwnFile, Parts };
export { koffiFile, koffiVersion, startProcess, startThread };

export interface EmbedOptions {
  /**
   * What the library's threads are started with: the bundle itself, as `import.meta.url` or `__filename` tell it; or its
   * text, where it is a CommonJS module that lies in no file, as in a single executable.
   */
  entry: Entry;
  /**
   * koffi's binary, a file or its bytes. Bytes are written to a file in the system's temporary folder, which is gone as
   * soon as they are loaded. Without it the package `koffi` is loaded from `node_modules`.
   */
  koffi?: KoffiBinary | undefined;
  /** Parts of the program itself, for `startThread` and `startProcess`. */
  parts?: Parts;
}

/** The library's own. */
const PARTS: Parts = {
  session: async () => (await import('./serve/session-worker.js')).serveSessions(),
  lifter: async () => (await import('./dirty/lifter.js')).lift(),
};

/**
 * Tells the library that it is part of a bundle: where koffi's binary is, and what threads are started with. To be called
 * first, in every thread and process that is started with the bundle. docs/embedding.md shows a whole program.
 *
 * @returns Whether this is one of those: it runs its part then, and the program has nothing to do in it.
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
  const { entry, koffi, parts = {} } = options;
  startWith(entry);
  if (koffi !== undefined) useKoffi(koffi);
  const name = takePart();
  if (name === undefined) return false;
  const run = { ...parts, ...PARTS }[name];
  if (!run) throw new RangeError(`this program has no part '${name}'`);
  // What it throws ends the thread or process, and whoever has started it hears of that.
  void (async () => run())();
  return true;
}
