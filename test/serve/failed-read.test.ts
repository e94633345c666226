// After a failed read of the memory file, the core forgets its sources: the handler makes each further read, and so
// controls how often a page is retried.

import * as assert from 'uvu/assert';
import { MAP_ANONYMOUS, MAP_PRIVATE, mmap } from '../../shim/memory.js';
import { type UffdError, Userfaultfd } from '../../src/index.js';
import { Answers, Tally } from '../../src/serve/index.js';
import { suite } from '../support/harness.js';
import { at, kernelWith, map, needKernel, P, until, withOpened } from '../support/real-kernel.js';

const test = suite('serve/failed-read');
const PROT_NONE = 0;
const UFFDIO_COPY = 0xc028aa03;
const TRIES = 4;

test('a page that cannot be read is tried four times, and never behind the handler', async () => {
  needKernel();
  const base = map(8);
  let tries = 0;
  const kernel = kernelWith((port, memory) => {
    const { ioctl } = port;
    return {
      ioctl(fd, request, offset) {
        if (request === UFFDIO_COPY && new DataView(memory.buffer).getBigUint64(offset, true) === base)
          tries++;
        return ioctl.call(port, fd, request, offset);
      },
    };
  });
  // No page of the source can be read: a COPY from it fails with EFAULT.
  const source = mmap(0n, 8 * P, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
  await withOpened(Userfaultfd.open({ kernel }), async (uffd, thread) => {
    uffd.register(base, 8 * P);
    const tally = new Tally();
    let failure: UffdError | undefined;
    const answers = new Answers({
      ...{ tally, window: 1, latency() {}, now: () => performance.now(), closed() {} },
      regions: [{ start: base, length: 8 * P, pageSize: P, offset: 0 }],
      source: {
        mapped: true,
        stretchAt: () => ({ from: 0, to: 8 * P, data: true }),
        bytesAt: (offset) => source + BigInt(offset),
      },
    });
    const touching = thread.read(base);
    await until(() => {
      try {
        uffd.poll(answers);
      } catch (error) {
        failure = error as UffdError;
      }
      return failure !== undefined;
    });
    assert.is(failure?.code, 'EFAULT');
    assert.is(tally.get('retried'), TRIES - 1);
    assert.is(tries, TRIES);
    uffd.zero(base, P);
    assert.equal(await touching, [0]);
    assert.is(uffd.pageState(at(base, 1)), 'missing');
  });
});

test.run();
