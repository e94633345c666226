// Loaded first by the processes of the doctor: makes the trial of an operation go wrong in the way that
// UFFD_SABOTAGE names.

import { isMainThread } from 'node:worker_threads';
import { Userfaultfd } from '../../src/index.js';

const FAILURES: Record<string, Partial<Userfaultfd>> = {
  // The thread that touched sleeps for ever.
  ignore: { zero: (_start, length) => length },
  die: {
    zero() {
      process.kill(process.pid, 'SIGSEGV');
      for (;;);
    },
  },
  throw: {
    zero() {
      throw new Error('sabotaged');
    },
  },
  // Other bytes than those that were asked for.
  wrong: {
    copy(this: Userfaultfd, start, _src, length = this.pageSize) {
      return this.zero(start, length);
    },
  },
};

const failure = FAILURES[process.env.UFFD_SABOTAGE ?? ''];
if (failure && isMainThread && process.argv[2]?.endsWith('=trials')) {
  Object.assign(Userfaultfd.prototype, failure);
}
