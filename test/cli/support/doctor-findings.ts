// Made-up findings for the doctor: kernels and users that this machine does not have.

import type { Findings, NamedTrial } from '../../../src/cli/doctor/findings.js';
import { FEATURES, featureSince, OPERATIONS, operationSince } from '../../../src/index.js';

/** Changes to the default findings: each given field replaces the default one. */
export interface Change {
  system?: Partial<Findings['system']>;
  user?: Partial<Findings['access']['user']>;
  device?: Findings['access']['device'];
  /** The results of the ways to open a userfaultfd: system call, device, system call for user-mode faults only. */
  doors?: [string, string, string];
  obstacle?: string;
  /** What simulated checks of handlers need. */
  simulated?: Partial<Findings['simulated']>;
  /** Outcomes other than 'ok', by name. */
  outcomes?: Record<string, NamedTrial['outcome']>;
}

/** The findings if everything works: root on Linux 6.18, outside of any container, with some changes. */
export function patient(change: Change = {}): Findings {
  const { doors = ['ok', 'ok', 'ok'], obstacle = null, outcomes = {} } = change;
  const ability = (name: string, since: string | undefined): NamedTrial => {
    const outcome = outcomes[name] ?? 'ok';
    return { name, since: since ?? null, outcome, ...(outcome !== 'ok' && { detail: `${name}'s detail` }) };
  };
  const ways = [
    { via: 'syscall', userModeOnly: false },
    { via: 'device', userModeOnly: false },
    { via: 'syscall', userModeOnly: true },
  ] as const;
  return {
    system: {
      platform: 'linux',
      arch: 'x64',
      kernel: '6.18.0',
      pageSize: 4096,
      node: '20.19.0',
      nodePath: '/usr/bin/node',
      nodeSupported: true,
      koffi: '3.3.4',
      container: null,
      hugePages: { bytes: 2 ** 21, total: 0, free: 0 },
      transparentHugePages: 'madvise',
      ...change.system,
    },
    access: {
      user: {
        uid: 0,
        group: 'root',
        sysPtrace: true,
        userNamespace: false,
        unprivileged: 0,
        seccomp: 0,
        ...change.user,
      },
      device:
        change.device === undefined
          ? { owner: 'root', group: 'root', mode: '0600', open: doors[1] }
          : change.device,
      doors: obstacle === null ? ways.map((way, index) => ({ ...way, result: doors[index] as string })) : [],
      way: ways[doors.indexOf('ok')] ?? null,
      obstacle,
      systemCalls: { outcome: 'ok' },
    },
    simulated: {
      calls: 'ok',
      memory: 'ok',
      killable: true,
      syncWakeUp: true,
      fixedAddresses: true,
      ptraceScope: 1,
      ...change.simulated,
    },
    features: FEATURES.map((name) => ability(name, featureSince(name))),
    operations: OPERATIONS.map((name) => ability(name, operationSince(name))),
  };
}

/** An ordinary user of a machine with default settings. */
export const ORDINARY: Change = {
  user: { uid: 1000, group: 'alice', sysPtrace: false },
  doors: ['EPERM', 'EACCES', 'ok'],
  outcomes: { 'event-fork': 'refused' },
};

/** The outcomes of the features and operations that came after a version of Linux. */
export function without(newerThan: string): Record<string, NamedTrial['outcome']> {
  const lacks = (since: string | undefined): boolean =>
    since !== undefined && since.localeCompare(newerThan, 'en', { numeric: true }) > 0;
  return Object.fromEntries([
    ...FEATURES.filter((name) => lacks(featureSince(name))).map((name) => [name, 'absent']),
    ...OPERATIONS.filter((name) => lacks(operationSince(name))).map((name) => [name, 'absent']),
  ]);
}
