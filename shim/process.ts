// Other processes, held by a pidfd: a PID may be another process's by the time it is used, a pidfd never is.

import { readdirSync, readFileSync } from 'node:fs';
import { libc, SYS_PIDFD_OPEN, SYS_PIDFD_SEND_SIGNAL } from './libc.js';

export const SIGKILL = 9;
const POLLIN = 1;

/** A descriptor that is readable once the process has exited; −ESRCH: there is none. */
export function openPidfd(pid: number): number {
  const c = libc();
  const fd = c.pidfd_open(SYS_PIDFD_OPEN, pid, 0);
  return fd < 0 ? -c.errno() : fd;
}

/** Sends a signal; −ESRCH: it has exited. */
export function signalPidfd(pidfd: number, signal: number): number {
  const c = libc();
  return c.pidfd_send_signal(SYS_PIDFD_SEND_SIGNAL, pidfd, signal, 0, 0) < 0 ? -c.errno() : 0;
}

/**
 * Whether a thread of this process sleeps in a page fault of a userfaultfd, or waits for one to read a mapping change.
 * False where the kernel does not say where threads sleep (/proc/PID/task/TID/wchan).
 */
export function waitsForUserfaultfd(tid: number): boolean {
  try {
    return /userfault(?!\w*_read)/.test(readFileSync(`/proc/self/task/${tid}/wchan`, 'latin1'));
  } catch {
    // It has ended, or /proc is not there.
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

/** Ends the process at once, with all its threads wherever they sleep: nothing of it runs any more. */
export function exitNow(code: number): never {
  libc().exit_now(code);
  throw new Error('_exit returned');
}

/** Has the process killed by SIGALRM, if it has not ended by itself until then. */
export function killAfter(seconds: number): void {
  libc().alarm(seconds);
}

/** Whether the process of a pidfd has exited: no thread of it runs any more. */
export function hasExited(pidfd: number): boolean {
  const c = libc();
  const pollfd = new Int32Array([pidfd, POLLIN]);
  return c.poll(c.koffi.address(pollfd), 1, 0) > 0;
}

/**
 * Whether a process has a mapping at an address that a userfaultfd watches for missing pages ('um' in its VmFlags). False,
 * too, where this process may not see it.
 */
export function watchesMissing(pid: number, address: bigint): boolean {
  try {
    for (const [, start, end, flags] of readFileSync(`/proc/${pid}/smaps`, 'latin1').matchAll(
      /^([0-9a-f]+)-([0-9a-f]+) [\s\S]*?^VmFlags:(.*)$/gm,
    )) {
      if (address >= BigInt(`0x${start}`) && address < BigInt(`0x${end}`))
        return / um( |$)/.test(flags ?? '');
    }
  } catch {
    // It has exited, or belongs to another user.
  }
  return false;
}
