// What the threads of other processes do, as /proc shows it.

import { readdirSync, readFileSync } from 'node:fs';

/** Names of the system calls in which handlers wait, by Node's name of the architecture. */
const CALLS: Readonly<Record<string, Readonly<Record<number, string>>>> = {
  x64: {
    ...{ 0: 'read', 1: 'write', 7: 'poll', 16: 'ioctl', 17: 'pread', 19: 'readv', 23: 'select' },
    ...{ 35: 'nanosleep', 43: 'accept', 45: 'recvfrom', 47: 'recvmsg', 61: 'wait4', 202: 'futex' },
    ...{ 230: 'clock_nanosleep', 232: 'epoll_wait', 270: 'pselect', 271: 'ppoll', 281: 'epoll_pwait' },
    ...{ 288: 'accept4', 441: 'epoll_pwait2' },
  },
  arm64: {
    ...{ 22: 'epoll_pwait', 29: 'ioctl', 63: 'read', 64: 'write', 65: 'readv', 67: 'pread', 72: 'pselect' },
    ...{ 73: 'ppoll', 98: 'futex', 101: 'nanosleep', 115: 'clock_nanosleep', 202: 'accept', 207: 'recvfrom' },
    ...{ 212: 'recvmsg', 242: 'accept4', 260: 'wait4', 441: 'epoll_pwait2' },
  },
};

/** The text of a file of each thread of a process; threads that end meanwhile are left out. */
export function taskFiles(pid: number, name: string): string[] {
  return tasksOf(pid).flatMap((tid) => textOf(`/proc/${pid}/task/${tid}/${name}`) ?? []);
}

function tasksOf(pid: number): string[] {
  try {
    return readdirSync(`/proc/${pid}/task`);
  } catch {
    // The process has ended.
    return [];
  }
}

function textOf(path: string): string | undefined {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    // The thread has ended, or its state may not be read.
    return undefined;
  }
}

/** The processes of a process group. */
export function groupOf(leader: number): number[] {
  return readdirSync('/proc').flatMap((name) => {
    const stat = /^\d+$/.test(name) ? textOf(`/proc/${name}/stat`) : undefined;
    const [, , group] = stat?.slice(stat.lastIndexOf(')') + 2).split(' ') ?? [];
    return Number(group) === leader ? [Number(name)] : [];
  });
}

/** What each thread of a process group waits for, a line each. */
export function waitsOf(leader: number): string[] {
  return groupOf(leader).flatMap((pid) =>
    tasksOf(pid).flatMap((tid) => {
      const name = textOf(`/proc/${pid}/task/${tid}/comm`)?.trim();
      if (name === undefined) return [];
      const place = textOf(`/proc/${pid}/task/${tid}/wchan`);
      const at = place && place !== '0' ? ` in the kernel's ${place}` : '';
      return [`thread ${tid} (${name}) ${callOf(textOf(`/proc/${pid}/task/${tid}/syscall`))}${at}`];
    }),
  );
}

/** Everything of /proc that says what a process group does, for a file. */
export function stateOf(leader: number): string {
  return groupOf(leader)
    .flatMap((pid) =>
      tasksOf(pid).flatMap((tid) =>
        ['status', 'wchan', 'syscall', 'stack'].map(
          (name) =>
            `== ${pid}/${tid} ${name}\n${textOf(`/proc/${pid}/task/${tid}/${name}`) ?? 'cannot be read'}`,
        ),
      ),
    )
    .join('\n');
}

/** What the text of /proc/PID/task/TID/syscall says. */
function callOf(text: string | undefined): string {
  if (text === undefined) return 'waits (its system call cannot be read)';
  if (text.startsWith('running')) return 'runs';
  const number = Number.parseInt(text, 10);
  if (!(number >= 0)) return 'waits outside of a system call';
  return `waits in ${CALLS[process.arch]?.[number] ?? `system call ${number}`}`;
}

/** Faults of a userfaultfd that wait: those that no handler has read, and all. */
export interface Faults {
  readonly unread: number;
  readonly all: number;
}

/** The faults in the text of /proc/PID/fdinfo/FD, if it is a userfaultfd's. */
export function faultsIn(text: string): Faults | undefined {
  const [, unread, all] = /^pending:\s*(\d+)\ntotal:\s*(\d+)$/m.exec(text) ?? [];
  return all === undefined ? undefined : { unread: Number(unread), all: Number(all) };
}

/** The faults of a process's userfaultfd. */
export function faultsOf(pid: number): Faults | undefined {
  try {
    for (const fd of readdirSync(`/proc/${pid}/fdinfo`)) {
      const faults = faultsIn(textOf(`/proc/${pid}/fdinfo/${fd}`) ?? '');
      if (faults) return faults;
    }
  } catch {
    // The process has ended.
  }
  return undefined;
}
