// A worker that opens a pager, says what to attach to it, and ends as it is told: see pager-lifetime.once.test.ts.

import { parentPort, workerData } from 'node:worker_threads';
import { fileSource, Pager } from '../../../src/pager/index.js';
import { fillBytes } from './pager-source.js';

const { path, how } = workerData as { path: string | undefined; how: 'exits' | 'returns' | 'stays' };
const source =
  path === undefined
    ? { size: 2 ** 22, read: (offset: number, into: Uint8Array) => void fillBytes(into, offset) }
    : fileSource(path);
const pager = await Pager.open({ source, resident: 2 ** 20 });
parentPort?.postMessage(pager.share());
parentPort?.once('message', () => {
  if (how === 'exits') process.exit();
});
if (how === 'stays') setInterval(() => {}, 1000);
