// kill -9 of a process that writes through a journal: each block is whole, and as at the last completed flush or later.

import { copyFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { recover } from '../../src/pager/journal.js';
import { JournaledFile } from '../../src/pager/journal-file.js';
import { inDirectory } from '../cli/support/command.js';
import { generator, seed, suite } from '../support/harness.js';
import { batchOf, freshFile, killed, versionOf } from './support/journal-blocks.js';

const test = suite('pager/journal-kill');

const KILLS = 60;
/** Kills of processes that write the same file, one after the other. */
const KILLS_EACH = 5;
/** The test runs several at a time, because it spends most of its time starting processes. */
const LANES = 2;
const BLOCKS = 24;
const BLOCK_SIZES = [4096, 65_536, 524_288];
const WRITER = fileURLToPath(new URL('./support/journal-writer.js', import.meta.url));

interface Run {
  readonly file: string;
  readonly seed: number;
  readonly blockSize: number;
}

/** The version of each block; undefined: it is torn. */
function versionsOf({ file, blockSize }: Run): (number | undefined)[] {
  const bytes = readFileSync(file);
  return Array.from({ length: BLOCKS }, (_, block) =>
    versionOf(bytes.subarray(block * blockSize, (block + 1) * blockSize), block),
  );
}

/** Checks each block: `floor` has the versions that it must have at least. Returns the versions. */
function check(run: Run, floor: readonly number[]): number[] {
  const found = versionsOf(run).map((version, block) => {
    assert.ok(version !== undefined, `block ${block} is torn`);
    assert.ok(
      version >= (floor[block] as number),
      `block ${block} is of ${version}, ${floor[block]} was flushed`,
    );
    assert.ok(
      version === 0 || batchOf(run.seed, version, BLOCKS).includes(block),
      `block ${block}: ${version}`,
    );
    return version;
  });
  // A batch begins only when the one before is complete, so only the last one may be incomplete.
  const highest = Math.max(...found);
  for (let version = 1; version < highest; version++) {
    for (const block of batchOf(run.seed, version, BLOCKS))
      assert.ok((found[block] as number) >= version, `block ${block} has lost version ${version}`);
  }
  return found;
}

test(`kill -9 at ${KILLS} random moments: each block is whole, and as at the last flush or later`, async () => {
  const first = seed();
  const random = generator(first);
  let [left, recovered, ignored, torn, flushes] = [0, 0, 0, 0, 0];
  await inDirectory(async (directory) => {
    let next = 0;
    const lane = async (): Promise<void> => {
      while (next < KILLS / KILLS_EACH) {
        const turn = next++;
        const blockSize = BLOCK_SIZES[turn % BLOCK_SIZES.length] as number;
        const durability = turn % 4 === 3 ? 'power' : 'process';
        const run: Run = { file: join(directory, `${turn}`), seed: first + turn, blockSize };
        writeFileSync(run.file, freshFile(BLOCKS, blockSize, blockSize / 2));
        let floor = Array.from({ length: BLOCKS }, () => 0);
        let version = 1;
        for (let kill = 0; kill < KILLS_EACH; kill++) {
          const args = [run.file, `${run.seed}`, `${blockSize}`, durability, `${version}`];
          const flushed = await killed(WRITER, args, random(6), random(12));
          if (flushed > 0) flushes++;
          for (let done = version; done <= flushed; done++) {
            for (const block of batchOf(run.seed, done, BLOCKS)) floor[block] = done;
          }
          torn += versionsOf(run).filter((found) => found === undefined).length;
          const journal = `${run.file}.uffd-journal`;
          assert.ok(existsSync(journal), 'a killed process leaves its journal');
          left++;
          if (kill % 2 === 0) {
            // Recovery may be killed, and run again.
            copyFileSync(journal, `${run.file}.copy`);
            const result = recover(run.file);
            recovered += result.recovered;
            if (result.ignoredBytes > 0) ignored++;
            assert.not(existsSync(journal));
            const once = readFileSync(run.file);
            copyFileSync(`${run.file}.copy`, journal);
            assert.equal(recover(run.file), result);
            assert.ok(readFileSync(run.file).equals(once), 'a second recovery changes nothing');
          } else {
            const opened = JournaledFile.open(run.file, { blockSize, durability: 'process' });
            recovered += opened.recovery.recovered;
            opened.close();
          }
          // What is in the file now must stay.
          floor = check(run, floor);
          // A batch that is incomplete is written again.
          version = Math.max(1, ...floor);
        }
      }
    };
    await Promise.all(Array.from({ length: LANES }, lane));
  });
  console.log(
    `${left} journals, ${recovered} parts recovered, ${ignored} incomplete tails, ${torn} torn blocks, ${flushes} with flushes`,
  );
  assert.is(left, KILLS);
}, 240_000);

test.run();
