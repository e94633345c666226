// Userfaultfds that are not served any more, kept until nobody can read their memory.
//
// The kernel lets every waiter go when the last descriptor of a userfaultfd is closed, and what was missing reads as zeros.
// A monitor may have kept no copy of its own. So the descriptor stays open here until its memory is gone (every fill says
// ESRCH), and where the monitor was killed until its pidfd says that it has exited as well.
//
// Rules:
//  - Memory that is there still keeps its descriptor, whatever is known of the monitor: another process may share it.
//  - For each process that connected a bounded number is kept: one that lives on could hand over any number.

import { closeDescriptor } from '../../shim/descriptors.js';
import { discard } from '../../shim/discard.js';
import { Channel } from '../channel.js';
import { instantiate } from '../core.js';
import { Errno } from '../errors.js';
import { system } from '../system.js';
import type { Monitor } from './monitor.js';

/** Of one process. */
const KEPT_MOST = 16;
/** How long until it is looked again, in milliseconds: first, and at most. */
const LOOK_MS = 2;
const LOOK_MOST_MS = 200;

export interface KeptEvents {
  /** The memory is gone, and the descriptor closed. */
  closed(): void;
  /** So many milliseconds have passed, and the memory is there still. Called once. */
  late(): void;
}

interface Kept {
  readonly fd: number;
  readonly monitor: Monitor;
  readonly closed: () => void;
  /** When to call `late`, by performance.now(); infinite once it was. */
  lateMs: number;
  readonly late: () => void;
  /** The monitor was killed: it has to be seen to have exited. */
  readonly killed: boolean;
}

/** Asks a userfaultfd about the memory behind it. */
class Questions {
  readonly #core = instantiate();
  readonly #port = system().kernel().attach(this.#core.memory);

  #channel(fd: number): Channel {
    return new Channel(this.#core, this.#port, fd, 4096);
  }

  /** Whether a thread can wait at it now, or ever again: its process is there, and its handshake is done. */
  canBeWaitedFor(fd: number): boolean {
    const channel = this.#channel(fd);
    return channel.probe() !== -(Errno.EINVAL as number) && channel.present();
  }
}

export class Custody {
  readonly #kept = new Set<Kept>();
  #questions: Questions | undefined;
  #timer: NodeJS.Timeout | undefined;
  #pauseMs = LOOK_MS;
  /** Nobody waits for what is kept: it is no reason for the process to stay. */
  #idle = false;

  /** Whether the memory behind a userfaultfd is there: somebody may wait for it. */
  present(fd: number): boolean {
    this.#questions ??= new Questions();
    return this.#questions.canBeWaitedFor(fd);
  }

  /**
   * Takes a userfaultfd, and closes it when its memory is gone. False: too many of this process are kept; it is closed now.
   *
   * @param lateMs when to call `late`
   */
  keep(fd: number, monitor: Monitor, killed: boolean, lateMs: number, events: KeptEvents): boolean {
    const others = [...this.#kept].filter((one) => !one.killed && samePeer(one.monitor, monitor));
    // One that was killed ends soon, and all of its userfaultfds have to stay until then.
    if (!killed && others.length >= KEPT_MOST) {
      discard(fd);
      return false;
    }
    const kept = { fd, monitor: monitor.use(), killed, lateMs: performance.now() + lateMs, ...events };
    this.#kept.add(kept);
    this.#look(kept);
    if (this.#kept.size > 0) {
      this.#pauseMs = LOOK_MS;
      this.#lookLater();
    }
    return true;
  }

  get size(): number {
    return this.#kept.size;
  }

  /** How many of them belong to monitors that were killed, and have not exited yet. */
  get dying(): number {
    return [...this.#kept].filter(({ killed }) => killed).length;
  }

  /** From now on nobody waits for what is kept. The memory of this process is given up: only its end would end it. */
  abandon(): void {
    this.#idle = true;
    this.#timer?.unref();
    for (const kept of [...this.#kept]) if (kept.monitor.isThisProcess) this.#close(kept);
  }

  #look(kept: Kept): void {
    const { fd, monitor, killed } = kept;
    if (!this.present(fd) && !(killed && monitor.exited === false)) this.#close(kept);
    else if (performance.now() >= kept.lateMs) {
      kept.lateMs = Number.POSITIVE_INFINITY;
      kept.late();
    }
  }

  #close(kept: Kept): void {
    if (!this.#kept.delete(kept)) return;
    closeDescriptor(kept.fd);
    kept.monitor.leave();
    kept.closed();
  }

  #lookLater(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#kept.size === 0) return;
    this.#timer = setTimeout(() => {
      for (const kept of [...this.#kept]) this.#look(kept);
      this.#pauseMs = Math.min(this.#pauseMs * 2, LOOK_MOST_MS);
      this.#lookLater();
    }, this.#pauseMs);
    if (this.#idle) this.#timer.unref();
  }
}

function samePeer({ peer: one }: Monitor, { peer: other }: Monitor): boolean {
  return one.pid === other.pid && one.uid === other.uid;
}
