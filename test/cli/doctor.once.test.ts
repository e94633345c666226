// `uffd doctor` on this machine, as users of several kinds: the verdict, the remedy and the exit code are right, and
// nothing is left behind.

import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { stripVTControlCharacters } from 'node:util';
import * as assert from 'uvu/assert';
import type { Findings, NamedTrial } from '../../src/cli/doctor/findings.js';
import { examineSystem } from '../../src/cli/doctor/machine.js';
import type { Diagnosis } from '../../src/cli/doctor/verdict.js';
import { FEATURES, featureSince, OPERATIONS, operationSince, Userfaultfd } from '../../src/index.js';
import { skip, suite } from '../support/harness.js';
import { aloneWithHugePages, withHugePages } from '../support/huge-pages.js';
import {
  commandLine,
  inDirectory,
  needKernel,
  needUnprivileged,
  type RunOptions,
  UNPRIVILEGED,
  uffd,
  uffdOnTerminal,
} from './support/command.js';

const test = suite('cli/doctor');
const ROOT = fileURLToPath(new URL('../../..', import.meta.url));
const NEED_HUGE_PAGES = ['missing-hugetlbfs', 'minor-hugetlbfs'];
const EPERM = 1;
const ENOSYS = 38;

type Report = Diagnosis & Findings;

/** Runs `uffd doctor --json`. Returns the parsed report and the exit code. Its trials take huge pages that are free. */
function examined(options: RunOptions = {}): ReturnType<typeof examinedNow> {
  return aloneWithHugePages(() => examinedNow(options));
}

/** The same, in a test that has huge pages. */
async function examinedNow(options: RunOptions = {}): Promise<{ code: number | string; report: Report }> {
  const { code, stdout, stderr } = await uffd(['doctor', '--json'], options);
  assert.is(stderr, '');
  return { code, report: JSON.parse(stdout) };
}

function codes(report: Report): string[] {
  return report.problems.map(({ code }) => code);
}

function commands(report: Report): string {
  return report.problems.flatMap(({ remedies }) => remedies.flatMap((remedy) => remedy.commands)).join('\n');
}

/** Every trial has succeeded, except the given ones and those that found no free huge page. */
function assertAllWork(
  { features, operations }: Report,
  except: Record<string, NamedTrial['outcome']>,
): void {
  for (const { name, outcome, detail } of [...features, ...operations]) {
    if (NEED_HUGE_PAGES.includes(name) && outcome === 'not tried') {
      assert.match(detail ?? '', /no huge pages are free/);
    } else {
      assert.is(outcome, except[name] ?? 'ok', `${name}: ${detail}`);
    }
  }
}

function needRoot(): void {
  needKernel();
  if (process.getuid?.() !== 0) skip('only root has CAP_SYS_PTRACE');
  const lacks = FEATURES.filter((name) => !Userfaultfd.probe().features.has(name));
  if (lacks.length > 0) skip(`this kernel lacks ${lacks.join(', ')}`);
}

/** Skips the test unless a user without privileges gets user-mode faults only. */
function needOrdinaryUser(): void {
  needRoot();
  needUnprivileged();
  const setting = readFileSync('/proc/sys/vm/unprivileged_userfaultfd', 'utf8').trim();
  if (setting !== '0') skip(`vm.unprivileged_userfaultfd is ${setting}`);
}

test('root: usable, everything was tried and works, exit code 0', async () => {
  needRoot();
  const { code, report } = await examined();
  assert.is(report.verdict, 'usable');
  assert.is(code, 0);
  assert.equal(report.problems, []);
  assert.equal(report.access.way, { via: 'syscall', userModeOnly: false });
  assert.is(report.access.systemCalls.outcome, 'ok');
  assertAllWork(report, {});
});

test('an unprivileged user: usable for faults of user mode, with the ways out, exit code 1', async () => {
  needOrdinaryUser();
  const { code, report } = await examined({ under: UNPRIVILEGED });
  assert.is(report.verdict, 'usable with limits');
  assert.is(code, 1);
  assert.equal(codes(report), ['user-mode-only', 'event-fork']);
  assert.match(report.problems[0]?.why ?? '', /uid 65534\) has no CAP_SYS_PTRACE, and vm\.unprivileged/);
  assert.match(commands(report), /sysctl -w vm\.unprivileged_userfaultfd=1/);
  assert.match(commands(report), /setcap cap_sys_ptrace\+ep|--cap-add SYS_PTRACE/);
  if (report.access.device) {
    assert.match(report.problems[0]?.why ?? '', /\/dev\/userfaultfd \(root:root, mode 0600\).*EACCES/);
    assert.match(commands(report), /chmod 660 \/dev\/userfaultfd/);
  }
  assert.is(report.access.systemCalls.outcome, 'refused');
  assertAllWork(report, { 'event-fork': 'refused', sigbus: 'not tried' });
});

