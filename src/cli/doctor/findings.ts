// What the doctor finds out: plain data, which --json prints as it is and the verdict is made from. Nothing
// here asks the system.

/** What came of trying a feature or an operation. */
export type Outcome =
  /** It did what it is for. */
  | 'ok'
  /** The kernel offers it, and it did something else. */
  | 'failed'
  /** The kernel has it and does not let this user have it. */
  | 'refused'
  /** The kernel does not have it. */
  | 'absent'
  | 'not tried';

export interface Trial {
  outcome: Outcome;
  /** Why it is not 'ok'. */
  detail?: string;
}

export interface Ability extends Trial {
  name: string;
  /** The version of Linux that brings it: '6.8'. Null for one that has no name here yet. */
  since: string | null;
}

export interface SystemFindings {
  platform: string;
  arch: string;
  /** As uname -r says it. */
  kernel: string;
  node: string;
  /** Its program. */
  nodePath: string;
  /** Whether this program supports that version. */
  nodeSupported: boolean;
  /** Its version; null where it is not installed. */
  koffi: string | null;
  /** Bytes of a page; null where no userfaultfd could be opened. */
  pageSize: number | null;
  /** What kind of container this runs in; null where nothing says that it is one. */
  container: string | null;
  /** The huge pages of the default size: bytes, and pages in the pool. Null where the kernel has none. */
  hugePages: { bytes: number; total: number; free: number } | null;
  /** always, madvise or never; null where the kernel has none. */
  transparentHugePages: string | null;
}

export interface UserFindings {
  /** Null where the system has no such thing, as below. */
  uid: number | null;
  /** The primary group's name, or its number where it has none. */
  group: string | null;
  /** Whether CAP_SYS_PTRACE is in the effective set. */
  sysPtrace: boolean;
  /** Whether this is a user namespace of its own: its capabilities do not count for userfaultfd. */
  userNamespace: boolean;
  /** vm.unprivileged_userfaultfd; null where there is no such setting. */
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

/** One way to open a userfaultfd, and what the kernel said: 'ok', or the error's code. */
export interface Door {
  via: 'syscall' | 'device';
  userModeOnly: boolean;
  result: string;
}

export interface AccessFindings {
  user: UserFindings;
  /** Null where it is not there. */
  device: DeviceFindings | null;
  doors: Door[];
  /** The first that is open: the way that the trials took. */
  way: Pick<Door, 'via' | 'userModeOnly'> | null;
  /** Why no door could be tried at all: this is no Linux, koffi is missing. */
  obstacle: string | null;
  /** Faults of system calls that touch watched memory: served, or refused with EFAULT. */
  systemCalls: Trial;
}

export interface Findings {
  system: SystemFindings;
  access: AccessFindings;
  features: Ability[];
  operations: Ability[];
}

/** Whether a kernel (as uname -r says it) is of this version of Linux, or newer. */
export function atLeast(kernel: string, since: string): boolean {
  const [major = 0, minor = 0] = numbers(kernel);
  const [sinceMajor = 0, sinceMinor = 0] = numbers(since);
  return major > sinceMajor || (major === sinceMajor && minor >= sinceMinor);
}

function numbers(version: string): number[] {
  return (version.match(/\d+/g) ?? []).map(Number);
}

/** What the kernel said at one door; undefined where it was not tried. */
export function answerAt(doors: readonly Door[], via: Door['via'], userModeOnly = false): string | undefined {
  return doors.find((door) => door.via === via && door.userModeOnly === userModeOnly)?.result;
}
