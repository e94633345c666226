// Calls of what a worker offers by name, by message.

import type { Worker } from 'node:worker_threads';

/** Calls an action of a worker. The worker answers `{ id, action, args }` with `{ id, result }` or `{ id, error }`. */
export type Call = (action: string, args: unknown[]) => Promise<unknown>;

/** The calls that are under way reject if the worker ends with an error. */
export function callsOf(worker: Worker): Call {
  let last = 0;
  const waiting = new Map<number, { resolve(result: unknown): void; reject(error: unknown): void }>();
  worker.on('message', ({ id, result, error }) => {
    if (error) waiting.get(id)?.reject(error);
    else waiting.get(id)?.resolve(result);
    waiting.delete(id);
  });
  worker.on('error', (error) => {
    for (const { reject } of waiting.values()) reject(error);
  });
  return (action, args) =>
    new Promise((resolve, reject) => {
      const id = ++last;
      waiting.set(id, { resolve, reject });
      worker.postMessage({ id, action, args });
    });
}
