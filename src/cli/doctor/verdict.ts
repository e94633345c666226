// The verdict: whether userfaultfd can be used here, the exact reasons if it cannot or not fully, and the remedies. A
// pure function of the findings, so that tests can try it on every kernel and user.
//
// How the kernel's answers are distinguished (docs/kernel.md):
//  - ENOSYS although vm.unprivileged_userfaultfd or the device is there: the kernel has the call, and a filter hides
//    it.
//  - EPERM for all faults and not for those of user mode: the user lacks a privilege.
//  - SIGSYS, which kills the calling process: a filter.
//  - EPERM also for faults of user mode (which need no privilege from 5.11 on), or although the user has a privilege:
//    the kernel itself does not refuse the call. So a seccomp filter refuses it if there is one, else a security
//    module.

import { atLeast, type Findings, openResult, type Trial } from './findings.js';
import {
  capabilityRemedies,
  DEVICE_SINCE,
  filterRemedies,
  privilegeRemedies,
  type Remedy,
  remedy,
} from './remedies.js';

export type Verdict = 'usable' | 'usable with limits' | 'not usable';

/** What keeps userfaultfd from being usable, or limits it. */
export interface Problem {
  /** A word for programs, the same in every version. */
  code: string;
  /** What it means for the user of userfaultfd. */
  what: string;
  why: string;
  /** Ways to solve the problem: any one of them helps, unless its text says otherwise. */
  remedies: Remedy[];
}

export interface Diagnosis {
  verdict: Verdict;
  problems: Problem[];
}

/** The version from which faults of user mode alone need no privilege. */
const USER_MODE_SINCE = '5.11';
/** The version before which every user could open a userfaultfd for all faults. */
const PRIVILEGE_SINCE = '5.2';
/** Operations without which no fault can be served. */
const ESSENTIAL = ['register', 'copy'];

export function diagnose(findings: Findings): Diagnosis {
  const fatal = obstacle(findings) ?? (findings.access.way ? broken(findings) : noWay(findings));
  if (fatal) return { verdict: 'not usable', problems: [fatal] };
  const problems = [
    limitedWay(findings),
    forkRefused(findings),
    ...absent(findings),
    failed(findings),
    oldNode(findings),
  ].filter((problem) => problem !== undefined);
  return { verdict: problems.length > 0 ? 'usable with limits' : 'usable', problems };
}

// ---- not usable ----------------------------------------------------------------------------------------------

const WITHOUT = 'see the command line of Node and NODE_OPTIONS, also in what starts it';

type Obstacle = readonly [sign: RegExp, code: string, ...remedies: Remedy[]];

const NOT_LINUX: Obstacle = [/(?:)/, 'not-linux', remedy('run it on Linux')];
const UNKNOWN: Obstacle = [/(?:)/, 'no-trial'];
/** Obstacles, recognised by a part of the message: the first that fits counts. */
const OBSTACLES: readonly Obstacle[] = [
  [
    /permission model/,
    'permission-model',
    remedy(
      'start Node with these options as well (programs that serve need no processes), or without its permission model',
      "--allow-addons --allow-worker --allow-child-process '--allow-fs-read=*'",
    ),
  ],
  [/--no-addons/, 'no-addons', remedy(`start Node without --no-addons: ${WITHOUT}`)],
  [/--jitless/, 'no-webassembly', remedy(`start Node without --jitless: ${WITHOUT}`)],
  [
    /address space/,
    'address-space',
    remedy(
      'raise the limit, in the shell or the unit of systemd that starts it (ulimit -v -H says how far)',
      'ulimit -v unlimited',
      'LimitAS=infinity',
    ),
    remedy(
      "have the core's memory take no more addresses than it uses (Node 20.15, 22.2 or newer)",
      'export NODE_OPTIONS=--disable-wasm-trap-handler',
    ),
  ],
  [
    /koffi/,
    'no-koffi',
    remedy('install it, with the optional package for this machine', 'npm install --include=optional koffi'),
  ],
  [
    /system call number/,
    'unknown-machine',
    remedy('run it on a machine that this program knows: x64, arm64'),
  ],
];

/** The obstacle that prevents asking the kernel, if there is one. */
function obstacle({ system, access }: Findings): Problem | undefined {
  const { obstacle: why } = access;
  if (why === null) return undefined;
  const known = OBSTACLES.find(([sign]) => sign.test(why));
  const [, code, ...remedies] = system.platform === 'linux' ? (known ?? UNKNOWN) : NOT_LINUX;
  return { code, what: 'userfaultfd cannot be called from here', why, remedies };
}

/** The problem if no method to open a userfaultfd works. */
function noWay(findings: Findings): Problem {
  return { what: 'no userfaultfd can be opened', ...refusalWithDevice(findings) };
}

