// docs/guides/snapshots-in-s3.md: every command runs, in order, on a bucket of a server that checks signatures. Then what
// `uffd info` and the pager's example say.

import { strict as assert } from 'node:assert';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  closeSync,
  cpSync,
  openSync,
  readFileSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { delimiter, join } from 'node:path';
import { Guest } from '../../src/cli/guest/guest.js';
import { commandLine, needKernel, uffd } from '../cli/support/command.js';
import { PAGES, served, touchAll } from '../cli/support/serve-command.js';
import { Running } from '../serve/support/serve-process.js';
import { blocksOf, type Snippet, textOf } from '../support/documents.js';
import { suite } from '../support/harness.js';
import { withPackage, writeModule } from '../support/snippets.js';
import { BUCKET, withS3 } from './support/s3-server.js';

const test = suite('store/guide');
const GUIDE = 'docs/guides/snapshots-in-s3.md';
const PAGE = 4096;

async function run(folder: string, env: NodeJS.ProcessEnv, line: readonly string[]): Promise<string> {
  const [program, ...args] = line as [string, ...string[]];
  const child = spawn(program, args, { cwd: folder, env: { ...process.env, ...env }, timeout: 60_000 });
  const out = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].setEncoding('utf8').on('data', (text: string) => {
      out[name] += text;
    });
  }
  const [code] = await once(child, 'close');
  assert.equal(code, 0, `${line.join(' ')}\n${out.stderr}`);
  return out.stdout;
}

/** Runs a command that serves `vm.mem` at `vm.sock`, with a guest that checks all pages. */
async function serveGuest(folder: string, env: NodeJS.ProcessEnv, command: string): Promise<void> {
  const server = new Running(['sh', '-c', `cd "$0" && exec ${command}`, folder], { ...process.env, ...env });
  let guest: Guest | undefined;
  try {
    await server.says('ready: vm.sock\n');
    guest = new Guest({ socket: join(folder, 'vm.sock'), memory: join(folder, 'vm.mem') });
    await guest.handedOver;
    const { wrongCount, wrong } = await guest.verify(2);
    assert.equal(wrongCount, 0, wrong.join('\n'));
  } finally {
    guest?.kill();
    await guest?.ended;
    server.kill();
    await server.ended;
  }
}

/** Records a guest; calls `body` with its memory file and the trace. */
async function recorded(body: (memory: string, trace: string) => Promise<void>): Promise<void> {
  await served(['--once', '--record', 'first.trace'], async (it) => {
    await touchAll(it);
    assert.equal(await it.ended, 0);
    await body(it.memory, join(it.directory, 'first.trace'));
  });
}

test('every command of the guide runs, and the pager reads the snapshot from the bucket', async () => {
  needKernel();
  await recorded(async (memory, trace) => {
    await withS3(async ({ env }) => {
      await withPackage(async (folder) => {
        cpSync(memory, join(folder, 'vm.mem'));
        cpSync(memory, join(folder, 'vm-later.mem'));
        cpSync(trace, join(folder, 'first.trace'));
        writeFileSync(join(folder, 'vm.diff'), '');
        truncateSync(join(folder, 'vm.diff'), PAGES * PAGE);
        for (const name of ['vm-later.mem', 'vm.diff']) {
          const fd = openSync(join(folder, name), 'r+');
          writeSync(fd, Buffer.alloc(PAGE, 1), 0, PAGE, 3 * PAGE);
          closeSync(fd);
        }
        const script = `#!/bin/sh\nexec ${commandLine([])
          .map((word) => `'${word}'`)
          .join(' ')} "$@"\n`;
        writeFileSync(join(folder, 'uffd'), script);
        chmodSync(join(folder, 'uffd'), 0o755);
        const variables = { ...env, PATH: `${folder}${delimiter}${process.env.PATH}`, NO_COLOR: '1' };
        const blocks = blocksOf(GUIDE, 'sh');
        assert.ok(blocks.length >= 8);
        for (const { code } of blocks) {
          if (code.startsWith('uffd serve ')) await serveGuest(folder, variables, code);
          else await run(folder, variables, ['sh', '-e', '-c', code]);
        }
        const info = JSON.parse(
          await run(folder, variables, [join(folder, 'uffd'), 'info', 'vm.caibx', '--json']),
        );
        // Neighbours are one range, in the order of the first touch.
        assert.equal(info.workingSet.bytes, PAGES * PAGE);
        assert.ok(info.workingSet.ranges >= 1 && info.workingSet.ranges <= PAGES);
        const [program] = blocksOf(GUIDE) as [Snippet];
        const printed = await run(folder, variables, [
          process.execPath,
          join(folder, writeModule(folder, program)),
        ]);
        const first = readFileSync(join(folder, 'vm.mem'))[0];
        assert.equal(printed, `byte 0 of ${PAGES * PAGE} is ${first}\n`);
        assert.ok(textOf(GUIDE).includes(`s3://${BUCKET}/`));
      });
    });
  });
}, 300_000);

test('a working set of another index, or of another memory, is refused', async () => {
  needKernel();
  await recorded(async (memory, trace) => {
    await withPackage(async (folder) => {
      cpSync(memory, join(folder, 'memory'));
      const pack = ['pack', 'memory', '--store', 'store', '--trace', trace, '-o'];
      const one = await uffd([...pack, 'one'], { cwd: folder });
      assert.equal(one.code, 0, one.stderr);
      assert.match(one.stdout, /working set +256\.0 KiB, one\.working-set/);
      const file = join(folder, 'memory');
      const fd = openSync(file, 'r+');
      writeSync(fd, Buffer.alloc(PAGE, 1), 0, PAGE, 0);
      closeSync(fd);
      const other = await uffd([...pack, 'two'], { cwd: folder });
      assert.equal(other.code, 1);
      assert.match(other.stderr, /was recorded with another memory file; --force takes it all the same/);
      // With a diff that holds the old page, the layers together are the memory of the trace.
      writeFileSync(join(folder, 'diff'), readFileSync(memory).subarray(0, PAGE));
      truncateSync(join(folder, 'diff'), PAGES * PAGE);
      const layered = await uffd([...pack, 'three', '--layer', 'diff'], { cwd: folder });
      assert.equal(layered.code, 0, layered.stderr);
      assert.ok(readFileSync(join(folder, 'three')).equals(readFileSync(join(folder, 'one'))));
      const forced = await uffd([...pack, 'two', '--force'], { cwd: folder });
      assert.equal(forced.code, 0, forced.stderr);
      cpSync(join(folder, 'one.working-set'), join(folder, 'two.working-set'));
      const mixed = await uffd(['info', 'two'], { cwd: folder });
      assert.equal(mixed.code, 1);
      assert.match(mixed.stderr, /two\.working-set is the working set of another index/);
      writeFileSync(join(folder, 'two.working-set'), '{');
      const damaged = await uffd(['info', 'two'], { cwd: folder });
      assert.match(damaged.stderr, /two\.working-set is damaged: it is no JSON/);
    });
  });
}, 180_000);

test.run();
