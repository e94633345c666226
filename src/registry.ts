// The userfaultfds that are open on this thread. A mapping asks here whether its memory is watched, because
// the thread that serves a range must not touch it, and unmapping watched memory waits for its own reader.

import type { Userfaultfd } from './userfaultfd.js';

const open = new Set<Userfaultfd>();

export function enroll(uffd: Userfaultfd): void {
  open.add(uffd);
}

export function strike(uffd: Userfaultfd): void {
  open.delete(uffd);
}

/** The one that owns a descriptor. */
export function ownerOf(fd: number): Userfaultfd | undefined {
  return [...open].find((uffd) => uffd.fd === fd);
}

/** Those that have registered a part of the `length` bytes at `start`. */
export function watchersOf(start: bigint, length: number): Userfaultfd[] {
  return [...open].filter((uffd) => uffd.watches(start, length));
}

/** Whether this thread has a userfaultfd open. */
export function anyOpen(): boolean {
  return open.size > 0;
}
