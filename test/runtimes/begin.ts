// To be imported before any test: they are gathered, and run when all are there. What becomes of each is a line of the
// console, for whoever started this.

import type { Report } from '../harness.js';
import { MARK } from './files.js';

declare global {
  var UVU_DEFER: boolean | undefined;
  var UVU_QUEUE: unknown[][] | undefined;
}

globalThis.UVU_DEFER = true;
globalThis.UVU_QUEUE = [[null]];
globalThis.uffdReport = (line: Report) => console.log(MARK + JSON.stringify(line));
