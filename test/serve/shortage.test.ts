// Memory runs short while a guest is served: background work pauses or skips pages, a fault waits and the server
// reports why, and no page is wrong.

import * as assert from 'uvu/assert';
import type { FaultHandler } from '../../src/index.js';
import { Userfaultfd } from '../../src/index.js';
import { BackgroundFiller } from '../../src/serve/background-filler.js';
import { shared } from '../../src/serve/extents.js';
import { Answers, type Region, Tally } from '../../src/serve/index.js';
import type { ShortageOptions } from '../../src/serve/shortage.js';
import { suite } from '../support/harness.js';
import {
  at,
  kernelWith,
  map,
  needKernel,
  numberedSource,
  P,
  until,
  withOpened,
} from '../support/real-kernel.js';

const test = suite('serve/shortage');
const PAGES = 64;
const UFFDIO_COPY = 0xc028aa03;
const ERRNO = { ENOMEM: 12, ENOSPC: 28, EFAULT: 14, EIO: 5 } as const;
type Code = keyof typeof ERRNO;

/** A guest whose kernel refuses copies to some pages, for as long as the test wants. */
class Scene {
  readonly base = map(PAGES);
  readonly source = numberedSource(PAGES);
  readonly tally = new Tally();
  readonly reports: (string | undefined)[] = [];
  readonly regions: readonly Region[];
  /** The error of refused copies; undefined: none is refused. */
  refusal: Code | undefined;
  /** Whether copies to a page are refused; default: all are. */
  refuses = (_page: number): boolean => true;

  constructor() {
    this.regions = [{ start: this.base, length: PAGES * P, offset: 0, pageSize: P }];
  }

  kernel() {
    return kernelWith((port, memory) => {
      const { ioctl } = port;
      return {
        ioctl: (fd, request, offset) => {
          const words = new BigInt64Array(memory.buffer, offset, 5);
          const [dst = 0n, , length = 0n] = words;
          const first = Number((dst - this.base) / BigInt(P));
          const last = first + Number(length) / P;
          if (request !== UFFDIO_COPY || this.refusal === undefined || first < 0 || last > PAGES)
            return ioctl.call(port, fd, request, offset);
          for (let page = first; page < last; page++) {
            if (!this.refuses(page)) continue;
            words[4] = BigInt(-ERRNO[this.refusal]);
            return -ERRNO[this.refusal];
          }
          return ioctl.call(port, fd, request, offset);
        },
      };
    });
  }

  answers(shortage: Partial<ShortageOptions> = {}): Answers {
    return new Answers({
      regions: this.regions,
      tally: this.tally,
      window: 1,
      latency() {},
      now: () => performance.now(),
      closed() {},
      shortage: {
        onStarved: 'wait',
        pool: () => undefined,
        report: (reason) => void this.reports.push(reason),
        ...shortage,
      },
      source: {
        mapped: true,
        stretchAt: () => ({ from: 0, to: PAGES * P, data: true }),
        bytesAt: (offset) => this.source + BigInt(offset),
      },
    });
  }

  background(answers: Answers, uffd: Userfaultfd): BackgroundFiller {
    const { tally } = this;
    return new BackgroundFiller(answers, { prefetch: shared([]), eager: true, tally }, uffd);
  }
}

function withScene(
  body: (
    scene: Scene,
    uffd: Userfaultfd,
    thread: Parameters<Parameters<typeof withOpened>[1]>[1],
  ) => Promise<void>,
): Promise<void> {
  needKernel();
  const scene = new Scene();
  return withOpened(
    Userfaultfd.open({ kernel: scene.kernel(), features: ['event-remove'] }),
    (uffd, thread) => {
      uffd.register(scene.base, PAGES * P);
      return body(scene, uffd, thread);
    },
  );
}

function steps(background: BackgroundFiller, most = 1000): ReturnType<BackgroundFiller['step']> {
  for (let count = 0; count < most; count++) {
    const step = background.step();
    if (step !== 'more') return step;
  }
  throw new Error('it makes no progress');
}

