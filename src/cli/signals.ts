// Turns SIGINT and SIGTERM into an abort, so that a command can put everything away.
//
// Rule: one Ctrl-C may arrive twice, from the terminal and from npm, which passes it on. Only a signal that
// comes well after the first means that the user will not wait: it ends the process at once.

import { Interrupted } from './exit.js';

const SIGNALS = ['SIGINT', 'SIGTERM'] as const;
const PATIENCE_MS = 1000;

/** Runs `body` with an abort signal; once that is aborted, its reason is the error to fail with. */
export async function interruptible<T>(body: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const controller = new AbortController();
  let first: number | undefined;
  const onSignal = (name: (typeof SIGNALS)[number]): void => {
    const now = performance.now();
    if (first === undefined) {
      first = now;
      controller.abort(new Interrupted(name));
    } else if (now - first > PATIENCE_MS) {
      release();
      process.kill(process.pid, name);
    }
  };
  const release = (): void => {
    for (const name of SIGNALS) process.off(name, onSignal);
  };
  for (const name of SIGNALS) process.on(name, onSignal);
  try {
    return await body(controller.signal);
  } catch (error) {
    controller.signal.throwIfAborted();
    throw error;
  } finally {
    release();
  }
}

/** Rejects with the signal's reason, as soon as it is aborted. */
export function aborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(signal.reason);
    else signal.addEventListener('abort', () => reject(signal.reason), { once: true });
  });
}

/** Calls back for each SIGINT and SIGTERM that means something by itself: how many of its kind there were. */
export function onSignals(callback: (name: (typeof SIGNALS)[number], times: number) => void): {
  close(): void;
} {
  let last = Number.NEGATIVE_INFINITY;
  let times = 0;
  const onSignal = (name: (typeof SIGNALS)[number]): void => {
    const now = performance.now();
    // One Ctrl-C may arrive twice; a SIGTERM never does.
    if (name === 'SIGINT' && now - last < PATIENCE_MS) return;
    last = now;
    callback(name, ++times);
  };
  for (const name of SIGNALS) process.on(name, onSignal);
  return {
    close() {
      for (const name of SIGNALS) process.off(name, onSignal);
    },
  };
}
