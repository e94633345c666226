// Turns SIGINT and SIGTERM into an abort, so that a command can clean up.
//
// Rule: one Ctrl-C may arrive twice, from the terminal and from npm, which forwards it. Only a signal that comes well
// after the first one ends the process at once, because the user does not want to wait.

import { Interrupted } from './exit.js';

const SIGNALS = ['SIGINT', 'SIGTERM'] as const;
const PATIENCE_MS = 1000;

/**
 * Runs `body` with an abort signal, which SIGINT and SIGTERM abort. The command then fails with the signal's reason.
 */
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
  const release = listen(onSignal);
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

/** Calls back for each distinct SIGINT and SIGTERM. `times`: how many of them have come so far. */
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
  return { close: listen(onSignal) };
}

/** Calls back for each signal until the returned function is called. */
function listen(onSignal: (name: (typeof SIGNALS)[number]) => void): () => void {
  for (const name of SIGNALS) process.on(name, onSignal);
  return () => {
    for (const name of SIGNALS) process.off(name, onSignal);
  };
}
