// The handlers of a round: a thread in C, or a worker that runs the library's loop. Both register the region and bind
// their thread to a processor before a round, and unregister the region after it.

import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { type Mapping, Userfaultfd, type Wait } from '../src/index.js';
import { type CWait, checked, type Native } from './native.js';
import type { ServerData, ServerOrder, ServerReport } from './server.js';

/** What every handler works on: the region, and the page that the handler copies to each faulting page. */
export interface Arena {
  native: Native;
  library: string;
  region: Mapping;
  source: Mapping;
  pageSize: number;
  /** How many ranges of one page each the library's handler registers besides the region. */
  otherRanges: number;
}

export interface Handler {
  readonly name: string;
  /** Serves the region from a thread on processor `cpu`; −1: wherever the scheduler puts it. */
  begin(cpu: number): Promise<void>;
  /** Stops; returns how many faults it answered. */
  end(): Promise<number>;
  /** Ends the handler. */
  dismiss(): Promise<void>;
}

export function cHandler(arena: Arena, name: string, wait: CWait): Handler {
  const { native, region, source, pageSize } = arena;
  return {
    name,
    async begin(cpu) {
      const { address, length } = region;
      checked(name, native.serveBegin(address, length, pageSize, source.address, wait, cpu));
    },
    async end() {
      return native.serveEnd();
    },
    async dismiss() {},
  };
}

/** `more`: whether the handler answers from a source, and the file that it records to. */
export function ourHandler(
  arena: Arena,
  wait: Wait,
  more: Pick<ServerData, 'sourced' | 'record'> = {},
): Handler {
  const { library, region, source, pageSize, otherRanges } = arena;
  const workerData: ServerData = {
    library,
    wait,
    region: region.share(),
    source: source.share(),
    pageSize,
    otherRanges,
    ...more,
  };
  const worker = new Worker(new URL('server.js', import.meta.url), { workerData });
  const ended = once(worker, 'exit').then(() => {
    throw new Error(`${wait}: its thread has ended`);
  });
  ended.catch(() => {});
  let stopHandle: SharedArrayBuffer | undefined;
  const stop = (): void => {
    if (stopHandle) Userfaultfd.stop(stopHandle);
    stopHandle = undefined;
  };
  const ask = async (order: ServerOrder): Promise<ServerReport> => {
    worker.postMessage(order);
    const [report] = (await Promise.race([once(worker, 'message'), ended])) as [ServerReport];
    if ('error' in report) throw new Error(`${wait}: ${report.error}`);
    return report;
  };
  return {
    name: wait,
    async begin(cpu) {
      const report = await ask({ begin: cpu });
      if ('stopHandle' in report) stopHandle = report.stopHandle;
    },
    async end() {
      stop();
      const report = await ask('end');
      return 'answered' in report ? report.answered : 0;
    },
    async dismiss() {
      stop();
      await ask('leave');
      await worker.terminate();
    },
  };
}
