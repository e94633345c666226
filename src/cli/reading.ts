// How far the reading of a trace has come, as a bar on stderr, where that is a terminal and the trace is long. Who reads
// may never come back to the event loop, so the bar is drawn from the trace's blocks.

import { SingleBar } from 'cli-progress';
import type { TraceReader } from '../trace/index.js';
import { columnsOf, grouped } from './text.js';

/** Shorter traces are over before a bar could be looked at. */
const LEAST_BYTES = 2 ** 20;

export interface Progress {
  /** May be called again. */
  end(): void;
}

export function followReading(
  reader: TraceReader,
  fileBytes: number,
  silent: boolean,
  stream = process.stderr,
): Progress {
  if (silent || !stream.isTTY || process.env.TERM === 'dumb' || fileBytes < LEAST_BYTES) return { end() {} };
  const begun = performance.now();
  const bar = new SingleBar({
    stream,
    format: '{bar} {percentage}% {rate} calls/s',
    barsize: Math.max(5, Math.min(30, columnsOf(stream) - 26)),
    barCompleteChar: '█',
    barIncompleteChar: '░',
    // Nobody could put them right again where the replay is interrupted.
    hideCursor: false,
    linewrap: true,
    synchronousUpdate: true,
  });
  bar.start(fileBytes, 0, { rate: '0' });
  reader.onBlock = () => {
    const seconds = (performance.now() - begun) / 1000;
    bar.update(reader.bytesRead, { rate: grouped(reader.records / Math.max(seconds, 0.001)) });
  };
  return {
    end() {
      reader.onBlock = undefined;
      bar.stop();
    },
  };
}