/** The problem if a userfaultfd can be opened, but does not serve a plain fault. */
function broken({ operations }: Findings): Problem | undefined {
  const broken = operations.filter(({ name, outcome }) => ESSENTIAL.includes(name) && outcome !== 'ok');
  if (broken.length === 0) return undefined;
  return {
    code: 'broken',
    what: 'a userfaultfd can be opened, and page faults cannot be served with it',
    why: broken.map(({ name, outcome, detail }) => `${name}: ${outcome}, ${detail}`).join('; '),
    remedies: [remedy('read below what was tried, and report it to the maker of this kernel')],
  };
}

// ---- why the system call is refused --------------------------------------------------------------------------

type Refusal = Omit<Problem, 'what'>;

function refusal(findings: Findings): Refusal {
  const { system, access } = findings;
  const answer = openResult(access.doors, 'syscall') ?? 'no answer';
  if (answer === 'ENOSYS') return noSystemCall(findings);
  if (answer === 'EACCES') return securityModule(answer);
  if (answer === 'SIGSYS') {
    return filtered(findings, 'a process that makes the system call is killed (SIGSYS)');
  }
  if (answer !== 'EPERM') {
    return { code: 'refused', why: `the system call fails with ${answer}`, remedies: [] };
  }
  const userModeToo =
    atLeast(system.kernel, USER_MODE_SINCE) && openResult(access.doors, 'syscall', true) === 'EPERM';
  const enough = privilegeOf(findings);
  if (!userModeToo && !enough) return unprivileged(findings);
  if (access.user.seccomp !== 2) return securityModule(answer);
  const although = enough ?? 'faults of user mode need no privilege';
  return filtered(findings, `the system call answers EPERM although ${although}`);
}

/** As `refusal`, with the reason why the device does not help. */
function refusalWithDevice(findings: Findings): Refusal {
  const { code, why, remedies } = refusal(findings);
  const device = deviceState(findings);
  return { code, why: device ? `${why}; ${device}` : why, remedies };
}

/** The privilege of this user that is enough for the kernel itself; undefined if there is none. */
function privilegeOf({ system, access: { user } }: Findings): string | undefined {
  // If the setting exists, the kernel checks privilege, whatever its version says.
  if (user.unprivileged === null && !atLeast(system.kernel, PRIVILEGE_SINCE)) {
    return `Linux ${system.kernel} asks for no privilege`;
  }
  if (user.unprivileged === 1) return 'vm.unprivileged_userfaultfd is 1';
  return user.sysPtrace && !user.userNamespace ? 'CAP_SYS_PTRACE is there' : undefined;
}

function noSystemCall(findings: Findings): Refusal {
  const { system, access } = findings;
  const { unprivileged, seccomp } = access.user;
  if (unprivileged !== null || access.device) {
    const shows = unprivileged === null ? '/dev/userfaultfd' : 'vm.unprivileged_userfaultfd';
    return filtered(findings, `the system call answers ENOSYS, and ${shows} shows that this kernel has it`);
  }
  const code = 'no-system-call';
  if (!atLeast(system.kernel, '4.3')) {
    const why = `Linux ${system.kernel} has no userfaultfd`;
    return { code, why, remedies: [remedy('use a kernel of Linux 4.3 or newer')] };
  }
  const why = 'the system call answers ENOSYS: this kernel was built without CONFIG_USERFAULTFD';
  const built = remedy(
    'use a kernel that is built with CONFIG_USERFAULTFD=y; to see what this one was built with',
    'grep USERFAULTFD /boot/config-$(uname -r)',
  );
  if (seccomp !== 2) return { code, why, remedies: [built] };
  const either = `${why}, or the seccomp filter that this process is under hides it`;
  return { code, why: either, remedies: [built, ...filterRemedies(findings)] };
}

function filtered(findings: Findings, proof: string): Refusal {
  const filter =
    findings.access.user.seccomp === 2
      ? 'a seccomp filter forbids it (Seccomp: 2 in /proc/self/status)'
      : 'something between this process and the kernel forbids it';
  const whose = findings.system.container === null ? '' : "; Docker's default profile, for one, does";
  return { code: 'seccomp', why: `${proof}: ${filter}${whose}`, remedies: filterRemedies(findings) };
}

function securityModule(answer: string): Refusal {
  const log = remedy(
    'read in the log what refused it, and allow it there (SELinux: class anon_inode, as root)',
    'ausearch -m avc -ts recent',
    'dmesg | grep -iE "avc|apparmor|lockdown"',
  );
  const why =
    `the system call answers ${answer}, and neither a missing privilege nor a seccomp filter explains it: ` +
    'a security module (SELinux, AppArmor, a BPF program) forbids it';
  return { code: 'security-module', why, remedies: [log] };
}

