// The descriptors of a recorded handler, in all of its processes: which of them are userfaultfds, and which recording
// each belongs to.
//
// Rule: what is known about a descriptor holds until its number may be another one's: the calls that close a
// descriptor or execute another program are trapped, too.

import { closeDescriptor, sameFile } from '../../shim/descriptors.js';
import { duplicateOf, openPidfd } from '../../shim/process.js';
import { linkOf, processOf, UFFD_LINK, userfaultfdsOf } from './caller.js';
import type { RecordedUffd } from './recorded-uffd.js';

/** Most descriptors of a process. */
const FDS_MOST = 2 ** 21;

/** Begins to record a userfaultfd, of which this is a duplicate. */
export type Begin = (fd: number, pid: number) => RecordedUffd;

/** A descriptor of the handler cannot be duplicated. */
export type Refused = (errno: number) => void;

export class HandlerDescriptors {
  /** By process and descriptor; null: not a userfaultfd. */
  readonly #known = new Map<number, RecordedUffd | null>();
  readonly #recorded = new Set<RecordedUffd>();
  readonly #processes = new Map<number, number>();
  readonly #begin: Begin;
  readonly #refused: Refused;

  constructor(begin: Begin, refused: Refused) {
    this.#begin = begin;
    this.#refused = refused;
  }

  /** The userfaultfds that are recorded now. */
  get recorded(): readonly RecordedUffd[] {
    return [...this.#recorded];
  }

  #process(tid: number): number {
    let pid = this.#processes.get(tid);
    if (pid === undefined) {
      pid = processOf(tid) ?? tid;
      this.#processes.set(tid, pid);
    }
    return pid;
  }

  /** The userfaultfd of a thread's descriptor; undefined: it is something else. */
  find(tid: number, fd: number): RecordedUffd | undefined {
    const pid = this.#process(tid);
    const key = pid * FDS_MOST + fd;
    const known = this.#known.get(key);
    if (known !== undefined) return known ?? undefined;
    const link = linkOf(pid, fd);
    if (link === UFFD_LINK) return this.#add(key, pid, fd);
    // A descriptor that is not open may become one.
    if (link !== '') this.#known.set(key, null);
    return undefined;
  }

  #add(key: number, pid: number, fd: number): RecordedUffd | undefined {
    const duplicate = this.duplicate(pid, fd);
    if (duplicate < 0) {
      this.#refused(duplicate);
      this.#known.set(key, null);
      return undefined;
    }
    const same = this.recorded.find((uffd) => sameFile(uffd.fd, duplicate) === true);
    if (same) closeDescriptor(duplicate);
    const uffd = same ?? this.#begin(duplicate, pid);
    this.#recorded.add(uffd);
    this.#known.set(key, uffd);
    return uffd;
  }

  /** A duplicate of a thread's descriptor, which the caller closes. −errno. */
  duplicate(tid: number, fd: number): number {
    const pidfd = openPidfd(this.#process(tid));
    if (pidfd < 0) return pidfd;
    const duplicate = duplicateOf(pidfd, fd);
    closeDescriptor(pidfd);
    return duplicate;
  }

  /** The descriptors from `first` to `last` will be closed. */
  closing(tid: number, first: number, last = first): void {
    const pid = this.#process(tid);
    const base = pid * FDS_MOST;
    if (first === last && !this.#known.has(base + first)) return;
    const closed = [...this.#known].filter(([key]) => key >= base + first && key <= base + last);
    for (const [key] of closed) this.#known.delete(key);
    const left = new Set(this.#known.values());
    for (const uffd of new Set(closed.map(([, uffd]) => uffd))) {
      if (!uffd || left.has(uffd) || isElsewhere(pid, first, last)) continue;
      // The duplicate would keep the userfaultfd open, and its threads asleep.
      this.#recorded.delete(uffd);
      uffd.close();
    }
  }

  /** The process will execute another program. */
  executing(tid: number): void {
    this.closing(tid, 0, FDS_MOST - 1);
  }

  /** Ends all recordings. */
  close(): void {
    for (const uffd of this.recorded) uffd.close();
    this.#recorded.clear();
    this.#known.clear();
  }
}

/** Whether a process has userfaultfds besides those from `first` to `last`. */
function isElsewhere(pid: number, first: number, last: number): boolean {
  return userfaultfdsOf(pid).some((fd) => fd < first || fd > last);
}
