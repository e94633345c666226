// Trace files. Node's file system is loaded when it is first needed, so all other code also runs where there is no file
// system.

import { UnsupportedError } from '../kernel/port.js';

/** @throws UnsupportedError if this is not Node */
export function nodeFiles(): typeof import('node:fs') {
  const fs = globalThis.process?.getBuiltinModule?.('fs');
  if (fs) return fs;
  throw new UnsupportedError('files need Node; elsewhere a trace goes to a sink and comes from a source');
}