test('an unprivileged user who may open the device: all faults through it, and no forks', async () => {
  needOrdinaryUser();
  const minor = /^(\d+) userfaultfd$/m.exec(readFileSync('/proc/misc', 'utf8').replaceAll(/^ +/gm, ''))?.[1];
  if (!minor || !existsSync('/dev/userfaultfd')) skip('this machine has no /dev/userfaultfd');
  await inDirectory(async (directory) => {
    // The device node is private to this mount namespace: other processes do not see it.
    const script = [
      `mount -t tmpfs none ${directory}`,
      `mknod -m 666 ${directory}/device c 10 ${minor}`,
      `mount --bind ${directory}/device /dev/userfaultfd`,
      'exec "$@"',
    ].join(' && ');
    const under = ['unshare', '--mount', 'sh', '-c', script, 'sh'];
    const tried = spawnSync(under[0] as string, [...under.slice(1), 'true'], { encoding: 'utf8' });
    if (tried.status !== 0) skip(`no device can be mounted here: ${tried.error?.message ?? tried.stderr}`);
    const { code, report } = await examined({ under: [...under, ...UNPRIVILEGED] });
    assert.is(report.verdict, 'usable with limits');
    assert.is(code, 1);
    assert.equal(codes(report), ['device-only', 'event-fork']);
    assert.equal(report.access.way, { via: 'device', userModeOnly: false });
    assert.is(report.access.device?.mode, '0666');
    assertAllWork(report, { 'event-fork': 'refused' });
  });
});

test('root of a user namespace: its capability does not count', async () => {
  needOrdinaryUser();
  const under = [...UNPRIVILEGED, 'unshare', '--user', '--map-root-user'];
  const tried = spawnSync(under[0] as string, [...under.slice(1), 'true'], { encoding: 'utf8' });
  if (tried.status !== 0) skip(`no user namespace can be made here: ${tried.error?.message ?? tried.stderr}`);
  const { code, report } = await examined({ under });
  assert.is(code, 1);
  assert.is(report.access.user.sysPtrace, true);
  assert.equal(codes(report), ['user-mode-only', 'event-fork']);
  assert.match(report.problems[0]?.why ?? '', /CAP_SYS_PTRACE of a user namespace, which does not count/);
  assert.not.match(commands(report), /setcap|cap-add/);
});

