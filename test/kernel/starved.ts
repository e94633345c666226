// Run by forks.test.ts in a process of its own: two threads of this process fork, and no descriptor is left for
// the children when the loop reads that. After ten reads in vain there is one (`free`), or the loop is stopped and the
// userfaultfd closed (`close`). Says what came of it, as JSON.
//
//   starved.js WAY free|close LIBRARY      WAY: a wait strategy, or 'by hand'; fork.c, compiled

import { closeSync, openSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { libc } from '../../shim/libc.js';
import { Userfaultfd, type Wait } from '../../src/index.js';
import { endAll, holdings, kernelWith, map, never, P, touchers, until } from './support.js';

export interface Starved {
  /** The wait statuses of the forked children. */
  statuses: number[];
  calls: string[];
  warnings: string[];
  /** Reads in vain, and how long the first ten of them took. */
  vain: number;
  elapsedMs: number;
  /** Descriptors left over. */
  left: number;
}

const RLIMIT_NOFILE = 7;
const EMFILE = 24;
/** Above all that Node and the test have open. */
const LIMIT = 300;

const [way, then, library] = process.argv.slice(2) as [Wait | 'by hand', 'free' | 'close', string];
const told: Starved = { statuses: [], calls: [], warnings: [], vain: 0, elapsedMs: 0, left: 0 };
process.on('warning', ({ message }) => void told.warnings.push(message));

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
        told.vain++;
        if (told.vain === 1) begun = performance.now();
        if (told.vain === 10) enough();
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
  told.elapsedMs = performance.now() - begun;
  if (then === 'free') closeSync(fillers.pop() as number);
  else Userfaultfd.stop(uffd.stopHandle);
}

const handler = {
  pagefault: never,
  forked(child: Userfaultfd) {
    told.calls.push('forked');
    child.close();
    uffd.stop();
  },
  closed: (error?: Error) => void told.calls.push(error ? error.message : 'closed'),
};
if (way === 'by hand') {
  const done = (): boolean => (then === 'free' ? told.calls.length > 0 : told.vain >= 10);
  while (!done()) if (uffd.poll(handler) === 0) await sleep(1);
} else {
  uffd.start(handler, { wait: way });
  await until(() => !uffd.waiting, 'the loop to stop');
}
uffd.close();
told.statuses = await Promise.all(forked);
for (const fd of fillers) closeSync(fd);
await sleep(20);
told.left = holdings().descriptors - before;
await endAll();
console.log(JSON.stringify(told));

/** Lowers the limit, and takes every descriptor that is left below it. */
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
