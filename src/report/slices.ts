// Runs long work in slices, so that the report stays responsive.

const SLICE_MS = 8;

/** Calls `step` until it returns false; `between` is called between slices. */
export async function inSlices(step: () => boolean, between: () => void): Promise<void> {
  for (;;) {
    const end = performance.now() + SLICE_MS;
    while (performance.now() < end) {
      for (let steps = 0; steps < 100; steps++) if (!step()) return;
    }
    between();
    await turn();
  }
}

const channel = new MessageChannel();
const waiting: (() => void)[] = [];
channel.port1.onmessage = () => waiting.shift()?.();

/** Resolves after the browser's pending work. A timer would wait 4 ms each time. */
export function turn(): Promise<void> {
  return new Promise((resolve) => {
    waiting.push(resolve);
    channel.port2.postMessage(0);
  });
}
