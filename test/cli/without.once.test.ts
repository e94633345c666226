// Without userfaultfd, or without the right to use it, the demo still runs: on the real kernel as far as the user's
// rights allow, else on the simulated one, with a message that says why. Recordings made there can be replayed and
// inspected there, and so can recordings of a machine that has userfaultfd.

import { strict as assert } from 'node:assert';
import { randomBytes } from 'node:crypto';
import { chmodSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Userfaultfd } from '../../src/index.js';
import { skip, suite } from '../support/harness.js';
import {
  fileOf,
  inDirectory,
  needKernel,
  needUnprivileged,
  type RunOptions,
  UNPRIVILEGED,
  uffd,
} from './support/command.js';

const test = suite('cli/without');

/** The start of a command line that runs the rest in a mount namespace of its own, where /dev is empty. */
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
  /** What the demo says on stderr. */
  says?: RegExp;
}

const PLACES: Place[] = [
  { name: 'a user without privileges', options: { under: UNPRIVILEGED }, kernel: 'linux' },
  { name: 'no /dev', options: { under: NO_DEVICES }, kernel: 'linux' },
  { name: 'no /dev, no privileges', options: { under: [...NO_DEVICES, ...UNPRIVILEGED] }, kernel: 'linux' },
  { name: 'userfaultfd forbidden', options: FORBIDDEN, kernel: 'simulated', says: /EPERM/ },
  { name: 'a kernel without userfaultfd', options: UNKNOWN, kernel: 'simulated', says: /ENOSYS/ },
  {
    name: 'no /dev, no privileges, and forbidden',
    options: { ...FORBIDDEN, under: [...NO_DEVICES, ...UNPRIVILEGED] },
    kernel: 'simulated',
    says: /EPERM/,
  },
];

/** Runs the command, which must succeed. Returns its output. */
async function good(args: string[], options: RunOptions = {}): Promise<{ stdout: string; stderr: string }> {
  const { code, stdout, stderr } = await uffd(args, options);
  assert.equal(code, 0, `${args.join(' ')}: ${stderr}${stdout}`);
  return { stdout, stderr };
}

/** A recording of the real kernel, which the first test makes. */
let recording: Buffer | undefined;

async function recorded(file: string, trace: string): Promise<void> {
  if (recording === undefined) {
    await good(['demo', file, '--record', trace]);
    recording = readFileSync(trace);
  }
  writeFileSync(trace, recording);
}

/** Skips the test if the command cannot run in this place. */
async function needPlace({ under }: RunOptions): Promise<void> {
  needKernel();
  needUnprivileged();
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
      await recorded(file, real);
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
