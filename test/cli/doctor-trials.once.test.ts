// Every trial ends: a trial that hangs, dies or fails is reported as such, the other trials still run, and no process
// and no descriptor is left.

import { randomUUID } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import * as assert from 'uvu/assert';
import { makeTrials } from '../../src/cli/doctor/examine.js';
import type { Trial } from '../../src/cli/doctor/findings.js';
import { LIMITS } from '../../src/cli/doctor/trial-runner.js';
import type { TrialName } from '../../src/cli/doctor/trials.js';
import { Userfaultfd } from '../../src/index.js';
import { suite } from '../support/harness.js';
import { aloneWithHugePages } from '../support/huge-pages.js';
import { needKernel } from './support/command.js';

const test = suite('cli/doctor-trials');
const WAY = { via: 'syscall', userModeOnly: true } as const;
/** Time limit of a trial that never ends. The other trials must finish within it, starting their process included. */
const PATIENCE_MS = 15_000;
/** The limits of trials that end. */
const AMPLE = { oneMs: 120_000, allMs: 300_000 };
const LIMIT_MS = 180_000;

interface Options {
  sabotage?: string;
  limits?: typeof LIMITS;
  signal?: AbortSignal;
}

/** Runs trials with a sabotage, and waits until their processes have ended. */
async function trials(names: TrialName[], options: Options = {}): Promise<ReadonlyMap<TrialName, Trial>> {
  const { sabotage = '', limits = AMPLE, signal = new AbortController().signal } = options;
  const mark = randomUUID();
  const changed = {
    NODE_OPTIONS: `--import=${new URL('./support/doctor-sabotage.js', import.meta.url)}`,
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

/** The message of a promise's rejection. */
function reasonOf(promise: Promise<unknown>): Promise<string> {
  return promise.then(
    () => 'nothing',
    (error) => error.message,
  );
}

/** Counts the processes whose environment contains a mark. */
function marked(mark: string): number {
  return readdirSync('/proc').filter((pid) => {
    try {
      return /^\d+$/.test(pid) && readFileSync(`/proc/${pid}/environ`, 'latin1').includes(mark);
    } catch {
      return false;
    }
  }).length;
}

/** The trials use a user-mode-only userfaultfd, which needs no privilege. */
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
  assert.equal(made.get('copy'), { outcome: 'failed', detail: 'what the thread found: 0 instead of 7' });
  assert.equal(made.get('zero'), { outcome: 'ok' });
});

test('one that kills its process has failed, and the others are made in a new one', async () => {
  needUserMode();
  const made = await trials(['wake', 'zero', 'copy'], { sabotage: 'die' });
  assert.is(made.get('zero')?.outcome, 'failed');
  assert.match(made.get('zero')?.detail ?? '', /ended with SIGSEGV/);
  assert.is(made.get('copy')?.outcome, 'ok');
});

test(
  'a trial whose thread sleeps forever fails after its time limit, and the others run',
  async () => {
    needUserMode();
    const limits = { ...LIMITS, oneMs: PATIENCE_MS };
    const made = await trials(['zero', 'copy'], { sabotage: 'ignore', limits });
    assert.equal(made.get('zero'), { outcome: 'failed', detail: 'no end after 15 s' });
    assert.is(made.get('copy')?.outcome, 'ok');
  },
  LIMIT_MS,
);

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
  const descriptors = (): number => readdirSync('/proc/self/fd').length;
  await aloneWithHugePages(() => trials(names));
  const before = descriptors();
  for (let time = 0; time < 3; time++) await aloneWithHugePages(() => trials(names));
  // This process may close its channel to an ended process a little later.
  while (descriptors() > before) await new Promise((resolve) => setTimeout(resolve, 5));
});

test.run();
