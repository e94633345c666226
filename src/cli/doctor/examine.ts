// The whole examination, in order: the system, the doors, the trials.

import { FEATURES, featureSince, OPERATIONS, operationSince } from '../../index.js';
import { tryDoors } from './access.js';
import { type Ability, atLeast, type Findings, type Trial } from './findings.js';
import { examineDevice, examineSystem, examineUser } from './machine.js';
import type { TrialName } from './trial-process.js';
import { makeTrials } from './trials.js';

type FeatureName = (typeof FEATURES)[number];
type OperationName = (typeof OPERATIONS)[number];

/** The operations that came with a feature, and are tried with it; where there are two, with what is offered. */
const WITH_FEATURE: Partial<Record<OperationName, FeatureName[]>> = {
  'write-protect': ['pagefault-flag-wp'],
  continue: ['minor-shmem', 'minor-hugetlbfs'],
  poison: ['poison'],
  move: ['move'],
};

/** Where no userfaultfd can be opened; the verdict says why. */
const CLOSED: Trial = { outcome: 'not tried' };

/** Takes a few seconds at most, a minute where the kernel misbehaves. @throws the signal's reason */
export async function examine(signal: AbortSignal): Promise<Findings> {
  const system = examineSystem();
  const { features, pageSize, ...tried } = await tryDoors(signal);
  const offered = FEATURES.filter((name) => features.has(name));
  const operations = OPERATIONS.map((name) => ({ name, trial: trialOf(name, offered) }));
  const basic = operations.map(({ trial }) => trial).filter((name) => name !== undefined);
  const names = new Set<TrialName>(['system-calls', ...basic, ...offered]);
  // Last, because a fork that is not let go takes its process with it.
  if (names.delete('event-fork')) names.add('event-fork');
  const trials = tried.way ? await makeTrials([...names], tried.way, signal) : new Map<TrialName, Trial>();
  const resultOf = (name: TrialName | undefined, since: string | null): Trial => {
    if (!tried.way) return CLOSED;
    return (name && trials.get(name)) ?? absent(system.kernel, since);
  };
  const ability = (name: string, since: string | null, trial: TrialName | undefined): Ability => ({
    name,
    since,
    ...resultOf(trial, since),
  });
  return {
    system: { ...system, pageSize },
    access: {
      user: examineUser(),
      device: examineDevice(),
      ...tried,
      systemCalls: resultOf('system-calls', null),
    },
    features: [
      ...FEATURES.map((name) =>
        ability(
          name,
          featureSince(name) ?? null,
          offered.find((one) => one === name),
        ),
      ),
      ...[...features]
        .filter((name) => !offered.includes(name as FeatureName))
        .map(
          (name): Ability => ({ name, since: null, outcome: 'not tried', detail: 'newer than this program' }),
        ),
    ],
    operations: operations.map(({ name, trial }) => ability(name, operationSince(name) ?? null, trial)),
  };
}

/** The trial that an operation is part of; undefined where the kernel lacks the feature it came with. */
function trialOf(name: OperationName, offered: readonly FeatureName[]): TrialName | undefined {
  const features = WITH_FEATURE[name];
  return features ? features.find((feature) => offered.includes(feature)) : (name as TrialName);
}

function absent(kernel: string, since: string | null): Trial {
  const built = since !== null && atLeast(kernel, since);
  return { outcome: 'absent', detail: built ? 'this kernel was built without it' : 'this kernel is older' };
}
