// Loaded first by every thread of the command under test and of its guest: makes one of them go wrong in the way that
// UFFD_SABOTAGE names.

import { isMainThread } from 'node:worker_threads';
import { Mapping, Userfaultfd } from '../../src/index.js';

/** Copies that go well before. */
const COPIES_BEFORE = 100;

type Copy = Userfaultfd['copy'];

/** What becomes of copies in the serving thread. */
const COPIES: Record<string, Copy> = {
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
const kill = (): boolean => process.kill(process.pid, 'SIGKILL');
const fail = COPIES[sabotage];
if (fail && !isMainThread) {
  const { copy } = Userfaultfd.prototype;
  let copies = 0;
  Userfaultfd.prototype.copy = function (this: Userfaultfd, ...args: Parameters<Copy>): number {
    return (copies++ < COPIES_BEFORE ? copy : fail).apply(this, args);
  };
}
if (sabotage === 'touch' && !isMainThread) {
  Mapping.prototype.slice = () => {
    throw new Error('sabotaged');
  };
}
if (sabotage === 'no hand-over' && !isMainThread) Mapping.prototype.slice = kill as never;
// A process with a channel to another is the guest; what it says first is that it has handed over.
if (sabotage === 'hand-over' && isMainThread && process.send) process.send = kill as never;
