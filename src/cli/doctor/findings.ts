// The findings of the doctor: plain data, which --json prints and from which the verdict is made. This file makes no
// system calls.

import type { SimulatedSupport } from '../../testing/index.js';

/** The result of trying a feature or an operation. */
export type TrialOutcome =
  /** The feature works. */
  | 'ok'
  /** The kernel offers the feature, but it did something else. */
  | 'failed'
  /** The kernel has it, but refuses it to this user. */
  | 'refused'
  /** The kernel does not have it. */
  | 'absent'
  | 'not tried';

export interface Trial {
  outcome: TrialOutcome;
  /** Why the outcome is not 'ok'. */
  detail?: string;
}

export interface NamedTrial extends Trial {
  name: string;
  /** The version of Linux that brings it: '6.8'. Null if this program has no name for it yet. */
  since: string | null;
}

export interface SystemFindings {
  platform: string;
  arch: string;
  /** As in uname -r. */
  kernel: string;
  node: string;
  /** The path of Node. */
  nodePath: string;
  /** Whether this program supports this version of Node. */
  nodeSupported: boolean;
  /** The version of koffi; null if it is not installed. */
  koffi: string | null;
  /** Bytes of a page; null if no userfaultfd could be opened. */
  pageSize: number | null;
  /** The kind of container this runs in; null if none was recognised. */
  container: string | null;
  /** The huge pages of the default size: bytes, and pages in the pool. Null if the kernel has none. */
  hugePages: { bytes: number; total: number; free: number } | null;
  /** The setting: always, madvise or never; null if the kernel has no transparent huge pages. */
  transparentHugePages: string | null;
}

export interface UserFindings {
  /** The user's id. Here and below: null if the system has none. */
  uid: number | null;
  /** The name of the primary group, or its number if it has none. */
  group: string | null;
  /** Whether CAP_SYS_PTRACE is in the effective set. */
  sysPtrace: boolean;
  /** Whether this process is in a user namespace of its own, whose capabilities do not count for userfaultfd. */
  userNamespace: boolean;
  /** vm.unprivileged_userfaultfd; null if there is no such setting. */
  unprivileged: number | null;
  /** 0: none, 1: strict, 2: a filter. */
  seccomp: number | null;
}

/** /dev/userfaultfd. */
export interface DeviceFindings {
  owner: string;
  group: string;
  /** Octal: '0600'. */
  mode: string;
  /** 'ok', or the error's code. */
  open: string;
}

/** A method to open a userfaultfd. */
export interface OpenMethod {
  via: 'syscall' | 'device';
  userModeOnly: boolean;
}

/** A method to open a userfaultfd, and the kernel's answer: 'ok', or the error's code. */
export interface OpenResult extends OpenMethod {
  result: string;
}

export interface AccessFindings {
  user: UserFindings;
  /** Null if it does not exist. */
  device: DeviceFindings | null;
  doors: OpenResult[];
  /** The first method that works. The trials use it. */
  way: OpenMethod | null;
  /** Why no method could be tried at all: this is not Linux, koffi is missing. */
  obstacle: string | null;
  /** Faults of system calls that touch watched memory: served, or refused with EFAULT. */
  systemCalls: Trial;
}

/** What `uffd check-handler --simulated` needs. */
export interface SimulatedFindings extends SimulatedSupport {
  /** kernel.yama.ptrace_scope; null if there is no such setting. */
  ptraceScope: number | null;
}

export interface Findings {
  system: SystemFindings;
  access: AccessFindings;
  simulated: SimulatedFindings;
  features: NamedTrial[];
  operations: NamedTrial[];
}

/** Whether a kernel (version as in uname -r) is this version of Linux or newer. */
export function atLeast(kernel: string, since: string): boolean {
  const [major = 0, minor = 0] = numbers(kernel);
  const [sinceMajor = 0, sinceMinor = 0] = numbers(since);
  return major > sinceMajor || (major === sinceMajor && minor >= sinceMinor);
}

function numbers(version: string): number[] {
  return (version.match(/\d+/g) ?? []).map(Number);
}

/** The kernel's answer to one method; undefined if the method was not tried. */
export function openResult(
  doors: readonly OpenResult[],
  via: OpenResult['via'],
  userModeOnly = false,
): string | undefined {
  return doors.find((door) => door.via === via && door.userModeOnly === userModeOnly)?.result;
}