for (const [name, errno, why] of [
  ['EPERM', EPERM, /answers EPERM although .*: a seccomp filter forbids it \(Seccomp: 2/],
  ['ENOSYS', ENOSYS, /answers ENOSYS, and vm\.unprivileged_userfaultfd shows .*: a seccomp filter/],
] as const) {
  test(`a seccomp filter that answers ${name}: not usable, the filter is named, exit code 2`, async () => {
    needRoot();
    const env = { UFFD_SECCOMP_ERRNO: String(errno) };
    for (const under of [[], UNPRIVILEGED]) {
      if (under.length > 0) needUnprivileged();
      const { code, report } = await examined({ preload: './seccomp.js', env, under });
      assert.is(report.verdict, 'not usable');
      assert.is(code, 2);
      assert.equal(codes(report), ['seccomp']);
      assert.match(report.problems[0]?.why ?? '', why);
      assert.match(commands(report), /--security-opt seccomp=|SystemCallFilter=userfaultfd/);
      assert.is(report.access.way, null);
      for (const { outcome } of [...report.features, ...report.operations]) assert.is(outcome, 'not tried');
    }
  });
}

for (const kill of ['process', 'thread']) {
  test(`a seccomp filter that kills the ${kill}: reported like one that refuses, and each way is tried`, async () => {
    needRoot();
    const env = { UFFD_SECCOMP_KILL: kill };
    const { code, report } = await examined({ preload: './seccomp.js', env });
    assert.is(report.verdict, 'not usable');
    assert.is(code, 2);
    assert.equal(codes(report), ['seccomp']);
    assert.match(report.problems[0]?.why ?? '', /a process that makes the system call is killed \(SIGSYS\)/);
    assert.match(report.problems[0]?.why ?? '', /seccomp filter/);
    assert.match(commands(report), /--security-opt seccomp=|SystemCallFilter=userfaultfd/);
    assert.equal(report.access.doors[0]?.result, 'SIGSYS');
    assert.is(report.access.doors.length, 3);
    assert.is(report.access.way, null);
  });
}

const PERMISSION = ['--experimental-permission', '--permission'].filter((flag) =>
  process.allowedNodeEnvironmentFlags.has(flag),
);
const PERMISSIONS = [`${PERMISSION[0]}`, '--allow-fs-read=*'];

for (const [name, under, flags, expected, why, command] of [
  [
    'ulimit -v',
    'ulimit -v 4000000; exec "$@"',
    [],
    'address-space',
    /10 GiB of address space/,
    /ulimit -v unl/,
  ],
  ['--jitless', 'exec "$@"', ['--jitless'], 'no-webassembly', /Node was started with --jitless/, /^$/],
  ['--no-addons', 'exec "$@"', ['--no-addons'], 'no-addons', /Node was started with --no-addons/, /^$/],
  [
    'the permission model',
    'exec "$@"',
    PERMISSIONS,
    'permission-model',
    /--allow-worker\)/,
    /--allow-addons/,
  ],
  [
    'the permission model without addons',
    'exec "$@"',
    [...PERMISSIONS, '--allow-worker', '--allow-child-process'],
    'permission-model',
    /forbids addons/,
    /--allow-addons/,
  ],
] as const) {
  test(`${name}: doctor and Userfaultfd.open say what it is, and the way out`, () => {
    needKernel();
    if (flags[0] === 'undefined') skip('this Node has no permission model');
    const [node, ...rest] = commandLine(['doctor', '--json']);
    const shell = (...line: string[]) => spawnSync('sh', ['-c', under, 'sh', ...line], { encoding: 'utf8' });
    const { status, stdout } = shell(node, '--no-warnings', ...flags, ...rest);
    // With --jitless, Node first warns on stdout that this disables another flag.
    const report = JSON.parse(stdout.slice(stdout.indexOf('{'))) as Report;
    assert.is(status, 2);
    assert.equal(codes(report), [expected]);
    assert.match(report.problems[0]?.why ?? '', why);
    assert.match(commands(report), command);
    assert.ok((report.problems[0]?.remedies.length ?? 0) > 0);
    if (name === 'the permission model') return;
    const open = `import(${JSON.stringify(new URL('../../src/index.js', import.meta.url))})
      .then(({ Userfaultfd }) => Userfaultfd.open()).catch(({ name, code, message }) => console.log(name, code, message))`;
    const opened = shell(node, '--no-warnings', ...flags, '-e', open).stdout;
    assert.match(opened, /^UnsupportedError ERR_UFFD_UNSUPPORTED /m);
    assert.match(opened, why);
  });
}

test("with the options that it names, Node's permission model is no obstacle", async () => {
  needRoot();
  if (PERMISSION.length === 0) skip('this Node has no permission model');
  const [node, ...rest] = commandLine(['doctor', '--json']);
  const allowed = ['--allow-addons', '--allow-worker', '--allow-child-process'];
  const words = ['--no-warnings', ...PERMISSIONS, ...allowed, ...rest];
  const { stdout } = await aloneWithHugePages(() => spawnSync(node, words, { encoding: 'utf8' }));
  assert.is((JSON.parse(stdout) as Report).verdict, 'usable');
});

test('a kernel that does not do what it promises: not usable, and what it did', async () => {
  needKernel();
  const env = { UFFD_SABOTAGE: 'wrong' };
  const { code, report } = await examined({ preload: './doctor-sabotage.js', env });
  assert.is(code, 2);
  assert.equal(codes(report), ['broken']);
  assert.match(report.problems[0]?.why ?? '', /^copy: failed, what the thread found: 0 instead of 7/);
});

