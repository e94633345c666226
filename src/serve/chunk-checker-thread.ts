// The thread that decompresses and hashes chunks (chunk-checker.ts).

import { parentPort } from 'node:worker_threads';
import { openFrameTools } from '../store/frame-check.js';
import { type Checked, type CheckTask, checkChunk } from './chunk-checker.js';

/** The main function of the thread: runs until it is asked to end. */
export async function checkChunks(): Promise<void> {
  // Messages wait until there is a listener.
  const tools = await openFrameTools();
  parentPort?.on('message', (task: CheckTask | 'end') => {
    if (task === 'end') {
      parentPort?.close();
      tools.decompressor.close();
      return;
    }
    const why = checkChunk(tools, task);
    parentPort?.postMessage({ number: task.number, why } satisfies Checked);
  });
  parentPort?.postMessage({} satisfies Checked);
}
