// A thread that reads a byte of each page of a mapping, then stops the loop that has served it.

import { parentPort, workerData } from 'node:worker_threads';
import { Mapping, type SharedMapping, Userfaultfd } from '../../src/index.js';

export interface Task {
  memory: SharedMapping;
  stopHandle: SharedArrayBuffer;
}

const { memory, stopHandle }: Task = workerData;
const { bytes, pageSize } = Mapping.attach(memory);
const read: number[] = [];
for (let at = 0; at < bytes.length; at += pageSize) read.push(bytes[at] as number);
parentPort?.postMessage(read);
Userfaultfd.stop(stopHandle);
