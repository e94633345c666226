// Imported before any test file: collects the tests and runs them after all are defined. Prints each result as a line
// to the console, for the process that started this one.

import type { Report } from '../support/harness.js';
import { MARK } from './files.js';

declare global {
  var UVU_DEFER: boolean | undefined;
  var UVU_QUEUE: unknown[][] | undefined;
}

globalThis.UVU_DEFER = true;
globalThis.UVU_QUEUE = [[null]];
globalThis.uffdReport = (line: Report) => console.log(MARK + JSON.stringify(line));