test('without koffi it runs and says so, exit code 2', async () => {
  await inDirectory((directory) => {
    const installed = join(directory, 'node_modules/userfaultfd');
    mkdirSync(installed, { recursive: true });
    cpSync(join(ROOT, 'package.json'), join(installed, 'package.json'));
    cpSync(join(ROOT, 'dist'), join(installed, 'dist'), { recursive: true });
    const loader = 'node_modules/@assemblyscript/loader';
    cpSync(join(ROOT, loader), join(directory, loader), { recursive: true });
    const main = join(installed, 'dist/uffd.js');
    const { status, stdout, stderr } = spawnSync(process.execPath, [main, 'doctor'], { encoding: 'utf8' });
    assert.is(stderr, '');
    assert.is(status, 2);
    assert.match(stdout, /^userfaultfd: not usable\n\nproblem: /);
    assert.match(stdout, /reason: koffi, which makes the system calls, cannot be loaded/);
    assert.match(stdout, /\n {6}npm install --include=optional koffi\n/);
    assert.match(stdout, /^koffi +not installed$/m);
  });
});

test('--json: every field that the help names, and every feature and operation with its version', async () => {
  const { report } = await examined();
  const help = (await uffd(['doctor', '--help'])).stdout;
  const documented = help.slice(help.indexOf('Fields of the JSON'), help.indexOf('Exit codes'));
  const missing = new Set<string>();
  JSON.stringify(report, (key, value) => {
    if (key !== '' && Number.isNaN(Number(key)) && !documented.includes(key)) missing.add(key);
    return value;
  });
  assert.equal([...missing], []);
  assert.equal(Object.keys(report), [
    ...['verdict', 'problems', 'system', 'access', 'simulated', 'features', 'operations'],
  ]);
  assert.equal(
    report.features.slice(0, FEATURES.length).map(({ name, since }) => [name, since]),
    FEATURES.map((name) => [name, featureSince(name)]),
  );
  assert.equal(
    report.operations.map(({ name, since }) => [name, since]),
    OPERATIONS.map((name) => [name, operationSince(name)]),
  );
  assert.is(report.system.node, process.versions.node);
  assert.ok(report.system.koffi);
});

test('in a log: plain lines, no escape sequences, no times', async () => {
  const env = { NO_COLOR: undefined, FORCE_COLOR: undefined };
  const { stdout } = await aloneWithHugePages(() => uffd(['doctor'], { env }));
  assert.match(stdout, /^userfaultfd: (usable|usable with limits|not usable)\n/);
  assert.not.match(stdout, /[^\n -~]/);
  assert.not.match(stdout, /\d ?(ms|µs|s)\b/);
});

test('on a narrow terminal everything fits, in colours; on a dumb one there are none', async () => {
  if (spawnSync('script', ['--version']).status !== 0)
    skip('script(1), which makes a terminal, is not installed');
  // With a seccomp filter, the doctor has the most to report.
  for (const preload of ['./doctor-sabotage.js', './seccomp.js']) {
    for (const columns of [40, 120]) {
      const { stdout } = await aloneWithHugePages(() => uffdOnTerminal(['doctor'], columns, { preload }));
      const lines = stripVTControlCharacters(stdout).split('\r\n');
      assert.ok(lines.length > 40, stdout);
      for (const line of lines) assert.ok(line.length <= columns, line);
      assert.ok(stdout.includes('\u001b['), 'colours');
    }
  }
  const dumb = await aloneWithHugePages(() => uffdOnTerminal(['doctor'], 80, { env: { TERM: 'dumb' } }));
  assert.not.ok(dumb.stdout.includes('\u001b'), dumb.stdout);
});

test('huge pages that are in the pool are tried, and given back', async () => {
  needRoot();
  await withHugePages(2, async () => {
    const { report } = await examinedNow();
    if ((report.system.hugePages?.free ?? 0) < 1) skip('no huge page is free in spite of a reservation');
    for (const name of NEED_HUGE_PAGES) {
      const trial = report.features.find((one) => one.name === name);
      assert.is(trial?.outcome, 'ok', trial?.detail);
    }
    // Other processes may use huge pages at the same time.
    while ((examineSystem().hugePages?.free ?? 0) < (report.system.hugePages?.free ?? 0)) await sleep(5);
  });
});

test('the command is found as a user finds it', () => {
  const [program, ...args] = commandLine(['--help']);
  const { stdout } = spawnSync(program, args, { encoding: 'utf8' });
  assert.match(stdout, /^ {2}doctor .*whether userfaultfd works here/m);
});

test.run();
