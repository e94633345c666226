// A full disk: the error has the system's code, nothing is lost, and the same parts can be written once there is room.

import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { inDirectory } from '../cli/support/command.js';
import { skip, suite } from '../support/harness.js';

const test = suite('pager/journal-full');

const PROGRAM = fileURLToPath(new URL('./support/journal-small-disk.js', import.meta.url));

/** What a case saw on a disk of 512 KiB. */
async function onSmallDisk(what: string): Promise<Record<string, unknown>> {
  if (process.getuid?.() !== 0) skip('only root can mount a small disk');
  let seen: Record<string, unknown> = {};
  await inDirectory((folder) => {
    const inside = (...command: string[]) =>
      spawnSync(
        'unshare',
        [
          '-m',
          'sh',
          '-c',
          'mount -t tmpfs -o size=512k none "$1" && shift && exec "$@"',
          'sh',
          folder,
        ].concat(command),
        { encoding: 'utf8' },
      );
    const tried = inside('true');
    if (tried.status !== 0) skip(`a small disk cannot be mounted here: ${tried.stderr || tried.error}`);
    const ran = inside(process.execPath, PROGRAM, folder, what);
    assert.is(ran.status, 0, ran.stderr);
    seen = JSON.parse(ran.stdout);
  });
  return seen;
}

test('no room for the journal: the file is unchanged, and the parts can be written again', async () => {
  const { message, ...seen } = await onSmallDisk('journalIsFull');
  assert.match(message as string, /^ENOSPC: the journal, .*target\.uffd-journal, .*free some space/);
  assert.equal(seen, { first: 'ENOSPC', again: 'ENOSPC', unchanged: true, written: true });
});

test('no room for the file: the journal keeps the blocks until they can be written', async () => {
  const { message, ...seen } = await onSmallDisk('targetIsFull');
  assert.match(message as string, /^ENOSPC: the file, .*target, .*free some space/);
  assert.equal(seen, {
    first: 'ENOSPC',
    other: 'ENOSPC',
    sync: 'ENOSPC',
    refused: 'ENOSPC',
    recovery: { recovered: 4, bytes: 4 * 16_384, ignoredBytes: 0 },
    whole: true,
    second: 'ENOSPC',
    written: true,
  });
});

test('no room for the swap file: what it holds stays readable, and freed space is used', async () => {
  const { message, ...seen } = await onSmallDisk('swapIsFull');
  assert.match(message as string, /^ENOSPC: the swap file in .* cannot be written: .*free some space/);
  assert.equal(seen, {
    first: 'ENOSPC',
    again: 'ENOSPC',
    kept: true,
    absent: true,
    stats: { usedBytes: 4 * 16_384, storedBlocks: 4, rawBytes: 4 * 16_384 },
    written: true,
    free: true,
  });
});

test.run();
