// Traces in files: the one thing of Node that traces need, asked for when it is needed, so that all else runs where
// there are no files.

import { UnsupportedError } from '../kernel.js';

/** @throws UnsupportedError where this is not Node */
export function nodeFiles(): typeof import('node:fs') {
  const fs = globalThis.process?.getBuiltinModule?.('fs');
  if (fs) return fs;
  throw new UnsupportedError('files need Node; elsewhere a trace goes to a sink and comes from a source');
}
