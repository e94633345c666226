// Where userfaultfd is not to be had, or not by this user: the demo runs all the same, on the real kernel as far as
// the user may or on the simulated one, and says which and why. What it records is replayed and inspected there,
// and so is what a machine recorded that has userfaultfd.

import { strict as assert } from 'node:assert';
import { randomBytes } from 'node:crypto';
import { chmodSync } from 'node:fs';
import { join } from 'node:path';
import { Userfaultfd } from '../../src/index.js';
import { skip, suite } from '../harness.js';
import { fileOf, inDirectory, NOBODY, needKernel, needNobody, type RunOptions, uffd } from './command.js';

const test = suite('cli/without');

/** Runs what follows in a mount namespace of its own, where /dev is empty. */
const NO_DEVICES = [
  'unshare',
  '--mount',
  'sh',
  '-c',
  'set -e; mount --make-rprivate /; mount -t tmpfs none /dev; exec "$@"',
  'sh',
];
const FORBIDDEN: RunOptions = { preload: './seccomp.js' };
const UNKNOWN: RunOptions = { ...FORBIDDEN, env: { UFFD_SECCOMP_ERRNO: '38' } };

interface Place {
  name: string;
  options: RunOptions;
  /** Which kernel the demo runs on. */
  kernel: 'linux' | 'simulated';
  /** What is said of it. */
  says?: RegExp;
}

const PLACES: Place[] = [
  { name: 'a user without privileges', options: { under: NOBODY }, kernel: 'linux' },
  { name: 'no /dev', options: { under: NO_DEVICES }, kernel: 'linux' },
  { name: 'no /dev, no privileges', options: { under: [...NO_DEVICES, ...NOBODY] }, kernel: 'linux' },
  { name: 'userfaultfd forbidden', options: FORBIDDEN, kernel: 'simulated', says: /EPERM/ },
  { name: 'a kernel without userfaultfd', options: UNKNOWN, kernel: 'simulated', says: /ENOSYS/ },
  {
    name: 'no /dev, no privileges, and forbidden',
    options: { ...FORBIDDEN, under: [...NO_DEVICES, ...NOBODY] },
    kernel: 'simulated',
    says: /EPERM/,
  },
];

/** Runs the command; it must go well. What it printed, and what it said beside it. */
async function good(args: string[], options: RunOptions = {}): Promise<{ stdout: string; stderr: string }> {
  const { code, stdout, stderr } = await uffd(args, options);
  assert.equal(code, 0, `${args.join(' ')}: ${stderr}${stdout}`);
  return { stdout, stderr };
}

/** Skips where the place cannot be played. */
async function needPlace({ under }: RunOptions): Promise<void> {
  needKernel();
  needNobody();
  const { code, stderr } = await uffd(['--version'], under ? { under } : {});
  if (code !== 0) skip(`this cannot be played here: ${stderr.trim()}`);
}

for (const { name, options, kernel, says } of PLACES) {
  test(`${name}: the demo on ${kernel === 'linux' ? 'Linux' : 'the simulated kernel'}, recorded and replayed`, async () => {
    await needPlace(options);
    await inDirectory(async (directory) => {
      chmodSync(directory, 0o777);
      const file = fileOf(directory, 'file', randomBytes(500_000));
      const [real, trace] = [join(directory, 'real'), join(directory, 'trace')];
      await good(['demo', file, '--record', real]);
      const demo = await good(['demo', file, '--json', '--record', trace], options);
      const report = JSON.parse(demo.stdout);
      assert.equal(report.kernel, kernel);
      assert.equal(report.verified, report.pages);
      assert.equal(report.prefetched?.verified, kernel === 'linux' ? report.pages : undefined);
      assert.equal(report.trace.failure, null);
      if (says)
        assert.match(demo.stderr, /^uffd: no userfaultfd here, so the kernel is simulated: [^\n]+\n$/);
      assert.match(demo.stderr, says ?? /^$/);
      for (const recorded of [trace, real]) {
        const replayed = await good(['replay', recorded], options);
        assert.match(replayed.stdout, /^identical: [\d,]+ records, [\d,]+ faults/);
        const inspected = await good(['inspect', recorded, '--json'], options);
        assert.equal(JSON.parse(inspected.stdout).pages, Math.ceil(500_000 / Userfaultfd.probe().pageSize));
      }
    });
  });
}

test.run();
