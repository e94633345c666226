// The verdict: whether userfaultfd can be used here, the exact reasons where it cannot or not fully, and the
// remedies. A pure function of the findings, so that every kernel and user can be put before it.
//
// How the kernel's answers are told apart (kernel-semantics: Creation):
//  - ENOSYS with vm.unprivileged_userfaultfd or the device there: the kernel has the call, a filter hides it.
//  - EPERM for all faults and not for those of user mode: the user lacks a privilege.
//  - SIGSYS, by which its process is killed, is a filter.
//  - EPERM for those of user mode too (they came with 5.11, and need nothing), or in spite of a privilege: not
//    the kernel itself, so a seccomp filter where there is one, else a security module.

import { answerAt, atLeast, type Findings, type UserFindings } from './findings.js';
import { capabilityRemedies, filterRemedies, privilegeRemedies, type Remedy } from './remedies.js';

export type Verdict = 'usable' | 'usable with limits' | 'not usable';

/** What keeps userfaultfd from being usable, or limits it. */
export interface Problem {
  /** A word for programs; it stays the same. */
  code: string;
  /** What it means for whoever wants to use userfaultfd. */
  what: string;
  why: string;
  /** Any one of them helps, unless its text says otherwise. */
  remedies: Remedy[];
}

export interface Judgement {
  verdict: Verdict;
  problems: Problem[];
}

/** Faults of user mode alone need no privilege since then. */
const USER_MODE_SINCE = '5.11';
/** Before that, everybody could open everything. */
const PRIVILEGE_SINCE = '5.2';
/** What nothing can do without. */
const ESSENTIAL = ['register', 'copy'];

export function judge(findings: Findings): Judgement {
  const shut = obstacle(findings) ?? (findings.access.way ? broken(findings) : shutDoors(findings));
  if (shut) return { verdict: 'not usable', problems: [shut] };
  const problems = [
    userModeOnly(findings),
    deviceOnly(findings),
    forkRefused(findings),
    tooOld(findings),
    leftOut(findings),
    failed(findings),
    oldNode(findings),
  ].filter((problem) => problem !== undefined);
  return { verdict: problems.length > 0 ? 'usable with limits' : 'usable', problems };
}

// ---- not usable ----------------------------------------------------------------------------------------------

const WITHOUT = 'see the command line of Node and NODE_OPTIONS, also in what starts it';

/** What the message of an obstacle is known by: the first that fits. */
const OBSTACLES: readonly [sign: RegExp, code: string, remedies: Remedy[]][] = [
  [
    /permission model/,
    'permission-model',
    [
      {
        what: 'start Node with these options as well (programs that serve need no processes), or without its permission model',
        commands: ["--allow-addons --allow-worker --allow-child-process '--allow-fs-read=*'"],
      },
    ],
  ],
  [/--no-addons/, 'no-addons', [{ what: `start Node without --no-addons: ${WITHOUT}`, commands: [] }]],
  [/--jitless/, 'no-webassembly', [{ what: `start Node without --jitless: ${WITHOUT}`, commands: [] }]],
  [
    /address space/,
    'address-space',
    [
      {
        what: 'raise the limit, in the shell or the unit of systemd that starts it (ulimit -v -H says how far)',
        commands: ['ulimit -v unlimited', 'LimitAS=infinity'],
      },
      {
        what: "have the core's memory take no more addresses than it uses (Node 20.15, 22.2 or newer)",
        commands: ['export NODE_OPTIONS=--disable-wasm-trap-handler'],
      },
    ],
  ],
  [
    /koffi/,
    'no-koffi',
    [
      {
        what: 'install it, with the optional package for this machine',
        commands: ['npm install --include=optional koffi'],
      },
    ],
  ],
  [
    /system call number/,
    'unknown-machine',
    [{ what: 'run it on a machine that this program knows: x64, arm64', commands: [] }],
  ],
];

/** What has to be there before the kernel can be asked. */
function obstacle({ system, access }: Findings): Problem | undefined {
  if (access.obstacle === null) return undefined;
  const problem = { what: 'userfaultfd cannot be called from here', why: access.obstacle };
  if (system.platform !== 'linux') {
    return { code: 'not-linux', ...problem, remedies: [{ what: 'run it on Linux', commands: [] }] };
  }
  const [, code, remedies] = OBSTACLES.find(([sign]) => sign.test(access.obstacle as string)) ?? [];
  return { code: code ?? 'no-trial', ...problem, remedies: remedies ?? [] };
}

/** No way to open a userfaultfd works. */
function shutDoors(findings: Findings): Problem {
  const { code, why, remedies } = refusal(findings);
  const device = deviceState(findings);
  return { code, what: 'no userfaultfd can be opened', why: device ? `${why}; ${device}` : why, remedies };
}

