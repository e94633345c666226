// The doctor's verdict on made-up users and machines: the right one of three, the exact reason, and remedies that fit.

import * as assert from 'uvu/assert';
import { atLeast, type Findings } from '../../src/cli/doctor/findings.js';
import { diagnose } from '../../src/cli/doctor/verdict.js';
import { suite } from '../support/harness.js';
import { ORDINARY, patient, without } from './support/doctor-findings.js';

const test = suite('cli/doctor-verdict');

interface Expected {
  verdict: ReturnType<typeof diagnose>['verdict'];
  /** The problems' codes, in order. */
  codes: string[];
  /** Matches the reason of the first problem. */
  why?: RegExp;
  /** All commands of the first problem's remedies. */
  commands?: string[];
}

const DEVICE = [
  'chgrp alice /dev/userfaultfd',
  'chmod 660 /dev/userfaultfd',
  'echo KERNEL==\\"userfaultfd\\", GROUP=\\"alice\\" > /etc/udev/rules.d/60-uffd.rules',
];
const CAPABILITY = ['setcap cap_sys_ptrace+ep /usr/bin/node', 'AmbientCapabilities=CAP_SYS_PTRACE'];
const SETTING = ['sysctl -w vm.unprivileged_userfaultfd=1'];
const PROFILES = [
  'docker run --security-opt seccomp=profile.json',
  'docker run --security-opt seccomp=unconfined',
];

