// Other processes, referred to by pidfds. By the time a PID is used, it may belong to another process; a pidfd never
// does.

import { readdirSync, readFileSync } from 'node:fs';
import { libc, orErrno, SYS_PIDFD_GETFD, SYS_PIDFD_OPEN, SYS_PIDFD_SEND_SIGNAL } from './libc.js';

export const SIGKILL = 9;
const POLLIN = 1;

/** A descriptor that becomes readable once the process has exited; −ESRCH: there is no such process. */
export function openPidfd(pid: number): number {
  return orErrno(libc().pidfd_open(SYS_PIDFD_OPEN, pid, 0));
}

/** Sends a signal; −ESRCH: the process has exited. */
export function signalPidfd(pidfd: number, signal: number): number {
  return orErrno(libc().pidfd_send_signal(SYS_PIDFD_SEND_SIGNAL, pidfd, signal, 0, 0));
}

/** A duplicate, close-on-exec, of a descriptor of another process, which this process may trace. −errno. */
export function duplicateOf(pidfd: number, fd: number): number {
  return orErrno(libc().pidfd_getfd(SYS_PIDFD_GETFD, pidfd, fd, 0));
}

/**
 * Whether a thread of this process sleeps in a page fault of a userfaultfd, or waits until a mapping change is read.
 * False if the kernel does not show where threads sleep (/proc/PID/task/TID/wchan).
 */
export function waitsForUserfaultfd(tid: number): boolean {
  try {
    return /userfault(?!\w*_read)/.test(readFileSync(`/proc/self/task/${tid}/wchan`, 'latin1'));
  } catch {
    // The thread has ended, or /proc is not there.
    return false;
  }
}

/** The threads of this process. */
export function threadIds(): number[] {
  try {
    return readdirSync('/proc/self/task').map(Number);
  } catch {
    return [];
  }
}

/** Ends the process at once, with all its threads, also those that sleep in the kernel. */
export function exitNow(code: number): never {
  libc().exit_now(code);
  throw new Error('_exit returned');
}

/** Bit of CAP_SYS_NICE in the sets of capabilities. */
const CAP_SYS_NICE = 23n;

/** /proc/PID/uid_map of the first user namespace: all users, as they are. */
const ALL_USERS = /^ *0 +0 +4294967295\n$/;

/**
 * Whether this process may raise the priority of its threads again after lowering it: the kernel asks for CAP_SYS_NICE
 * in the first user namespace, and in another one a capability says nothing of that (kernel/sched/syscalls.c, can_nice).
 */
export function mayRaisePriority(): boolean {
  try {
    const [, effective] = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'latin1')) ?? [];
    const capable = effective !== undefined && ((BigInt(`0x${effective}`) >> CAP_SYS_NICE) & 1n) === 1n;
    return capable && ALL_USERS.test(readFileSync('/proc/self/uid_map', 'latin1'));
  } catch {
    return false;
  }
}

/** Lets SIGALRM kill the process if it has not ended after this many seconds. */
export function killAfter(seconds: number): void {
  libc().alarm(seconds);
}

/** Whether the process of a pidfd has exited, with all its threads. */
export function hasExited(pidfd: number): boolean {
  const c = libc();
  const pollfd = new Int32Array([pidfd, POLLIN]);
  return c.poll(c.koffi.address(pollfd), 1, 0) > 0;
}
