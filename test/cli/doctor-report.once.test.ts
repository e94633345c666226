// The text of `uffd doctor`: the verdict comes first, every row is present, lines fit a terminal of 40 or more columns,
// and a log gets plain sentences.

import { stripVTControlCharacters } from 'node:util';
import picocolors from 'picocolors';
import * as assert from 'uvu/assert';
import { renderReport } from '../../src/cli/doctor/report.js';
import { diagnoseSimulated } from '../../src/cli/doctor/simulated.js';
import { diagnose } from '../../src/cli/doctor/verdict.js';
import { FEATURES, featureSince, OPERATIONS, operationSince } from '../../src/index.js';
import { suite } from '../support/harness.js';
import { type Change, ORDINARY, patient, without } from './support/doctor-findings.js';

const test = suite('cli/doctor-report');

const PATIENTS: Change[] = [
  {},
  ORDINARY,
  { ...ORDINARY, outcomes: { ...without('5.13'), copy: 'failed' } },
  {
    system: { container: 'docker' },
    user: { sysPtrace: false, seccomp: 2 },
    doors: ['EPERM', 'EPERM', 'EPERM'],
  },
  { system: { container: 'docker' }, simulated: { calls: 'EPERM' } },
  { simulated: { memory: 'EACCES', ptraceScope: 2 } },
  { system: { kernel: '5.15.0' }, simulated: { killable: false, syncWakeUp: false } },
  { obstacle: 'koffi, which makes the system calls, cannot be loaded', doors: ['', '', ''] },
];

function render(change: Change, columns: number | undefined, colored = false): string {
  const findings = patient(change);
  const look = { columns, colors: picocolors.createColors(colored) };
  return renderReport(findings, diagnose(findings), diagnoseSimulated(findings), look);
}

test('no line is wider than the terminal, whatever was found', () => {
  for (const change of PATIENTS) {
    for (let columns = 40; columns <= 130; columns += 3) {
      const text = stripVTControlCharacters(render(change, columns, true));
      for (const line of text.split('\n')) assert.ok(line.length <= columns, `${columns}: ${line}`);
    }
  }
});

test('in a log there are no colours and no frames, and every sentence is a line', () => {
  const text = render(ORDINARY, undefined);
  assert.not.match(text, /[^\n -~]/);
  assert.match(text, /^userfaultfd: usable with limits\n/);
  assert.match(text, /^limit: only faults of user mode are served: .*EFAULT$/m);
  assert.match(text, /^ {2}reason: this user \(uid 1000\) .*: EACCES$/m);
  assert.match(
    text,
    /^ {2}remedy: let the group alice use the device.*\n {6}chgrp alice \/dev\/userfaultfd$/m,
  );
  assert.match(text, /^ {2}or: .*\n {6}sysctl -w vm\.unprivileged_userfaultfd=1$/m);
});

test('the verdict is the first word, then what to do, then the details', () => {
  for (const change of PATIENTS) {
    const text = render(change, 80);
    const findings = patient(change);
    const { verdict, problems } = diagnose(findings);
    assert.ok(text.startsWith(`userfaultfd: ${verdict}\n`), text);
    const details = text.indexOf('\nSystem\n');
    for (const { remedies } of [...problems, ...diagnoseSimulated(findings).problems]) {
      for (const command of remedies.flatMap((remedy) => remedy.commands)) {
        const [first] = command.split(' ');
        assert.ok(
          text.indexOf(`\n      ${first}`) > 0 && text.indexOf(`\n      ${first}`) < details,
          command,
        );
      }
    }
  }
});

test('a command that is cut for a narrow terminal is the same command to a shell', () => {
  const wide = render(ORDINARY, undefined);
  const narrow = render(ORDINARY, 40);
  const commands = (text: string): string[] =>
    text
      .replace(/ \\\n +/g, ' ')
      .split('\n')
      .filter((line) => line.startsWith('      '));
  assert.equal(commands(narrow), commands(wide));
});

test('every feature and every operation has a row, with the version that brings it', () => {
  for (const change of PATIENTS) {
    const text = render(change, undefined);
    const section = (title: string): string => text.split(`\n\n${title}`)[1]?.split('\n\n')[0] ?? '';
    for (const name of FEATURES) {
      const row = new RegExp(`^${name} .*\\(${featureSince(name)}\\)`, 'm');
      assert.match(section('Features'), row);
    }
    for (const name of OPERATIONS) {
      const row = new RegExp(`^${name} .*\\(${operationSince(name)}\\)`, 'm');
      assert.match(section('Operations'), row);
    }
  }
});

test('a colour never says what a word does not', () => {
  for (const change of PATIENTS) {
    assert.is(stripVTControlCharacters(render(change, 80, true)), render(change, 80));
  }
});

test.run();