/** One can be opened, and does not do what it is there for. */
function broken({ operations }: Findings): Problem | undefined {
  const broken = operations.filter(({ name, outcome }) => ESSENTIAL.includes(name) && outcome !== 'ok');
  if (broken.length === 0) return undefined;
  return {
    code: 'broken',
    what: 'a userfaultfd can be opened, and page faults cannot be served with it',
    why: broken.map(({ name, outcome, detail }) => `${name}: ${outcome}, ${detail}`).join('; '),
    remedies: [{ what: 'read below what was tried, and report it to who makes this kernel', commands: [] }],
  };
}

// ---- why the system call is refused --------------------------------------------------------------------------

type Refusal = Pick<Problem, 'code' | 'why' | 'remedies'>;

function refusal(findings: Findings): Refusal {
  const { kernel } = findings.system;
  const { doors } = findings.access;
  const answer = answerAt(doors, 'syscall') ?? 'no answer';
  if (answer === 'ENOSYS') return noSystemCall(findings);
  if (answer === 'EACCES') return securityModule('EACCES');
  if (answer === 'SIGSYS') return filtered(findings, 'SIGSYS');
  if (answer !== 'EPERM') {
    const why = `the system call fails with ${answer}`;
    return { code: 'refused', why, remedies: [] };
  }
  const free = atLeast(kernel, USER_MODE_SINCE) && answerAt(doors, 'syscall', true) === 'EPERM';
  if (!free && !privilegeOf(findings)) return unprivileged(findings);
  if (findings.access.user.seccomp === 2) return filtered(findings, 'EPERM');
  return securityModule('EPERM');
}

/** What would be enough for the kernel itself; undefined where this user has nothing of the kind. */
function privilegeOf({ system, access }: Findings): string | undefined {
  const { unprivileged } = access.user;
  // The setting shows a kernel that asks although its version says otherwise.
  if (unprivileged === null && !atLeast(system.kernel, PRIVILEGE_SINCE)) {
    return `Linux ${system.kernel} asks for no privilege`;
  }
  if (unprivileged === 1) return 'vm.unprivileged_userfaultfd is 1';
  if (hasCapability(access.user)) return 'CAP_SYS_PTRACE is there';
  return undefined;
}

function hasCapability({ sysPtrace, userNamespace }: UserFindings): boolean {
  return sysPtrace && !userNamespace;
}

function noSystemCall(findings: Findings): Refusal {
  const { system, access } = findings;
  const { unprivileged, seccomp } = access.user;
  if (unprivileged !== null || access.device) return filtered(findings, 'ENOSYS');
  const kernel = { what: 'use a kernel of Linux 4.3 or newer', commands: [] };
  if (!atLeast(system.kernel, '4.3')) {
    return { code: 'no-system-call', why: `Linux ${system.kernel} has no userfaultfd`, remedies: [kernel] };
  }
  const built = {
    what: 'use a kernel that is built with CONFIG_USERFAULTFD=y; to see what this one was built with',
    commands: ['grep USERFAULTFD /boot/config-$(uname -r)'],
  };
  const why = 'the system call answers ENOSYS: this kernel was built without CONFIG_USERFAULTFD';
  if (seccomp !== 2) return { code: 'no-system-call', why, remedies: [built] };
  return {
    code: 'no-system-call',
    why: `${why}, or the seccomp filter that this process is under hides it`,
    remedies: [built, ...filterRemedies(findings)],
  };
}

function filtered(findings: Findings, answer: string): Refusal {
  const { container } = findings.system;
  const { seccomp, unprivileged } = findings.access.user;
  const witness = unprivileged === null ? '/dev/userfaultfd' : 'vm.unprivileged_userfaultfd';
  const proof =
    answer === 'ENOSYS'
      ? `the system call answers ENOSYS, and ${witness} shows that this kernel has it`
      : answer === 'SIGSYS'
        ? 'a process that makes the system call is killed (SIGSYS)'
        : `the system call answers EPERM although ${privilegeOf(findings) ?? 'faults of user mode need no privilege'}`;
  const filter =
    seccomp === 2
      ? 'a seccomp filter forbids it (Seccomp: 2 in /proc/self/status)'
      : 'something between this process and the kernel forbids it';
  const whose = container === null ? '' : "; Docker's default profile, for one, does";
  return { code: 'seccomp', why: `${proof}: ${filter}${whose}`, remedies: filterRemedies(findings) };
}

function securityModule(answer: string): Refusal {
  return {
    code: 'security-module',
    why:
      `the system call answers ${answer}, and neither a missing privilege nor a seccomp filter explains it: ` +
      'a security module (SELinux, AppArmor, a BPF program) forbids it',
    remedies: [
      {
        what: 'read in the log who refused it, and allow it there (SELinux: class anon_inode, as root)',
        commands: ['ausearch -m avc -ts recent', 'dmesg | grep -iE "avc|apparmor|lockdown"'],
      },
    ],
  };
}