function unprivileged(findings: Findings): Refusal {
  const { uid, sysPtrace, unprivileged } = findings.access.user;
  const capability = sysPtrace
    ? 'the CAP_SYS_PTRACE of a user namespace, which does not count'
    : 'no CAP_SYS_PTRACE';
  const setting = `vm.unprivileged_userfaultfd is ${unprivileged ?? 'not there'}`;
  const why = `this user (uid ${uid}) has ${capability}, and ${setting}`;
  return { code: 'privilege', why, remedies: privilegeRemedies(findings) };
}

/** Why the device does not help; undefined if there is no reason to report. */
function deviceState({ system, access: { device, doors } }: Findings): string | undefined {
  if (!device) return atLeast(system.kernel, DEVICE_SINCE) ? 'there is no /dev/userfaultfd' : undefined;
  const { owner, group, mode, open } = device;
  if (open !== 'ok') return `/dev/userfaultfd (${owner}:${group}, mode ${mode}) may not be opened: ${open}`;
  const answer = openResult(doors, 'device');
  return answer === 'ok' ? undefined : `/dev/userfaultfd can be opened, and answers ${answer}`;
}

// ---- limits --------------------------------------------------------------------------------------------------

/** The limit if the system call is refused, for all faults or for those of kernel mode. */
function limitedWay(findings: Findings): Problem | undefined {
  const { way } = findings.access;
  if (way?.userModeOnly) {
    const what = 'only faults of user mode are served: a system call that touches a missing page gets EFAULT';
    return { ...refusalWithDevice(findings), code: 'user-mode-only', what };
  }
  if (way?.via !== 'device') return undefined;
  const what =
    'all faults are served only through /dev/userfaultfd; this library takes it, other programs may not';
  return { ...refusal(findings), code: 'device-only', what };
}

function forkRefused(findings: Findings): Problem | undefined {
  const fork = findings.features.find(({ name }) => name === 'event-fork');
  if (fork?.outcome !== 'refused') return undefined;
  const however = findings.access.user.sysPtrace
    ? 'and that of a user namespace does not count'
    : 'however the userfaultfd was opened';
  return {
    code: 'event-fork',
    what:
      "forks cannot be followed: 'event-fork' is refused, " +
      "and a child reads zeros where its parent's pages were missing",
    why: `it needs CAP_SYS_PTRACE, ${however}`,
    remedies: capabilityRemedies(findings),
  };
}

/** Limits: features that are newer than this kernel, and features that it could have and does not offer. */
function absent({ system: { kernel, arch }, features }: Findings): Problem[] {
  const missing = features.flatMap(({ name, outcome, since }) =>
    outcome === 'absent' && since !== null ? [{ name, since }] : [],
  );
  const newer = missing.filter(({ since }) => !atLeast(kernel, since));
  const leftOut = missing.filter(({ since }) => atLeast(kernel, since));
  const problems: Problem[] = [];
  if (newer.length > 0) {
    const newest = newer.map(({ since }) => since).reduce((a, b) => (atLeast(a, b) ? a : b));
    problems.push({
      code: 'old-kernel',
      what: `there is no ${newer.map(({ name, since }) => `${name} (${since})`).join(', ')}`,
      why: `this is Linux ${kernel}; the versions that bring them are newer`,
      remedies: [remedy(`Linux ${newest} has all of them`)],
    });
  }
  if (leftOut.length > 0) {
    problems.push({
      code: 'not-offered',
      what: `there is no ${leftOut.map(({ name }) => name).join(', ')}`,
      why: `a kernel of this version, ${kernel}, can have them: this one was built without, or Linux has none on ${arch}`,
      remedies: [],
    });
  }
  return problems;
}

function failed({ access, features, operations }: Findings): Problem | undefined {
  const systemCalls = { name: 'faults of system calls', ...access.systemCalls };
  const trials: ({ name: string } & Trial)[] = [...features, ...operations, systemCalls];
  // An operation and its feature share a name: it is listed once.
  const failures = new Map(
    trials
      .filter(({ outcome }) => outcome === 'failed')
      .map(({ name, detail }) => [name, `${name}: ${detail}`]),
  );
  if (failures.size === 0) return undefined;
  const what = `not everything worked when it was tried: ${[...failures.keys()].join(', ')}`;
  return { code: 'trial-failed', what, why: [...failures.values()].join('; '), remedies: [] };
}

function oldNode({ system: { node, nodeSupported } }: Findings): Problem | undefined {
  if (nodeSupported) return undefined;
  const why = `this is Node ${node}, which is older than what this program was made for`;
  return { code: 'old-node', what: 'it may fail in Node', why, remedies: [remedy('a newer Node')] };
}
