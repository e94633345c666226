// A thread that opens a remote file, reads from it, and closes it. It must then end by itself: nothing that the source
// opened may keep it alive.

import { parentPort, workerData } from 'node:worker_threads';
import { type HttpSource, openHttpSource } from '../../../src/pager/http-source.js';
import { NEVER } from './http-server.js';

export interface Task {
  source: HttpSource;
  /** Where to read while the file is open, 100 bytes each, and whether to close without waiting for them. */
  offsets: number[];
  closeEarly: boolean;
}

const { source, offsets, closeEarly } = workerData as Task;
const file = await openHttpSource(source, NEVER);
const reads = offsets.map((offset) => file.read(offset, new Uint8Array(100), NEVER, () => {}));
if (!closeEarly) await Promise.all(reads);
// Until the requests are under way.
else await new Promise((resolve) => parentPort?.once('message', resolve));
file.close();
const results = await Promise.allSettled(reads);
parentPort?.postMessage(results.map(({ status }) => status));