function unprivileged(findings: Findings): Refusal {
  const { user } = findings.access;
  const capability = user.sysPtrace
    ? 'the CAP_SYS_PTRACE of a user namespace, which does not count'
    : 'no CAP_SYS_PTRACE';
  const setting = `vm.unprivileged_userfaultfd is ${user.unprivileged ?? 'not there'}`;
  const why = `this user (uid ${user.uid}) has ${capability}, and ${setting}`;
  return { code: 'privilege', why, remedies: privilegeRemedies(findings) };
}

/** Why the device is no way out; undefined where there is nothing to be said. */
function deviceState({ system, access }: Findings): string | undefined {
  const { device } = access;
  if (device?.open === 'ok') {
    const answer = answerAt(access.doors, 'device');
    return answer === 'ok' ? undefined : `/dev/userfaultfd can be opened, and answers ${answer}`;
  }
  if (device) {
    const { owner, group, mode, open } = device;
    return `/dev/userfaultfd (${owner}:${group}, mode ${mode}) may not be opened: ${open}`;
  }
  return atLeast(system.kernel, '6.1') ? 'there is no /dev/userfaultfd' : undefined;
}

// ---- limits --------------------------------------------------------------------------------------------------

function userModeOnly(findings: Findings): Problem | undefined {
  if (!findings.access.way?.userModeOnly) return undefined;
  const { why, remedies } = refusal(findings);
  const device = deviceState(findings);
  return {
    code: 'user-mode-only',
    what: 'only faults of user mode are served: a system call that touches a missing page gets EFAULT',
    why: device ? `${why}; ${device}` : why,
    remedies,
  };
}

function deviceOnly(findings: Findings): Problem | undefined {
  if (findings.access.way?.via !== 'device') return undefined;
  const what =
    'all faults are served only through /dev/userfaultfd; this library takes it, other programs may not';
  const { why, remedies } = refusal(findings);
  return { code: 'device-only', what, why, remedies };
}

function forkRefused(findings: Findings): Problem | undefined {
  const fork = findings.features.find(({ name }) => name === 'event-fork');
  if (fork?.outcome !== 'refused') return undefined;
  const { sysPtrace } = findings.access.user;
  const why = sysPtrace
    ? 'it needs CAP_SYS_PTRACE, and that of a user namespace does not count'
    : 'it needs CAP_SYS_PTRACE, however the userfaultfd was opened';
  return {
    code: 'event-fork',
    what:
      "forks cannot be followed: 'event-fork' is refused, " +
      "and a child reads zeros where its parent's pages were missing",
    why,
    remedies: capabilityRemedies(findings),
  };
}

function tooOld({ system, features }: Findings): Problem | undefined {
  const missing = features.filter(
    ({ outcome, since }) => outcome === 'absent' && since !== null && !atLeast(system.kernel, since),
  );
  if (missing.length === 0) return undefined;
  const newest = missing.map(({ since }) => since as string).reduce((a, b) => (atLeast(a, b) ? a : b));
  return {
    code: 'old-kernel',
    what: `there is no ${missing.map(({ name, since }) => `${name} (${since})`).join(', ')}`,
    why: `this is Linux ${system.kernel}; the versions that bring them are newer`,
    remedies: [{ what: `Linux ${newest} has all of them`, commands: [] }],
  };
}

/** Features of this version of Linux, or older, that this kernel does not offer all the same. */
function leftOut({ system, features }: Findings): Problem | undefined {
  const missing = features.filter(
    ({ outcome, since }) => outcome === 'absent' && since !== null && atLeast(system.kernel, since),
  );
  if (missing.length === 0) return undefined;
  return {
    code: 'not-offered',
    what: `there is no ${missing.map(({ name }) => name).join(', ')}`,
    why:
      `a kernel of this version, ${system.kernel}, can have them: ` +
      `this one was built without, or Linux has none on ${system.arch}`,
    remedies: [],
  };
}

function failed({ access, features, operations }: Findings): Problem | undefined {
  const trials = [...features, ...operations, { name: 'faults of system calls', ...access.systemCalls }];
  const failures = new Map(
    trials
      .filter(({ outcome }) => outcome === 'failed')
      .map(({ name, detail }) => [name, `${name}: ${detail}`]),
  );
  if (failures.size === 0) return undefined;
  return {
    code: 'trial-failed',
    what: `not everything worked when it was tried: ${[...failures.keys()].join(', ')}`,
    why: [...failures.values()].join('; '),
    remedies: [],
  };
}

function oldNode({ system }: Findings): Problem | undefined {
  if (system.nodeSupported) return undefined;
  const why = `this is Node ${system.node}, which is older than what this program was made for`;
  return {
    code: 'old-node',
    what: 'it may fail in Node',
    why,
    remedies: [{ what: 'a newer Node', commands: [] }],
  };
}
