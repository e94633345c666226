// Kills a program that writes through a pager, again and again, and checks what it wrote after each recovery: short runs
// in the tests, a long one in `npm run soak`.

import { strict as assert } from 'node:assert';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileSource, Pager } from '../../../src/pager/index.js';
import { inDirectory } from '../../cli/support/command.js';
import { generator } from '../../support/harness.js';
import { KIB, MIB, program } from './pager-tools.js';

const BLOCK = 16 * KIB;
const BLOCKS = 64;
/** Blocks that the program writes for each version: see `writes-until-killed`. */
const PER_VERSION = 6;

/**
 * Kills the program, which writes to its file or to an overlay of it, at `kills` moments. Returns how many of them came
 * after a flush, and the versions written.
 */
export async function killsAndRecovers(
  kills: number,
  first: number,
  where: 'file' | 'overlay' = 'file',
): Promise<{ flushes: number; versions: number }> {
  const random = generator(first);
  let version = 1;
  let flushes = 0;
  await inDirectory(async (directory) => {
    const path = join(directory, 'data');
    writeFileSync(path, Buffer.alloc(BLOCKS * BLOCK));
    const to = where === 'overlay' ? join(directory, 'overlay') : undefined;
    const open = (): Promise<Pager> =>
      Pager.open({ source: fileSource(path), resident: MIB, blockSize: BLOCK, writable: to ? { to } : true });
    for (let kill = 0; kill < kills; kill++) {
      const wanted = random(8);
      const ran = await program('writes-until-killed', [path, first + kill, version, to ?? ''], {
        async started(child) {
          await new Promise<void>((resolve) => {
            let lines = 0;
            child.stdout?.on('data', (text: string) => {
              lines += text.split('\n').length - 1;
              if (lines > wanted) resolve();
            });
            child.on('exit', () => resolve());
          });
          await sleep(random(40));
          child.kill('SIGKILL');
        },
      });
      assert.equal(ran.code, 'SIGKILL', ran.stderr);
      const flushed = Number(ran.stdout.split('\n').slice(0, -1).at(-1));
      if (flushed > 0) flushes++;
      if (kill % 2 === 0) Pager.recover(to ?? path);
      else await (await open()).close();
      const file = new Uint32Array(new Uint8Array(readFileSync(path)).buffer);
      let words = file;
      if (to) {
        assert.ok(
          file.every((word) => word === 0),
          'the source stays as it is',
        );
        const pager = await open();
        words = new Uint32Array(pager.bytes.slice().buffer);
        await pager.close();
      }
      check(words, floorOf(first + kill, version, flushed));
      version = Math.max(version, ...new Set(words)) + 1;
    }
  });
  return { flushes, versions: version };
}

/** What each block must hold: replays the program's random numbers up to the last flush. */
function floorOf(start: number, from: number, flushed: number): Map<number, number> {
  const replay = generator(start);
  const floor = new Map<number, number>();
  for (let version = from; version <= flushed; version++) {
    for (let count = 0; count < PER_VERSION; count++) floor.set(replay(BLOCKS), version);
  }
  return floor;
}

function check(words: Uint32Array, floor: Map<number, number>): void {
  for (let block = 0; block < BLOCKS; block++) {
    const part = words.subarray((block * BLOCK) / 4, ((block + 1) * BLOCK) / 4);
    const kinds = new Set(part);
    const last = part.at(-1) as number;
    // A block that was being filled may be written between two of its words: two versions at most, the newer first.
    assert.ok(kinds.size <= 2, `block ${block} is torn: ${[...kinds]}`);
    if (kinds.size === 2) assert.ok((part[0] as number) > last, `block ${block}: ${[...kinds]}`);
    const least = floor.get(block) ?? 0;
    assert.ok(last >= least, `block ${block}: ${[...kinds]}, flushed was ${least}`);
  }
}
