// Loaded first by the command under test: makes a thread of the demo go wrong in the way UFFD_SABOTAGE names.

import { isMainThread } from 'node:worker_threads';
import { Mapping, Userfaultfd } from '../../src/index.js';

/** Fills that go well before. */
const FILLS_BEFORE = 100;

type Copy = Userfaultfd['copy'];

const FAILURES: Record<string, Copy> = {
  throw() {
    throw new Error('sabotaged');
  },
  exit() {
    process.exit(3);
  },
  zeros(this: Userfaultfd, dst, _src, length = 0) {
    return this.zero(dst, length);
  },
};

const sabotage = process.env.UFFD_SABOTAGE ?? '';
const fail = FAILURES[sabotage];
if (fail && !isMainThread) {
  const { copy } = Userfaultfd.prototype;
  let fills = 0;
  Userfaultfd.prototype.copy = function (this: Userfaultfd, ...args: Parameters<Copy>): number {
    return (fills++ < FILLS_BEFORE ? copy : fail).apply(this, args);
  };
}
if (sabotage === 'touch' && !isMainThread) {
  Mapping.prototype.slice = () => {
    throw new Error('sabotaged');
  };
}
