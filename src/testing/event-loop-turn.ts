// Waits for one turn of the real event loop, so that all promise callbacks that wait for nothing else have run.

/** A function that calls back after all microtasks. */
function behindMicrotasks(): (done: () => void) => void {
  // Taken once, at the first call, so that a test that replaces these functions later does not affect it.
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

export function eventLoopTurn(): Promise<void> {
  later ??= behindMicrotasks();
  return new Promise(later);
}
