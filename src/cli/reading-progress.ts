// A progress bar for reading a trace. It is drawn on stderr if that is a terminal and the trace is long. The reader may
// never return to the event loop, so the bar is drawn when a block is read.

import type { TraceReader } from '../trace/index.js';
import { columnsOf, grouped } from './text.js';

/** Bytes of a trace below which no bar is drawn: a shorter trace is read before a bar would be seen. */
const LEAST_BYTES = 2 ** 20;

/** Returns a function that removes the bar. It may be called more than once. */
export async function followReading(
  reader: TraceReader,
  fileBytes: number,
  silent: boolean,
): Promise<() => void> {
  const stream = process.stderr;
  if (silent || !stream.isTTY || process.env.TERM === 'dumb' || fileBytes < LEAST_BYTES) return () => {};
  const { default: progress } = await import('cli-progress');
  const begun = performance.now();
  const bar = new progress.SingleBar({
    stream,
    format: '{bar} {percentage}% {rate} calls/s',
    barsize: Math.max(5, Math.min(30, columnsOf(stream) - 26)),
    barCompleteChar: '█',
    barIncompleteChar: '░',
    // If the replay is interrupted, the cursor and other settings of the terminal could not be restored.
    hideCursor: false,
    linewrap: true,
    synchronousUpdate: true,
  });
  bar.start(fileBytes, 0, { rate: '0' });
  reader.onBlock = () => {
    const seconds = (performance.now() - begun) / 1000;
    bar.update(reader.bytesRead, { rate: grouped(reader.records / Math.max(seconds, 0.001)) });
  };
  return () => {
    reader.onBlock = undefined;
    bar.stop();
  };
}
