// What `uffd doctor` says of `uffd check-handler --simulated`: whether it works here, why not, and what helps; on made-up
// machines and on this one. The verdict about userfaultfd does not depend on it.

import { release } from 'node:os';
import * as assert from 'uvu/assert';
import { atLeast, type Findings } from '../../src/cli/doctor/findings.js';
import { diagnoseSimulated, type SimulatedDiagnosis } from '../../src/cli/doctor/simulated.js';
import { type Diagnosis, diagnose } from '../../src/cli/doctor/verdict.js';
import { skip, suite } from '../support/harness.js';
import { needUnprivileged, type RunOptions, UNPRIVILEGED, uffd } from './support/command.js';
import { type Change, ORDINARY, patient } from './support/doctor-findings.js';

const test = suite('cli/doctor-simulated');

interface Expected {
  verdict: SimulatedDiagnosis['verdict'];
  codes: string[];
  why?: RegExp;
  commands?: string[];
}

const WORKS: Expected = { verdict: 'works', codes: [] };
const CASES: [name: string, change: Change, expected: Expected][] = [
  ['a new kernel', {}, WORKS],
  [
    'a container without userfaultfd',
    { ...ORDINARY, system: { container: 'docker' }, doors: ['EPERM', 'ENOENT', 'EPERM'] },
    WORKS,
  ],
  ['random addresses alone', { simulated: { fixedAddresses: false } }, WORKS],
  [
    'Linux 4.18',
    { system: { kernel: '4.18.0' }, simulated: { calls: 'EINVAL' } },
    { verdict: 'does not work', codes: ['simulated-calls'], why: /Linux 4\.18\.0, and 5\.0 is needed/ },
  ],
  [
    'Linux 5.15',
    { system: { kernel: '5.15.0' }, simulated: { killable: false, syncWakeUp: false } },
    {
      verdict: 'works with limits',
      codes: ['simulated-signals', 'simulated-speed'],
      why: /5\.19 has waits that only fatal signals interrupt/,
      commands: ['export GODEBUG=asyncpreemptoff=1'],
    },
  ],
  [
    'another listener',
    { simulated: { calls: 'EBUSY' } },
    { verdict: 'does not work', codes: ['simulated-calls'], why: /another program already answers/ },
  ],
  [
    'a profile without seccomp',
    { system: { container: 'docker' }, simulated: { calls: 'EPERM' } },
    {
      verdict: 'does not work',
      codes: ['simulated-calls'],
      why: /a filter forbids further filters/,
      commands: ['docker run --security-opt seccomp=profile.json'],
    },
  ],
  [
    'ptrace_scope 2',
    { simulated: { memory: 'EACCES', ptraceScope: 2 } },
    {
      verdict: 'does not work',
      codes: ['simulated-memory'],
      why: /^kernel\.yama\.ptrace_scope is 2, and must be at most 1$/,
      commands: ['sysctl -w kernel.yama.ptrace_scope=1'],
    },
  ],
  [
    'ptrace_scope 3, which only a boot changes',
    { simulated: { memory: 'EACCES', ptraceScope: 3 } },
    { verdict: 'does not work', codes: ['simulated-memory'], commands: [] },
  ],
  [
    'a filter without process_vm_readv',
    { simulated: { memory: 'EACCES', ptraceScope: 1 } },
    {
      verdict: 'does not work',
      codes: ['simulated-memory'],
      why: /^process_vm_readv fails: EACCES$/,
      commands: ['SystemCallFilter=process_vm_readv'],
    },
  ],
  [
    'no koffi',
    { obstacle: 'koffi, which makes the system calls, cannot be loaded', simulated: { calls: 'not tried' } },
    { verdict: 'not tried', codes: [] },
  ],
];

for (const [name, change, expected] of CASES) {
  test(name, () => {
    const { verdict, problems } = diagnoseSimulated(patient(change));
    assert.is(verdict, expected.verdict);
    assert.equal(
      problems.map(({ code }) => code),
      expected.codes,
    );
    if (expected.why) assert.match(problems[0]?.why ?? '', expected.why);
    if (expected.commands)
      assert.equal(
        problems[0]?.remedies.flatMap(({ commands }) => commands),
        expected.commands,
      );
    const { simulated, ...rest } = change;
    assert.equal(diagnose(patient(change)), diagnose(patient(rest)));
  });
}

type Report = Diagnosis & { simulated: SimulatedDiagnosis & Findings['simulated'] };

async function simulatedHere(options: RunOptions = {}): Promise<Report['simulated']> {
  const { stdout, stderr } = await uffd(['doctor', '--json'], options);
  assert.is(stderr, '');
  return (JSON.parse(stdout) as Report).simulated;
}

test('on this machine it works, also as a user without privileges', async () => {
  if (!atLeast(release(), '6.6')) skip('this kernel has limits');
  needUnprivileged();
  const { verdict, problems, calls, memory } = await simulatedHere({ under: UNPRIVILEGED });
  if (calls === 'EBUSY') skip('another program answers system calls of this one');
  assert.equal(
    { verdict, problems, calls, memory },
    { verdict: 'works', problems: [], calls: 'ok', memory: 'ok' },
  );
});

test('under a filter that forbids seccomp it does not work, and the filter is named', async () => {
  if (process.platform !== 'linux') skip('this is not Linux');
  const { verdict, problems, calls } = await simulatedHere({ preload: './without-seccomp.js' });
  assert.is(calls, 'EPERM');
  assert.is(verdict, 'does not work');
  assert.match(problems[0]?.why ?? '', /a filter forbids further filters/);
});

test.run();
