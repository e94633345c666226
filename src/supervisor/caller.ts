// The process that has made a trapped call: its descriptors, its threads and its memory, as /proc and
// process_vm_readv(2) show them.

import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { ForeignMemory } from '../../shim/seccomp.js';

/** What a descriptor is. */
export type Kind = 'uffd' | 'socket' | 'other';

/** What /proc says about a userfaultfd. */
export const UFFD_LINK = 'anon_inode:[userfaultfd]';

const IOV_BYTES = 16;
const IOVS_MOST = 64;

export const memory = new ForeignMemory();

/** A part of the caller's memory that a call reads into. */
export interface Vector {
  readonly buffer: number;
  readonly length: number;
}

/** The vectors of readv(2), at most 64. Undefined: they cannot be read. */
export function vectorsOf(pid: number, address: number, count: number): Vector[] | undefined {
  const table = new DataView(new ArrayBuffer(IOV_BYTES * Math.min(count, IOVS_MOST)));
  if (memory.read(pid, address, new Uint8Array(table.buffer)) < 0) return undefined;
  return Array.from({ length: table.byteLength / IOV_BYTES }, (_, index) => ({
    buffer: Number(table.getBigUint64(IOV_BYTES * index, true)),
    length: Number(table.getBigUint64(IOV_BYTES * index + 8, true)),
  }));
}

/** What a process's descriptor is, if `pipe` is the inode of the pipe that stands for the userfaultfd. */
export function kindOf(pid: number, fd: number, pipe: string): Kind {
  const link = linkOf(pid, fd);
  return link === pipe ? 'uffd' : link.startsWith('socket:') ? 'socket' : 'other';
}

/** What a descriptor of a process is, according to /proc; empty: that is not known. */
export function linkOf(pid: number, fd: number): string {
  try {
    return readlinkSync(`/proc/${pid}/fd/${fd}`);
  } catch {
    return '';
  }
}

/** The link of a descriptor of this process: for a pipe, its inode. */
export function ownLink(fd: number): string {
  return linkOf(process.pid, fd);
}

/** The descriptors in an epoll's list of interest. */
export function interestsOf(pid: number, epoll: number): number[] {
  try {
    const text = readFileSync(`/proc/${pid}/fdinfo/${epoll}`, 'latin1');
    return [...text.matchAll(/^tfd:\s*(\d+)/gm)].map(([, fd]) => Number(fd));
  } catch {
    return [];
  }
}

/** The process of a process's pidfd; undefined: it is none. */
export function pidOf(pid: number, fd: number): number | undefined {
  try {
    const [, target] = /^Pid:\s*(\d+)/m.exec(readFileSync(`/proc/${pid}/fdinfo/${fd}`, 'latin1')) ?? [];
    return target === undefined ? undefined : Number(target);
  } catch {
    return undefined;
  }
}

/** How many threads the process of a thread has. */
export function threadCount(pid: number): number {
  return threadsOf(pid).length;
}

function threadsOf(pid: number): string[] {
  try {
    return readdirSync(`/proc/${pid}/task`);
  } catch {
    return [];
  }
}

/** Whether all threads of a process sleep. */
export function isAsleep(pid: number): boolean {
  return threadsOf(pid).every((tid) => {
    try {
      const stat = readFileSync(`/proc/${pid}/task/${tid}/stat`, 'latin1');
      // The state follows the name, which is in parentheses and may contain any character.
      return 'SDTZ'.includes(stat.charAt(stat.lastIndexOf(')') + 2));
    } catch {
      return true;
    }
  });
}

/** The process that a thread belongs to. Undefined: it has ended. */
export function processOf(tid: number): number | undefined {
  try {
    const tgid = /^Tgid:\s*(\d+)/m.exec(readFileSync(`/proc/${tid}/status`, 'latin1'))?.[1];
    return tgid === undefined ? undefined : Number(tgid);
  } catch {
    return undefined;
  }
}

/** The descriptors of a process that are userfaultfds. */
export function userfaultfdsOf(pid: number): number[] {
  try {
    const fds = readdirSync(`/proc/${pid}/fd`).map(Number);
    return fds.filter((fd) => linkOf(pid, fd) === UFFD_LINK);
  } catch {
    return [];
  }
}
