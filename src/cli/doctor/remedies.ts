// What helps: as commands and settings to paste, the one that gives away least first. Only what fits this
// machine is offered: no device before Linux 6.1, no capability in a user namespace, options of the runtime
// in a container.

import { atLeast, type Findings } from './findings.js';

export interface Remedy {
  /** What it does, and for whom. */
  what: string;
  /** Lines to paste; options of a container's runtime go to where it is started. */
  commands: string[];
}

/** /dev/userfaultfd came with it. */
const DEVICE_SINCE = '6.1';

/** Ways to let this user serve faults of kernel mode; any one of them is enough. */
export function privilegeRemedies(findings: Findings): Remedy[] {
  return [...deviceRemedies(findings), ...capabilityRemedies(findings), ...settingRemedies(findings)];
}

/** Lets this user open /dev/userfaultfd. */
export function deviceRemedies({ system, access }: Findings): Remedy[] {
  const { device, user } = access;
  if (!atLeast(system.kernel, DEVICE_SINCE)) return [];
  if (system.container !== null && (device === null || device.open === 'EPERM')) {
    const what = 'give the container the device (as root of the machine; its mode counts inside too)';
    return [{ what, commands: ['docker run --device /dev/userfaultfd'] }];
  }
  if (device?.open !== 'EACCES') return [];
  // Inside a user namespace, groups have other names than those that count.
  const group = (!user.userNamespace && user.group) || 'GROUP';
  const who = group === 'GROUP' ? 'a group that this user is in, GROUP,' : `the group ${group}`;
  return [
    {
      what: `let ${who} use the device (as root of the machine; the last line keeps it so after a boot)`,
      commands: [
        `chgrp ${group} /dev/userfaultfd`,
        'chmod 660 /dev/userfaultfd',
        `echo KERNEL==\\"userfaultfd\\", GROUP=\\"${group}\\" > /etc/udev/rules.d/60-uffd.rules`,
      ],
    },
  ];
}

/** Gives this program CAP_SYS_PTRACE. */
export function capabilityRemedies({ system, access }: Findings): Remedy[] {
  // One of a user namespace does not count, and no more can be had inside.
  if (access.user.userNamespace) return [];
  if (system.container !== null) {
    const what = 'give the container the capability, and run as root in it';
    return [{ what, commands: ['docker run --cap-add SYS_PTRACE'] }];
  }
  return [
    {
      what: 'give Node the capability (as root; every script that it runs has it then)',
      commands: [`setcap cap_sys_ptrace+ep ${quoted(system.nodePath)}`],
    },
    {
      what: 'give it to one service of systemd alone, in its unit',
      commands: ['AmbientCapabilities=CAP_SYS_PTRACE'],
    },
  ];
}

/** Allows all users of the machine to serve faults of kernel mode. */
function settingRemedies({ system, access }: Findings): Remedy[] {
  if (access.user.unprivileged !== 0) return [];
  const where = system.container === null ? 'as root' : 'as root of the machine, outside of the container';
  return [
    {
      what: `allow it to every user of the machine (${where}, until the next boot)`,
      commands: ['sysctl -w vm.unprivileged_userfaultfd=1'],
    },
  ];
}

/** Opens a seccomp filter for the call, or goes around it. */
export function filterRemedies(findings: Findings): Remedy[] {
  const { system, access } = findings;
  if (system.container === null) {
    return [
      {
        what: 'find who sets the filter: a unit of systemd (SystemCallFilter=) or a sandbox; for a unit, add',
        commands: ['SystemCallFilter=userfaultfd'],
      },
    ];
  }
  // A device that can be opened, and did not help, is forbidden by the same filter.
  const around = access.device?.open === 'ok' ? [] : deviceRemedies(findings);
  // Without it, a filter that is open lets in faults of user mode only.
  const capability = access.user.sysPtrace ? '' : ' --cap-add SYS_PTRACE';
  const remedies = [
    ...around,
    {
      what: "run the container with a copy of the runtime's profile that allows userfaultfd as well",
      commands: [`docker run --security-opt seccomp=profile.json${capability}`],
    },
    {
      what: 'to see whether that is all, run it without a profile',
      commands: [`docker run --security-opt seccomp=unconfined${capability}`],
    },
  ];
  if (system.container === 'kubernetes') {
    const what =
      'in a pod: securityContext.seccompProfile to the type Localhost with such a profile, or to Unconfined';
    remedies.push({ what, commands: [] });
  }
  return remedies;
}

/** A path as a shell takes it. */
function quoted(path: string): string {
  return /^[\w./@:+-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`;
}
