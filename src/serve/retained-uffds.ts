// Userfaultfds that are no longer served, kept until no thread can read their memory.
//
// When the last descriptor of a userfaultfd is closed, the kernel wakes every waiter, and missing pages read as
// zeros. A monitor may have kept no copy of its own. So the descriptor stays open here until its memory is gone
// (every fill returns ESRCH) and, if the monitor was killed, until its pidfd says that it has exited as well.
//
// Rules:
//  - Memory that still exists keeps its descriptor, even if the monitor is gone: another process may share the
//    memory.
//  - The number kept for each connected process is bounded: a process that lives on could hand over any number.

import { closeDescriptor } from '../../shim/descriptors.js';
import { discard } from '../../shim/discard.js';
import { Errno } from '../errors/errors.js';
import { system } from '../kernel/default-kernel.js';
import { instantiate } from '../uffd/core.js';
import { Session } from '../uffd/session.js';
import type { Monitor } from './monitor.js';

/** Most userfaultfds that are kept of one process. */
const RETAINED_MOST = 16;
/** The first, and the longest, interval between two checks, in milliseconds. */
const CHECK_MS = 2;
const CHECK_MOST_MS = 200;

export interface RetentionEvents {
  /** Called when the memory is gone and the descriptor is closed. */
  closed(): void;
  /** Called once, if the memory still exists after `lateMs` milliseconds. */
  late(): void;
}

interface RetainedUffd {
  readonly fd: number;
  readonly monitor: Monitor;
  readonly closed: () => void;
  /** When to call `late`, by performance.now(); infinity afterwards. */
  lateMs: number;
  readonly late: () => void;
  /** Whether the monitor was killed. If so, the userfaultfd is kept until the monitor's exit is seen, too. */
  readonly killed: boolean;
}

/**
 * Makes a function that checks whether a thread may wait for a page of a userfaultfd, now or later. That is so if its
 * memory exists and its handshake is done.
 */
function memoryProbe(): (fd: number) => boolean {
  const core = instantiate();
  const port = system().kernel().attach(core.memory);
  return (fd) => {
    const session = new Session(core, port, fd, 4096);
    return session.probe() !== -(Errno.EINVAL as number) && session.memoryExists();
  };
}

/** What a server needs of `RetainedUffds`. */
export type Retention = Pick<RetainedUffds, 'present' | 'retain' | 'size' | 'dying' | 'abandon'>;

export class RetainedUffds {
  readonly #retained = new Set<RetainedUffd>();
  #canBeWaitedFor: ((fd: number) => boolean) | undefined;
  #timer: NodeJS.Timeout | undefined;
  #pauseMs = CHECK_MS;
  /** Whether the timers of the checks no longer keep the process alive. */
  #idle = false;

  /** Whether the memory behind a userfaultfd exists, so that a thread may wait for it. */
  present(fd: number): boolean {
    this.#canBeWaitedFor ??= memoryProbe();
    return this.#canBeWaitedFor(fd);
  }

  /**
   * Takes a userfaultfd, and closes it when its memory is gone. If too many userfaultfds of the monitor are kept,
   * closes it at once and returns false.
   *
   * @param lateMs when to call `late`
   */
  retain(fd: number, monitor: Monitor, killed: boolean, lateMs: number, events: RetentionEvents): boolean {
    const others = [...this.#retained].filter((one) => !one.killed && samePeer(one.monitor, monitor));
    // A killed monitor ends soon, and all of its userfaultfds must stay until then.
    if (!killed && others.length >= RETAINED_MOST) {
      discard(fd);
      return false;
    }
    const uffd = { fd, monitor: monitor.hold(), killed, lateMs: performance.now() + lateMs, ...events };
    this.#retained.add(uffd);
    this.#check(uffd);
    if (this.#retained.size > 0) {
      this.#pauseMs = CHECK_MS;
      this.#checkLater();
    }
    return true;
  }

  get size(): number {
    return this.#retained.size;
  }

  /** How many retained userfaultfds belong to monitors that were killed and have not exited yet. */
  get dying(): number {
    return [...this.#retained].filter(({ killed }) => killed).length;
  }

  /**
   * Lets the process end although userfaultfds are retained. Those of its own memory are closed now: only its exit
   * would end that memory.
   */
  abandon(): void {
    this.#idle = true;
    this.#timer?.unref();
    for (const uffd of [...this.#retained]) if (uffd.monitor.isThisProcess) this.#close(uffd);
  }

  #check(uffd: RetainedUffd): void {
    const { fd, monitor, killed } = uffd;
    if (!this.present(fd) && !(killed && monitor.exited === false)) this.#close(uffd);
    else if (performance.now() >= uffd.lateMs) {
      uffd.lateMs = Number.POSITIVE_INFINITY;
      uffd.late();
    }
  }

  #close(uffd: RetainedUffd): void {
    if (!this.#retained.delete(uffd)) return;
    closeDescriptor(uffd.fd);
    uffd.monitor.release();
    uffd.closed();
  }

  #checkLater(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#retained.size === 0) return;
    this.#timer = setTimeout(() => {
      for (const uffd of [...this.#retained]) this.#check(uffd);
      this.#pauseMs = Math.min(this.#pauseMs * 2, CHECK_MOST_MS);
      this.#checkLater();
    }, this.#pauseMs);
    if (this.#idle) this.#timer.unref();
  }
}

function samePeer({ peer: one }: Monitor, { peer: other }: Monitor): boolean {
  return one.pid === other.pid && one.uid === other.uid;
}
