// Remedies, as commands and settings to paste. The first grants the least privilege, the last the most. Only those that
// fit this machine are offered: no device before Linux 6.1, no capability in a user namespace, options of the runtime
// in a container.

import { atLeast, type Findings } from './findings.js';

export interface Remedy {
  /** What it does, and for which programs. */
  what: string;
  /** Lines to paste; for a container, options of its runtime. */
  commands: string[];
}

export function remedy(what: string, ...commands: string[]): Remedy {
  return { what, commands };
}

/** The version that brings /dev/userfaultfd. */
export const DEVICE_SINCE = '6.1';

/** Ways to let this user serve faults of kernel mode; any one of them is enough. */
export function privilegeRemedies(findings: Findings): Remedy[] {
  const { system, access } = findings;
  const where = system.container === null ? 'as root' : 'as root of the machine, outside of the container';
  const setting = remedy(
    `allow it to every user of the machine (${where}, until the next boot)`,
    'sysctl -w vm.unprivileged_userfaultfd=1',
  );
  const settings = access.user.unprivileged === 0 ? [setting] : [];
  return [...deviceRemedies(findings), ...capabilityRemedies(findings), ...settings];
}

/** Lets this user open /dev/userfaultfd. */
function deviceRemedies({ system, access: { device, user } }: Findings): Remedy[] {
  if (!atLeast(system.kernel, DEVICE_SINCE)) return [];
  if (system.container !== null && (device === null || device.open === 'EPERM')) {
    const what = 'give the container the device (as root of the machine; its mode counts inside too)';
    return [remedy(what, 'docker run --device /dev/userfaultfd')];
  }
  if (device?.open !== 'EACCES') return [];
  // Inside a user namespace, groups have other names than outside.
  const group = (!user.userNamespace && user.group) || 'GROUP';
  const which = group === 'GROUP' ? 'a group that this user is in, GROUP,' : `the group ${group}`;
  return [
    remedy(
      `let ${which} use the device (as root of the machine; the last line keeps it so after a boot)`,
      `chgrp ${group} /dev/userfaultfd`,
      'chmod 660 /dev/userfaultfd',
      `echo KERNEL==\\"userfaultfd\\", GROUP=\\"${group}\\" > /etc/udev/rules.d/60-uffd.rules`,
    ),
  ];
}

/** Gives this program CAP_SYS_PTRACE. */
export function capabilityRemedies({ system, access }: Findings): Remedy[] {
  // The capability of a user namespace does not count, and none can be given inside.
  if (access.user.userNamespace) return [];
  if (system.container !== null) {
    return [
      remedy('give the container the capability, and run as root in it', 'docker run --cap-add SYS_PTRACE'),
    ];
  }
  const node = `setcap cap_sys_ptrace+ep ${quoted(system.nodePath)}`;
  return [
    remedy('give Node the capability (as root; every script that it runs has it then)', node),
    remedy('give it to one service of systemd alone, in its unit', 'AmbientCapabilities=CAP_SYS_PTRACE'),
  ];
}

/** Allows the call in a seccomp filter, or avoids the call. */
export function filterRemedies(findings: Findings): Remedy[] {
  const { system, access } = findings;
  if (system.container === null) {
    const what =
      'find what sets the filter: a unit of systemd (SystemCallFilter=) or a sandbox; for a unit, add';
    return [remedy(what, 'SystemCallFilter=userfaultfd')];
  }
  // If the device can be opened but did not help, the same filter forbids it.
  const around = access.device?.open === 'ok' ? [] : deviceRemedies(findings);
  // Without this capability, an open filter allows only faults of user mode.
  const capability = access.user.sysPtrace ? '' : ' --cap-add SYS_PTRACE';
  const run = (profile: string): string => `docker run --security-opt seccomp=${profile}${capability}`;
  const pod =
    'in a pod: securityContext.seccompProfile to the type Localhost with such a profile, or to Unconfined';
  return [
    ...around,
    remedy(
      "run the container with a copy of the runtime's profile that allows userfaultfd as well",
      run('profile.json'),
    ),
    remedy('to see whether that is all, run it without a profile', run('unconfined')),
    ...(system.container === 'kubernetes' ? [remedy(pod)] : []),
  ];
}

/** Quotes a path for a shell. */
function quoted(path: string): string {
  return /^[\w./@:+-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`;
}
