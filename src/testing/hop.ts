// Lets everything that waits for a promise go on, as far as it can without time passing: a turn of the real event loop.

/** A way to be called behind all microtasks. */
function behindMicrotasks(): (done: () => void) => void {
  // Taken once, so that a test's own clock does not hold it up.
  const { setImmediate, MessageChannel } = globalThis;
  if (typeof setImmediate === 'function') return (done) => void setImmediate(done);
  const { port1, port2 } = new MessageChannel();
  const waiting: (() => void)[] = [];
  port1.onmessage = () => waiting.shift()?.();
  return (done) => {
    waiting.push(done);
    port2.postMessage(0);
  };
}

let later: ((done: () => void) => void) | undefined;

export function hop(): Promise<void> {
  later ??= behindMicrotasks();
  return new Promise(later);
}
