// The command lets Node keep compiled code, but only in a folder that no other user can change.

import { chmodSync, chownSync, existsSync, mkdirSync, statSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { skip, suite } from '../support/harness.js';
import { inDirectory, uffd } from './support/command.js';

const test = suite('cli/compile-cache');

/** The folders in which a run of the command asks Node to keep compiled code. */
async function foldersOf(env: NodeJS.ProcessEnv): Promise<string[]> {
  const unset = { XDG_CACHE_HOME: '', NODE_COMPILE_CACHE: '', NODE_DISABLE_COMPILE_CACHE: '' };
  const ran = await uffd(['--version'], {
    env: { ...unset, ...env },
    preload: './compile-cache.js',
  });
  assert.is(ran.code, 0, ran.stderr);
  assert.match(ran.stdout, /^\d+\.\d+\.\d+\n$/);
  const lines = ran.stderr.split('\n').filter(Boolean);
  for (const line of lines) assert.match(line, /^compile cache: /);
  return lines.map((line) => line.replace('compile cache: ', ''));
}

test('it is a private folder in ~/.cache, or in $XDG_CACHE_HOME', () =>
  inDirectory(async (home) => {
    const cache = join(home, '.cache/userfaultfd');
    assert.equal(await foldersOf({ HOME: home }), [cache]);
    assert.is(statSync(cache).mode & 0o777, 0o700);
    // A second run uses the existing folder.
    assert.equal(await foldersOf({ HOME: home }), [cache]);
    const other = join(home, 'other');
    mkdirSync(other, { mode: 0o755 });
    assert.equal(await foldersOf({ HOME: '/', XDG_CACHE_HOME: other }), [join(other, 'userfaultfd')]);
    assert.equal(await foldersOf({ HOME: home, XDG_CACHE_HOME: 'relative' }), [cache]);
  }));

test("Node's own variables decide where it is, and that there is none", () =>
  inDirectory(async (home) => {
    const elsewhere = join(home, 'elsewhere');
    assert.equal(await foldersOf({ HOME: home, NODE_COMPILE_CACHE: elsewhere }), []);
    assert.equal(await foldersOf({ HOME: home, NODE_DISABLE_COMPILE_CACHE: '1' }), []);
    assert.not(existsSync(join(home, '.cache')));
  }));

test('there is none in a folder that others can write to', () =>
  inDirectory(async (home) => {
    chmodSync(home, 0o775);
    assert.equal(await foldersOf({ HOME: home }), []);
    assert.not(existsSync(join(home, '.cache')));
    chmodSync(home, 0o755);
    const shared = join(home, 'shared');
    mkdirSync(shared);
    chmodSync(shared, 0o1777);
    symlinkSync(shared, join(home, '.cache'));
    assert.equal(await foldersOf({ HOME: home }), []);
    assert.not(existsSync(join(shared, 'userfaultfd')));
  }));

test('there is none in a home that is missing, or another user’s', () =>
  inDirectory(async (home) => {
    assert.equal(await foldersOf({ HOME: join(home, 'missing') }), []);
    assert.not(existsSync(join(home, 'missing')));
    if (process.getuid?.() !== 0) skip('only root can give a folder to another user');
    chownSync(home, 65534, 65534);
    assert.equal(await foldersOf({ HOME: home }), []);
    assert.not(existsSync(join(home, '.cache')));
  }));

test.run();
