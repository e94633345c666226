// The whole examination, in order: the system, the methods to open a userfaultfd, the trials.

import { FEATURES, featureSince, OPERATIONS, operationSince } from '../../index.js';
import type { SimulatedSupport } from '../../testing/index.js';
import { type AccessFindings, atLeast, type Findings, type OpenMethod, type Trial } from './findings.js';
import { examineDevice, examineSystem, examineUser, ptraceScope } from './machine.js';
import { LIMITS, runSteps, type TrialLimits } from './trial-runner.js';
import type { OpenReply, OperationName, TrialName } from './trials.js';

/**
 * The methods to open a userfaultfd, in the order in which the library tries them. The device appears once: if it
 * opens, it serves all faults.
 */
const OPEN_METHODS: readonly OpenMethod[] = [
  { via: 'syscall', userModeOnly: false },
  { via: 'device', userModeOnly: false },
  { via: 'syscall', userModeOnly: true },
];

/**
 * The features with which operations are tried, by operation. If there are two features, the one that the kernel offers
 * is used.
 */
const WITH_FEATURE: Partial<Record<OperationName, TrialName[]>> = {
  'write-protect': ['pagefault-flag-wp'],
  continue: ['minor-shmem', 'minor-hugetlbfs'],
  poison: ['poison'],
  move: ['move'],
};

/** Examines the system. Takes a few seconds at most, a minute if the kernel misbehaves. @throws the signal's reason */
export async function examine(signal: AbortSignal): Promise<Findings> {
  const system = examineSystem();
  const { offered, pageSize, ...tried } = await tryOpenMethods(signal);
  const trialOf = (name: OperationName): TrialName | undefined => {
    const features = WITH_FEATURE[name];
    return features ? features.find((feature) => offered.includes(feature)) : (name as TrialName);
  };
  const features = FEATURES.filter((name) => offered.includes(name));
  const basic = OPERATIONS.map(trialOf).filter((name) => name !== undefined);
  const names = new Set<TrialName>(['system-calls', ...basic, ...features]);
  // Try event-fork last: if the event is not read, the process hangs.
  if (names.delete('event-fork')) names.add('event-fork');
  const trials = tried.way && (await makeTrials([...names], tried.way, signal));
  const simulated = await trySimulated(tried.obstacle, signal);
  const resultOf = (name: TrialName | undefined, since: string | null): Trial => {
    // The verdict says why no userfaultfd could be opened.
    if (!trials) return { outcome: 'not tried' };
    const built = since !== null && atLeast(system.kernel, since);
    const detail = built ? 'this kernel was built without it' : 'this kernel is older';
    return (name && trials.get(name)) ?? { outcome: 'absent', detail };
  };
  const namedTrial = (name: string, since: string | null = null, trial?: TrialName) => ({
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
    simulated: { ...simulated, ptraceScope: ptraceScope() },
    features: [
      ...FEATURES.map((name) =>
        namedTrial(
          name,
          featureSince(name),
          features.find((one) => one === name),
        ),
      ),
      ...offered
        .filter((name) => !FEATURES.some((known) => known === name))
        .map(
          (name) => ({ name, since: null, outcome: 'not tried', detail: 'newer than this program' }) as const,
        ),
    ],
    operations: OPERATIONS.map((name) => namedTrial(name, operationSince(name), trialOf(name))),
  };
}

interface OpenAttempts extends Pick<AccessFindings, 'doors' | 'way' | 'obstacle'> {
  /** The features that the kernel offers; none if no userfaultfd can be opened. */
  offered: readonly string[];
  pageSize: number | null;
}

async function tryOpenMethods(signal: AbortSignal): Promise<OpenAttempts> {
  const forbidden = forbiddenByNode();
  const answers: OpenReply[] = forbidden
    ? [{ obstacle: forbidden }]
    : await runSteps<OpenReply>(
        { steps: OPEN_METHODS },
        (end) =>
          end.signal
            ? { result: end.signal }
            : { obstacle: `the ways to open a userfaultfd cannot be tried: ${end.why}` },
        signal,
      );
  const blocked = answers.find((answer) => 'obstacle' in answer);
  if (blocked) return { doors: [], way: null, obstacle: blocked.obstacle, offered: [], pageSize: null };
  const results = answers.filter((answer) => 'result' in answer);
  const first = results.findIndex(({ result }) => result === 'ok');
  return {
    doors: results.map(({ result }, index) => ({ ...(OPEN_METHODS[index] as OpenMethod), result })),
    way: OPEN_METHODS[first] ?? null,
    obstacle: null,
    offered: results[first]?.features ?? [],
    pageSize: results[first]?.pageSize ?? null,
  };
}

/** Tries what simulated checks of handlers need, in a process of its own: it sets a filter there. */
async function trySimulated(obstacle: string | null, signal: AbortSignal): Promise<SimulatedSupport> {
  const untried = { memory: 'not tried', killable: null, syncWakeUp: null, fixedAddresses: null };
  if (obstacle !== null) return { calls: 'not tried', ...untried };
  const [support] = await runSteps<SimulatedSupport>(
    { steps: ['check-simulated'] },
    ({ why }) => ({ calls: why, ...untried }),
    signal,
  );
  return support ?? { calls: 'no time was left', ...untried };
}

/** Options of Node that prevent the trials. */
function forbiddenByNode(): string | undefined {
  const { permission } = process as { permission?: { has(scope: string): boolean } };
  const lacks = [
    ['child', '--allow-child-process'],
    ['worker', '--allow-worker'],
  ].flatMap(([scope = '', flag = '']) => (permission?.has(scope) === false ? [flag] : []));
  if (lacks.length === 0) return undefined;
  return `Node's permission model is on, and forbids what the doctor needs to try anything (${lacks.join(', ')})`;
}

/** Runs all trials; returns the outcomes by name. @throws the signal's reason */
export async function makeTrials(
  names: readonly TrialName[],
  way: OpenMethod,
  signal: AbortSignal,
  limits: TrialLimits = LIMITS,
): Promise<ReadonlyMap<TrialName, Trial>> {
  const failed = ({ why }: { why: string }): Trial => ({ outcome: 'failed', detail: why });
  const made = await runSteps<Trial>({ steps: names, way }, failed, signal, limits);
  const late: Trial = { outcome: 'not tried', detail: 'no time was left' };
  return new Map(names.map((name, index) => [name, made[index] ?? late]));
}
