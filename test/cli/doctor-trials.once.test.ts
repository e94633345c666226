// The trials end, whatever happens in them: one that hangs, dies or fails is told as such, the others are made, and
// no process and no descriptor is left.

import { randomUUID } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import * as assert from 'uvu/assert';
import type { Trial } from '../../src/cli/doctor/findings.js';
import type { TrialName } from '../../src/cli/doctor/trial-process.js';
import { LIMITS, makeTrials } from '../../src/cli/doctor/trials.js';
import { Userfaultfd } from '../../src/index.js';
import { suite } from '../harness.js';
import { needKernel } from './command.js';

const test = suite('cli/doctor-trials');
const WAY = { via: 'syscall', userModeOnly: true } as const;
/** For a trial that never ends; the others are to be through by then, the start of their process included. */
const PATIENCE_MS = 5000;

interface Options {
  sabotage?: string;
  limits?: typeof LIMITS;
  signal?: AbortSignal;
}

/** Makes trials with a sabotage; fails where one of their processes outlives them. */
async function trials(names: TrialName[], options: Options = {}): Promise<ReadonlyMap<TrialName, Trial>> {
  const { sabotage = '', limits = LIMITS, signal = new AbortController().signal } = options;
  const mark = randomUUID();
  const changed = {
    NODE_OPTIONS: `--import=${new URL('./doctor-sabotage.js', import.meta.url)}`,
    UFFD_SABOTAGE: sabotage,
    UFFD_MARK: mark,
  };
  Object.assign(process.env, changed);
  try {
    return await makeTrials(names, WAY, signal, limits);
  } finally {
    for (const name of Object.keys(changed)) delete process.env[name];
    while (marked(mark) > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Why something was rejected. */
function reasonOf(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => 'nothing',
    (error) => error.message,
  );
}

/** Processes with a mark in their environment. */
function marked(mark: string): number {
  return readdirSync('/proc').filter((pid) => {
    try {
      return /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/environ`, 'latin1').includes(mark);
    } catch {
      return false;
    }
  }).length;
}

/** In a userfaultfd of user mode, which everybody may have. */
function needUserMode(): void {
  needKernel();
  Userfaultfd.open(WAY).close();
}

test('one that throws has failed, with its reason', async () => {
  needUserMode();
  const made = await trials(['zero', 'copy'], { sabotage: 'throw' });
  assert.equal(made.get('zero'), { outcome: 'failed', detail: 'sabotaged' });
  assert.equal(made.get('copy'), { outcome: 'ok' });
});

test('one whose bytes are wrong has failed, and says what was found', async () => {
  needUserMode();
  const made = await trials(['copy', 'zero'], { sabotage: 'wrong' });
  assert.equal(made.get('copy'), { outcome: 'failed', detail: 'the byte copied: 0 instead of 1' });
  assert.equal(made.get('zero'), { outcome: 'ok' });
});

test('one that kills its process has failed, and the others are made in a new one', async () => {
  needUserMode();
  const made = await trials(['wake', 'zero', 'copy'], { sabotage: 'die' });
  assert.is(made.get('zero')?.outcome, 'failed');
  assert.match(made.get('zero')?.detail ?? '', /ended with SIGSEGV/);
  assert.is(made.get('copy')?.outcome, 'ok');
});

test('one whose thread sleeps for ever has failed after its time, and the others are made', async () => {
  needUserMode();
  const limits = { ...LIMITS, oneMs: PATIENCE_MS };
  const made = await trials(['zero', 'copy'], { sabotage: 'ignore', limits });
  assert.equal(made.get('zero'), { outcome: 'failed', detail: 'no end after 5 s' });
  assert.is(made.get('copy')?.outcome, 'ok');
});

test('when the time for all of them is over, the rest is not tried', async () => {
  needUserMode();
  const made = await trials(['zero', 'copy'], { limits: { oneMs: PATIENCE_MS, allMs: 0 } });
  assert.equal([...made.values()], Array(2).fill({ outcome: 'not tried', detail: 'no time was left' }));
});

test('an abort ends them, with its reason', async () => {
  needUserMode();
  const controller = new AbortController();
  const aborting = trials(['zero'], { sabotage: 'ignore', signal: controller.signal });
  controller.abort(new Error('enough'));
  assert.is(await reasonOf(aborting), 'enough');
  assert.is(await reasonOf(trials(['zero'], { signal: AbortSignal.abort(new Error('before')) })), 'before');
});

test('every trial leaves the descriptors as they were', async () => {
  needUserMode();
  const names: TrialName[] = ['copy', 'event-remove', 'minor-shmem', 'minor-hugetlbfs'];
  await trials(names);
  const before = readdirSync('/proc/self/fd').length;
  await trials(names);
  assert.is(readdirSync('/proc/self/fd').length, before);
});

test.run();
