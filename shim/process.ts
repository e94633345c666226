// Other processes, held by a pidfd: a PID may be another process's by the time it is used, a pidfd never is.

import { libc, SYS_PIDFD_OPEN, SYS_PIDFD_SEND_SIGNAL } from './libc.js';

export const SIGKILL = 9;

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
