// forks.test.ts runs this in a process of its own: two threads of this process fork, and no descriptor is left for the
// children when the loop reads the event. After ten failed reads, the program frees one descriptor (`free`), or stops
// the loop and closes the userfaultfd (`close`). It prints the outcome as JSON.
//
//   descriptor-exhaustion.js WAY free|close LIBRARY      WAY: a wait strategy, or 'by hand'; LIBRARY: fork.c, compiled

import { closeSync, openSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { libc } from '../../../shim/libc.js';
import { Userfaultfd, type Wait } from '../../../src/index.js';
import { endAll, holdings, kernelWith, map, never, P, touchers, until } from '../../support/real-kernel.js';

export interface Starved {
  /** The wait statuses of the forked children. */
  statuses: number[];
  calls: string[];
  warnings: string[];
  /** The number of failed reads, and the duration of the first ten. */
  failedReads: number;
  elapsedMs: number;
  /** The number of descriptors that are left open. */
  left: number;
}

const RLIMIT_NOFILE = 7;
const EMFILE = 24;
/** Higher than every descriptor that Node and the test have open. */
const LIMIT = 300;

const [way, then, library] = process.argv.slice(2) as [Wait | 'by hand', 'free' | 'close', string];
const outcome: Starved = { statuses: [], calls: [], warnings: [], failedReads: 0, elapsedMs: 0, left: 0 };
process.on('warning', ({ message }) => void outcome.warnings.push(message));

const threads = await touchers(2);
for (const thread of threads) await thread.fork(library);
const before = holdings().descriptors;

let begun = 0;
const kernel = kernelWith((port) => {
  const read = port.read.bind(port);
  return {
    read(fd, offset, length) {
      const result = read(fd, offset, length);
      if (result === -EMFILE) {
        outcome.failedReads++;
        if (outcome.failedReads === 1) begun = performance.now();
        if (outcome.failedReads === 10) enough();
      }
      return result;
    },
  };
});
const uffd = Userfaultfd.open({ kernel, features: ['event-fork'] });
const base = map(1);
uffd.register(base, P);
const forked = threads.map((thread) => thread.fork(library));
await Promise.all(threads.map((thread) => thread.asleep()));
const fillers = takeAll();

function enough(): void {
  outcome.elapsedMs = performance.now() - begun;
  if (then === 'free') closeSync(fillers.pop() as number);
  else Userfaultfd.stop(uffd.stopHandle);
}

const handler = {
  pagefault: never,
  forked(child: Userfaultfd) {
    outcome.calls.push('forked');
    child.close();
    uffd.stop();
  },
  closed: (error?: Error) => void outcome.calls.push(error ? error.message : 'closed'),
};
if (way === 'by hand') {
  const done = (): boolean => (then === 'free' ? outcome.calls.length > 0 : outcome.failedReads >= 10);
  while (!done()) if (uffd.poll(handler) === 0) await sleep(1);
} else {
  uffd.start(handler, { wait: way });
  await until(() => !uffd.waiting, 'the loop to stop');
}
uffd.close();
outcome.statuses = await Promise.all(forked);
for (const fd of fillers) closeSync(fd);
await sleep(20);
outcome.left = holdings().descriptors - before;
await endAll();
console.log(JSON.stringify(outcome));

/** Lowers the limit, and takes every free descriptor below it. */
function takeAll(): number[] {
  const { koffi } = libc();
  const limits = new BigUint64Array([BigInt(LIMIT), BigInt(LIMIT)]);
  const setrlimit = koffi.load(null).func('setrlimit', 'int', ['int', 'void *']);
  if (setrlimit(RLIMIT_NOFILE, limits) !== 0) throw new Error('setrlimit failed');
  const taken: number[] = [];
  for (;;) {
    try {
      taken.push(openSync('/dev/null', 'r'));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EMFILE') return taken;
      throw error;
    }
  }
}
