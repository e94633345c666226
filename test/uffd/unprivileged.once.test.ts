// Without privileges: calls that need none work as for root, for faults of user mode only, or for all faults if the
// device may be opened. The errors of all other calls say what would help.

import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { needUnprivileged, UNPRIVILEGED } from '../cli/support/command.js';
import { skip, suite } from '../support/harness.js';
import { needKernel } from '../support/real-kernel.js';

const test = suite('uffd/unprivileged');

const here = (file: string): string => fileURLToPath(new URL(file, import.meta.url));

/** The suites that need no root, with the minimum number of tests in each. */
const SUITES = { contract: 15, operations: 15, lifecycle: 12 };

/**
 * Runs in a mount namespace of its own, in which every user may open the device: a device node with the same numbers
 * is mounted over the device. The mount disappears with the namespace.
 */
const WITH_DEVICE = [
  'unshare',
  '--mount',
  'sh',
  '-c',
  `set -e
  mount --make-rprivate /
  folder=$(mktemp -d)
  mount -t tmpfs none "$folder"
  mknod -m 666 "$folder/node" c $(stat -c '0x%t 0x%T' /dev/userfaultfd)
  mount --bind "$folder/node" /dev/userfaultfd
  umount -l "$folder"
  rmdir "$folder"
  exec "$@"`,
  'sh',
];

const WAYS = [
  { name: 'user mode only', prefix: UNPRIVILEGED, via: 'syscall', userModeOnly: true },
  {
    name: 'through the device',
    prefix: [...WITH_DEVICE, ...UNPRIVILEGED],
    via: 'device',
    userModeOnly: false,
  },
] as const;

interface Ended {
  status: number | null;
  output: string;
}

function run(prefix: readonly string[], args: readonly string[]): Ended {
  const [program, ...rest] = [...prefix, process.execPath, ...args] as [string, ...string[]];
  const { UFFD_REQUIRE_KERNEL: _required, ...env } = process.env;
  const ended = spawnSync(program, rest, { encoding: 'utf8', env: { ...env, UFFD_CORE: 'release' } });
  if (ended.error) throw ended.error;
  return { status: ended.status, output: ended.stdout + ended.stderr };
}

/** Runs a script that imports the library; returns the JSON that the script prints. */
function says(prefix: readonly string[], script: string): unknown {
  const library = JSON.stringify(here('../../src/index.js'));
  const text = `const { Userfaultfd } = await import(${library}); ${script}`;
  const { status, output } = run(prefix, ['--input-type=module', '--eval', text]);
  assert.is(status, 0, output);
  return JSON.parse(output);
}

function needPlay(prefix: readonly string[]): void {
  needKernel();
  needUnprivileged();
  const tried = run(prefix, ['--version']);
  if (tried.status !== 0) skip(`this cannot be played here: ${tried.output.trim()}`);
}

for (const { name, prefix, via, userModeOnly } of WAYS) {
  test(`${name}: 'auto' opens it so, and says so`, () => {
    needPlay(prefix);
    const opened = says(
      prefix,
      `const { via, userModeOnly } = Userfaultfd.open(); console.log(JSON.stringify({ via, userModeOnly }));`,
    );
    assert.equal(opened, { via, userModeOnly });
    const probed = says(
      prefix,
      `const { via, userModeOnly } = Userfaultfd.probe(); console.log(JSON.stringify({ via, userModeOnly }));`,
    );
    assert.equal(probed, { via, userModeOnly });
  });

  for (const [suiteName, least] of Object.entries(SUITES)) {
    test(`${name}: ${suiteName}`, () => {
      needPlay(prefix);
      const { status, output } = run(prefix, [here('../run.js'), `uffd/${suiteName}.test`]);
      const [, passed, failed] = /^(\d+) passed, (\d+) failed, \d+ skipped$/m.exec(output) ?? [];
      assert.is(status, 0, output);
      assert.is(Number(failed), 0, output);
      assert.ok(Number(passed) >= least, output);
    });
  }
}

test('what is refused says what would help', () => {
  needPlay(UNPRIVILEGED);
  const message = (options: string): string =>
    says(
      UNPRIVILEGED,
      `try { Userfaultfd.open(${options}); console.log('"opened"'); }
      catch (error) { console.log(JSON.stringify(error.message)); }`,
    ) as string;
  assert.match(
    message('{ userModeOnly: false }'),
    /EPERM.*CAP_SYS_PTRACE.*vm\.unprivileged_userfaultfd.*\/dev\/userfaultfd/s,
  );
  assert.match(message("{ via: 'device' }"), /EACCES.*permissions/s);
  assert.match(message("{ features: ['event-fork'] }"), /EPERM.*'event-fork' needs CAP_SYS_PTRACE/s);
});

test.run();
