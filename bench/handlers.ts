// Who answers the faults of a round: a thread in C, or a worker that runs our loop. Both register the region
// and bind their thread to a processor before a round, and let go of the region behind it.

import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { type Mapping, Userfaultfd, type Wait } from '../src/index.js';
import { type CWait, checked, type Native } from './native.js';
import type { ServerData, ServerOrder, ServerReport } from './server.js';

/** What every handler answers with: the memory, and the page that goes everywhere. */
export interface Arena {
  native: Native;
  library: string;
  region: Mapping;
  source: Mapping;
  pageSize: number;
  /** Registered ranges of ours besides the region, a page each. */
  otherRanges: number;
}

export interface Handler {
  readonly name: string;
  /** Serves the region from a thread on processor `cpu`; −1: wherever the scheduler puts it. */
  begin(cpu: number): Promise<void>;
  /** Stops; how many faults it answered. */
  end(): Promise<number>;
  /** It is not needed any more. */
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

/** `record`: the file to record to. */
export function ourHandler(arena: Arena, wait: Wait, record?: string): Handler {
  const { library, region, source, pageSize, otherRanges } = arena;
  const workerData: ServerData = {
    library,
    wait,
    region: region.share(),
    source: source.share(),
    pageSize,
    otherRanges,
    ...(record === undefined ? {} : { record }),
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
