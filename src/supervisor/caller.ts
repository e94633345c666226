// The process that has made a trapped call: its descriptors, its threads and its memory, as /proc and
// process_vm_readv(2) show them.

import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { ForeignMemory } from '../../shim/seccomp.js';

/** What a descriptor is. */
export type Kind = 'uffd' | 'socket' | 'other';

export const memory = new ForeignMemory();

/** What a process's descriptor is, if `pipe` is the inode of the pipe that stands for the userfaultfd. */
export function kindOf(pid: number, fd: number, pipe: string): Kind {
  const link = linkOf(pid, fd);
  return link === pipe ? 'uffd' : link.startsWith('socket:') ? 'socket' : 'other';
}

function linkOf(pid: number, fd: number): string {
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
