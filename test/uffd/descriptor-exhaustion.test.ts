// A read that finds no free descriptor for a forked child (EMFILE): the userfaultfd stays readable, so the loop stops
// watching it for a while, and watches it again as soon as a read succeeds.

import * as assert from 'uvu/assert';
import { Userfaultfd } from '../../src/index.js';
import { suite } from '../support/harness.js';
import { kernelWith, map, needKernel, P, until, withOpened } from '../support/real-kernel.js';

const test = suite('uffd/descriptor-exhaustion');
const EMFILE = -24;
const FAILS = 3;

test('on the event loop: not watched while it fails, watched again behind it, and the fault is answered', async () => {
  needKernel();
  let left = 0;
  let reads = 0;
  let userfaultfd = -1;
  const watched: string[] = [];
  const kernel = kernelWith((port) => {
    const { read, watch } = port;
    return {
      read(fd, at, length) {
        if (fd !== userfaultfd || left === 0) return read.call(port, fd, at, length);
        left--;
        reads++;
        return EMFILE;
      },
      watch(fd, ready) {
        const it = watch.call(port, fd, ready);
        if (fd !== userfaultfd) return it;
        watched.push('begun');
        return {
          close() {
            watched.push('ended');
            it.close();
          },
        };
      },
    };
  });
  await withOpened(Userfaultfd.open({ kernel }), async (uffd, thread) => {
    const base = map(1);
    userfaultfd = uffd.fd;
    uffd.register(base, P);
    uffd.start({ pagefault: ({ page }) => uffd.zero(page, P) === P });
    await until(() => watched.length === 1);
    left = FAILS;
    assert.equal(await thread.read(base), [0]);
    assert.is(reads, FAILS, 'it was tried until it worked');
    await until(() => watched.length === 3);
    assert.equal(watched, ['begun', 'ended', 'begun']);
  });
});

test.run();