for (const code of ['ENOMEM', 'ENOSPC'] as const) {
  test(`${code} in the background is a pause, after which nothing is left out`, async () => {
    await withScene(async (scene, uffd, thread) => {
      const answers = scene.answers();
      const background = scene.background(answers, uffd);
      scene.refusal = code;
      assert.is(steps(background), 'paused');
      assert.ok(background.pause?.includes(code), background.pause);
      assert.is(steps(background), 'paused');
      scene.refusal = undefined;
      assert.is(steps(background), 'done');
      assert.is(scene.tally.get('leftOut'), 0);
      assert.is(scene.tally.get('eager'), PAGES * P);
      assert.is(await thread.verify(scene.base, PAGES, P, 7), 0);
    });
  });
}

for (const code of ['EFAULT', 'EIO'] as const) {
  test(`${code} in the background leaves pages out, and counts them`, async () => {
    await withScene(async (scene, uffd, thread) => {
      const answers = scene.answers();
      scene.refusal = code;
      scene.refuses = (page) => page === 20 || page === 21;
      assert.is(steps(scene.background(answers, uffd)), 'done');
      const leftOut = scene.tally.get('leftOut');
      assert.ok(leftOut >= 2 * P && leftOut < PAGES * P, `${leftOut} bytes`);
      assert.is(scene.tally.get('eager'), PAGES * P - leftOut);
      scene.refusal = undefined;
      uffd.start(answers);
      assert.is(await thread.verify(scene.base, PAGES, P, 7), 0);
    });
  });
}

test('a fault without memory waits, is reported once a second with its cause, and gets its data', async () => {
  await withScene(async (scene, uffd, thread) => {
    scene.refusal = 'ENOMEM';
    uffd.start(scene.answers());
    const begun = performance.now();
    const read = thread.read(at(scene.base, 3));
    await until(() => scene.reports.length > 0);
    assert.ok(scene.reports.length <= 1 + (performance.now() - begun) / 1000);
    assert.match(scene.reports[0] ?? '', /no memory for the page at 0x[0-9a-f]+.*ENOMEM/);
    scene.refusal = undefined;
    assert.equal(await read, [4]);
    assert.equal(scene.reports.slice(-1), [undefined], 'the end of the shortage is reported');
  });
});

test('a fault without memory ends the guest if that is wanted', async () => {
  await withScene(async (scene, uffd, thread) => {
    scene.refusal = 'ENOMEM';
    const answers: FaultHandler = scene.answers({ onStarved: 'kill' });
    const read = thread.read(scene.base);
    let failure: { name?: string; code?: string } | undefined;
    await until(() => {
      try {
        uffd.poll(answers);
      } catch (error) {
        failure = error as typeof failure;
      }
      return failure !== undefined;
    });
    assert.equal([failure?.name, failure?.code], ['ShortageError', 'ENOMEM']);
    scene.refusal = undefined;
    uffd.start(scene.answers());
    assert.equal(await read, [1]);
  });
});

test('a fault outside of all regions is a failure that names the page, and no busy loop', async () => {
  await withScene(async (scene, uffd, thread) => {
    const stray = map(1);
    uffd.register(stray, P);
    const read = thread.read(stray);
    let failure: Error | undefined;
    await until(() => {
      try {
        uffd.poll(scene.answers());
      } catch (error) {
        failure = error as Error;
      }
      return failure !== undefined;
    });
    assert.match(failure?.message ?? '', new RegExp(`0x${stray.toString(16)}.*none of the regions`));
    uffd.zero(stray, P);
    assert.equal(await read, [0]);
  });
});

test('regions follow a move of the monitor', async () => {
  needKernel();
  const scene = new Scene();
  const features = ['event-remove', 'event-remap', 'event-unmap'] as const;
  await withOpened(Userfaultfd.open({ kernel: scene.kernel(), features }), async (uffd, thread) => {
    uffd.register(scene.base, PAGES * P);
    const target = map(PAGES);
    uffd.start(scene.answers());
    assert.is(await thread.mremap(at(scene.base, 8), 16 * P, 16 * P, 3, at(target, 8)), at(target, 8));
    assert.equal(await thread.read(at(target, 9), at(scene.base, 7), at(scene.base, 30)), [10, 8, 31]);
  });
});

test.run();