const CASES: [string, Findings, Expected][] = [
  ['root on a new kernel', patient(), { verdict: 'usable', codes: [] }],
  [
    'huge pages that are not reserved are no limit',
    patient({ outcomes: { 'missing-hugetlbfs': 'not tried', 'minor-hugetlbfs': 'not tried' } }),
    { verdict: 'usable', codes: [] },
  ],
  [
    'an ordinary user',
    patient(ORDINARY),
    {
      verdict: 'usable with limits',
      codes: ['user-mode-only', 'event-fork'],
      why: /uid 1000\) has no CAP_SYS_PTRACE, and vm\.unprivileged_userfaultfd is 0; \/dev\/userfaultfd \(root:root, mode 0600\) may not be opened: EACCES/,
      commands: [...DEVICE, ...CAPABILITY, ...SETTING],
    },
  ],
  [
    'an ordinary user before the device came',
    patient({
      ...ORDINARY,
      system: { kernel: '5.15.0-91-generic' },
      device: null,
      doors: ['EPERM', 'ENOENT', 'ok'],
      outcomes: { ...without('5.15'), 'event-fork': 'refused' },
    }),
    {
      verdict: 'usable with limits',
      codes: ['user-mode-only', 'event-fork', 'old-kernel'],
      why: /vm\.unprivileged_userfaultfd is 0$/,
      commands: [...CAPABILITY, ...SETTING],
    },
  ],
  [
    'an ordinary user before faults of user mode alone could be had',
    patient({
      ...ORDINARY,
      system: { kernel: '5.7.0' },
      device: null,
      doors: ['EPERM', 'ENOENT', 'EPERM'],
    }),
    {
      verdict: 'not usable',
      codes: ['privilege'],
      why: /no CAP_SYS_PTRACE, and vm\.unprivileged_userfaultfd is 0$/,
      commands: [...CAPABILITY, ...SETTING],
    },
  ],
  [
    'an ordinary user where the setting is 1',
    patient({
      ...ORDINARY,
      user: { ...ORDINARY.user, unprivileged: 1 },
      doors: ['ok', 'EACCES', 'ok'],
    }),
    {
      verdict: 'usable with limits',
      codes: ['event-fork'],
      why: /needs CAP_SYS_PTRACE, however/,
      commands: CAPABILITY,
    },
  ],
  [
    'an ordinary user who may open the device',
    patient({ ...ORDINARY, doors: ['EPERM', 'ok', 'ok'] }),
    {
      verdict: 'usable with limits',
      codes: ['device-only', 'event-fork'],
      why: /no CAP_SYS_PTRACE/,
      commands: [...CAPABILITY, ...SETTING],
    },
  ],
  [
    'root of a user namespace',
    patient({
      ...ORDINARY,
      user: { uid: 0, group: 'root', sysPtrace: true, userNamespace: true },
    }),
    {
      verdict: 'usable with limits',
      codes: ['user-mode-only', 'event-fork'],
      why: /has the CAP_SYS_PTRACE of a user namespace, which does not count/,
      commands: [...DEVICE.map((command) => command.replaceAll('alice', 'GROUP')), ...SETTING],
    },
  ],
  [
    'the capability without a device',
    patient({ device: null, doors: ['ok', 'ENOENT', 'ok'] }),
    { verdict: 'usable', codes: [] },
  ],
  [
    "Docker's default profile",
    patient({
      system: { container: 'docker' },
      user: { sysPtrace: false, seccomp: 2 },
      device: null,
      doors: ['EPERM', 'ENOENT', 'EPERM'],
    }),
    {
      verdict: 'not usable',
      codes: ['seccomp'],
      why: /EPERM although faults of user mode need no privilege: a seccomp filter forbids it \(Seccomp: 2 in \/proc\/self\/status\); Docker's default profile.*; there is no \/dev\/userfaultfd$/,
      commands: [
        'docker run --device /dev/userfaultfd',
        ...PROFILES.map((command) => `${command} --cap-add SYS_PTRACE`),
      ],
    },
  ],
  [
    'a filter in spite of the capability, which forbids the device as well',
    patient({
      system: { container: 'podman' },
      user: { seccomp: 2 },
      device: { owner: 'root', group: 'root', mode: '0600', open: 'ok' },
      doors: ['EPERM', 'EPERM', 'EPERM'],
    }),
    {
      verdict: 'not usable',
      codes: ['seccomp'],
      why: /EPERM although CAP_SYS_PTRACE is there: a seccomp filter.*; \/dev\/userfaultfd can be opened, and answers EPERM$/,
      commands: PROFILES,
    },
  ],
  [
    'a filter that answers ENOSYS',
    patient({ user: { seccomp: 2 }, device: null, doors: ['ENOSYS', 'ENOENT', 'ENOSYS'] }),
    {
      verdict: 'not usable',
      codes: ['seccomp'],
      why: /ENOSYS, and vm\.unprivileged_userfaultfd shows that this kernel has it: a seccomp filter/,
      commands: ['SystemCallFilter=userfaultfd'],
    },
  ],
  [
    'a filter that answers ENOSYS, and a device that is open',
    patient({ user: { seccomp: 2, unprivileged: null }, doors: ['ENOSYS', 'ok', 'ENOSYS'] }),
    {
      verdict: 'usable with limits',
      codes: ['device-only'],
      why: /ENOSYS, and \/dev\/userfaultfd shows that this kernel has it/,
    },
  ],
  [
    'a kernel built without it',
    patient({
      user: { unprivileged: null },
      device: null,
      doors: ['ENOSYS', 'ENOENT', 'ENOSYS'],
    }),
    {
      verdict: 'not usable',
      codes: ['no-system-call'],
      why: /ENOSYS: this kernel was built without CONFIG_USERFAULTFD; there is no/,
      commands: ['grep USERFAULTFD /boot/config-$(uname -r)'],
    },
  ],
  [
    'ENOSYS from an old kernel or a filter, which cannot be distinguished',
    patient({
      system: { kernel: '4.19.0', container: 'docker' },
      user: { unprivileged: null, seccomp: 2 },
      device: null,
      doors: ['ENOSYS', 'ENOENT', 'ENOSYS'],
    }),
    {
      verdict: 'not usable',
      codes: ['no-system-call'],
      why: /without CONFIG_USERFAULTFD, or the seccomp filter that this process is under hides it$/,
      commands: ['grep USERFAULTFD /boot/config-$(uname -r)', ...PROFILES],
    },
  ],
  [
    'a kernel before it came',
    patient({
      system: { kernel: '4.2.0' },
      user: { unprivileged: null },
      device: null,
      doors: ['ENOSYS', 'ENOENT', 'ENOSYS'],
    }),
    { verdict: 'not usable', codes: ['no-system-call'], why: /4\.2\.0 has no userfaultfd/, commands: [] },
  ],
  [
    'a security module, by EPERM',
    patient({ doors: ['EPERM', 'EPERM', 'EPERM'] }),
    {
      verdict: 'not usable',
      codes: ['security-module'],
      why: /EPERM, and neither a missing privilege nor a seccomp filter explains it/,
    },
  ],
  [
    'a security module, by EACCES',
    patient({ doors: ['EACCES', 'EACCES', 'EACCES'] }),
    { verdict: 'not usable', codes: ['security-module'], why: /EACCES, and neither/ },
  ],
  [
    'no descriptor left',
    patient({ doors: ['EMFILE', 'EMFILE', 'EMFILE'] }),
    { verdict: 'not usable', codes: ['refused'], why: /fails with EMFILE/, commands: [] },
  ],
  ...['4.14', '5.7', '5.13', '6.1'].map((version): [string, Findings, Expected] => [
    `root on Linux ${version}`,
    patient({
      system: { kernel: `${version}.12-generic` },
      user: { unprivileged: version === '4.14' ? null : 1 },
      outcomes: without(version),
    }),
    {
      verdict: 'usable with limits',
      codes: ['old-kernel'],
      why: new RegExp(`this is Linux ${version.replace('.', '\\.')}\\.12-generic`),
    },
  ]),
  [
    'a new kernel without write protection',
    patient({ system: { arch: 'arm64' }, outcomes: { 'pagefault-flag-wp': 'absent', 'wp-async': 'absent' } }),
    { verdict: 'usable with limits', codes: ['not-offered'], why: /none on arm64/, commands: [] },
  ],
  [
    'a feature that does not do what it should',
    patient({ outcomes: { poison: 'failed' } }),
    { verdict: 'usable with limits', codes: ['trial-failed'], why: /^poison: poison's detail$/ },
  ],
  [
    'a kernel that cannot copy',
    patient({ outcomes: { copy: 'failed' } }),
    { verdict: 'not usable', codes: ['broken'], why: /copy: failed, copy's detail/ },
  ],
  [
    'an old Node',
    patient({ system: { nodeSupported: false, node: '18.0.0' } }),
    { verdict: 'usable with limits', codes: ['old-node'], why: /Node 18\.0\.0/ },
  ],
  [
    'no koffi',
    patient({ obstacle: 'koffi, which makes the system calls, cannot be loaded', doors: ['', '', ''] }),
    {
      verdict: 'not usable',
      codes: ['no-koffi'],
      why: /cannot be loaded/,
      commands: ['npm install --include=optional koffi'],
    },
  ],
  [
    'another system',
    patient({
      system: { platform: 'darwin' },
      obstacle: 'userfaultfd is a part of Linux; this is darwin',
      doors: ['', '', ''],
    }),
    { verdict: 'not usable', codes: ['not-linux'], why: /this is darwin/ },
  ],
  [
    'a filter that kills, and a device that is open',
    patient({ doors: ['SIGSYS', 'ok', 'SIGSYS'], user: { seccomp: 2 } }),
    { verdict: 'usable with limits', codes: ['device-only'], why: /is killed \(SIGSYS\): a seccomp filter/ },
  ],
  [
    'something else in the way',
    patient({
      obstacle: 'the ways to open a userfaultfd cannot be tried: no end after 10 s',
      doors: ['', '', ''],
    }),
    { verdict: 'not usable', codes: ['no-trial'], why: /no end after 10 s/ },
  ],
  [
    'another machine',
    patient({
      system: { arch: 'mips' },
      obstacle: "userfaultfd's system call number on mips is not known here",
      doors: ['', '', ''],
    }),
    { verdict: 'not usable', codes: ['unknown-machine'], why: /mips/ },
  ],
];

for (const [name, findings, expected] of CASES) {
  test(name, () => {
    const { verdict, problems } = diagnose(findings);
    assert.is(verdict, expected.verdict);
    assert.equal(
      problems.map(({ code }) => code),
      expected.codes,
    );
    if (expected.why) assert.match(problems[0]?.why ?? '', expected.why);
    if (expected.commands) {
      const commands = problems[0]?.remedies.flatMap((remedy) => remedy.commands);
      assert.equal(commands, expected.commands);
    }
  });
}

test('what an old kernel lacks is named, with the version that brings all of it', () => {
  const { problems } = diagnose(
    patient({ system: { kernel: '6.1.0' }, user: { unprivileged: 1 }, outcomes: without('6.1') }),
  );
  assert.is(problems[0]?.what, 'there is no wp-unpopulated (6.4), poison (6.6), wp-async (6.7), move (6.8)');
  assert.is(problems[0]?.remedies[0]?.what, 'Linux 6.8 has all of them');
});

test('versions are compared as numbers', () => {
  for (const [kernel, since, expected] of [
    ['5.10.0', '5.7', true],
    ['5.7.0-rc1', '5.7', true],
    ['5.4', '5.13', false],
    ['6.0', '5.19', true],
    ['4.20', '5.0', false],
  ] as const) {
    assert.is(atLeast(kernel, since), expected, `${kernel}, ${since}`);
  }
});

test.run();
