// The thread that hashes the memory, slice by slice, because a mapping may be larger than one Uint8Array.

import { createHash } from 'node:crypto';
import { parentPort, workerData } from 'node:worker_threads';
import { Mapping } from '../../index.js';
import type { HashTask } from './messages.js';

/** Small enough for the thread to be terminated soon: only between two slices can it be. */
const SLICE_BYTES = 2 ** 24;

const task: HashTask = workerData;
const memory = Mapping.attach(task.memory);
const hash = createHash('sha256');
for (let at = 0; at < task.length; at += SLICE_BYTES) {
  hash.update(memory.slice(at, Math.min(at + SLICE_BYTES, task.length)));
}
parentPort?.postMessage(hash.digest('hex'));
