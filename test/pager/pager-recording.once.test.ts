// Recordings of pagers: they replay identically, and show the faults that the pager has counted.

import { strict as assert } from 'node:assert';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileSource, moduleSource, Pager } from '../../src/pager/index.js';
import { replay, summarize, TraceReader } from '../../src/trace/index.js';
import { inDirectory, needKernel, uffd } from '../cli/support/command.js';
import { seed, suite } from '../support/harness.js';
import { controlOf, SOURCE } from './support/pager-source.js';
import { dataOf, KIB, MIB, withPager } from './support/pager-tools.js';

const test = suite('pager/recording');

const SIZE = 2 * MIB + 300;
const COMMON = { resident: 512 * KIB, blockSize: 16 * KIB };

const KINDS: Record<string, (path: string, record: string) => Promise<Pager>> = {
  'a file that is read': (path, record) => Pager.open({ source: fileSource(path), record, ...COMMON }),
  'a file that is written': (path, record) =>
    Pager.open({ source: fileSource(path), record, writable: { flushMs: 10 }, ...COMMON }),
  'a module': (_, record) => Pager.open({ source: moduleSource(SOURCE, controlOf(SIZE)), record, ...COMMON }),
  swap: (_, record) => Pager.anonymous(SIZE, { record, ...COMMON }),
};

for (const [kind, open] of Object.entries(KINDS)) {
  for (const threads of [1, 3]) {
    test(`${kind}, random work of ${threads} threads: the recording replays identically`, async () => {
      needKernel();
      const first = seed();
      await inDirectory(async (directory) => {
        const path = join(directory, 'data');
        const record = join(directory, 'run.trace');
        writeFileSync(path, dataOf(SIZE));
        let counted = 0;
        await withPager(open(path, record), threads, async (pager, ...users) => {
          if (kind === 'swap' || kind.endsWith('written')) {
            const results = await Promise.all(
              users.map((user, own) => user.hammer({ first: first + own, threads, own, ms: 400 })),
            );
            assert.ok(results.every(({ wrong }) => wrong === 0));
          } else {
            const wrong = users.map((user, own) => user.wrongAtRandom(first + own, 200, 3000));
            assert.ok((await Promise.all(wrong)).every((at) => at === -1));
          }
          await pager.prefetch({ offset: 0, length: 100 * KIB });
          await pager.withPinned({ offset: 200 * KIB, length: 9 }, () => {});
          await pager.evict();
          counted = pager.stats.faults;
        });
        const { identical, difference, damage } = await replay(TraceReader.fromFile(record));
        assert.deepEqual([identical, difference, damage], [true, undefined, undefined]);
        const { faults, unresolved } = summarize(TraceReader.fromFile(record));
        assert.ok(counted > 0);
        // Of the faults of several threads on the same page, the pager sees one.
        if (threads === 1) assert.equal(faults, counted);
        else assert.ok(faults >= counted, `${faults} in the trace, ${counted} counted`);
        assert.equal(unresolved, 0);
        const replayed = await uffd(['replay', record]);
        assert.match(replayed.stdout, /^identical: /, replayed.stderr);
        assert.equal(replayed.code, 0);
        const inspected = await uffd(['inspect', record, '--json']);
        assert.equal(JSON.parse(inspected.stdout).faults, faults);
      });
    });
  }
}

test.run();
