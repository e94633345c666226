// A module that every thread of the command under test and of its guest preloads: makes one of them fail in the way
// that UFFD_SABOTAGE names.

import { isMainThread } from 'node:worker_threads';
import { Mapping, Userfaultfd } from '../../../src/index.js';

/** Copies that succeed before the first one fails. */
const COPIES_BEFORE = 100;

type Copy = Userfaultfd['copy'];

/** By sabotage: what the serving thread does instead of a copy. */
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
/** Whether this thread serves the guest. Its warm-up copies into memory of its own, and these copies succeed. */
const serves = process.argv.some((argument) => argument.endsWith('-part=session'));
const fail = COPIES[sabotage];
if (fail && serves) {
  const { copy } = Userfaultfd.prototype;
  const { wrap } = Userfaultfd;
  const guests = new WeakSet<Userfaultfd>();
  Userfaultfd.wrap = (fd, options) => {
    const uffd = wrap(fd, options);
    if (options?.pid !== process.pid) guests.add(uffd);
    return uffd;
  };
  // Without sources, the handler gets every fault.
  Userfaultfd.prototype.answerFrom = () => false;
  Userfaultfd.prototype.fillAhead = () => undefined;
  let copies = 0;
  Userfaultfd.prototype.copy = function (this: Userfaultfd, ...args: Parameters<Copy>): number {
    return (!guests.has(this) || copies++ < COPIES_BEFORE ? copy : fail).apply(this, args);
  };
}
const touches = !isMainThread && !serves;
if (sabotage === 'touch' && touches) {
  Mapping.prototype.slice = () => {
    throw new Error('sabotaged');
  };
}
if (sabotage === 'no hand-over' && touches) Mapping.prototype.slice = kill as never;
// The guest is the process with a channel to its parent. Its first message says that it has handed its memory over.
if (sabotage === 'hand-over' && isMainThread && process.send) process.send = kill as never;
