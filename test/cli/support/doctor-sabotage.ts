// A module that the doctor's processes preload: makes the trial of an operation fail in the way that UFFD_SABOTAGE
// names.

import { isMainThread } from 'node:worker_threads';
import { Userfaultfd } from '../../../src/index.js';

const LARGE_BYTES = 2 ** 29;

const FAILURES: Record<string, Partial<Userfaultfd>> = {
  // The thread that faults sleeps forever.
  ignore: { zero: (_start, length) => length },
  // The process takes long to end, as its memory is large.
  die: {
    zero() {
      Buffer.alloc(LARGE_BYTES, 1);
      process.kill(process.pid, 'SIGSEGV');
      for (;;);
    },
  },
  throw: {
    zero() {
      throw new Error('sabotaged');
    },
  },
  // Installs zeros instead of the given bytes.
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
