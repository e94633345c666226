// The userfaultfds that are open on this thread. A mapping asks here whether its memory is watched, because
// the thread that serves a range must not touch it, and unmapping watched memory waits for its own reader.
//
// Rules:
//  - An object is not kept for being in this table. One that is collected without a close, and watches nothing, is closed.
//  - One that may watch something stays open, with a warning: closing it would let threads that wait read zeros. It is closed
//    once nothing of it is registered any more (its mappings were closed) or its process is gone.

import type { Channel } from './channel.js';
import type { Feature } from './features.js';
import type { Stopper } from './stopper.js';
import type { Userfaultfd } from './userfaultfd.js';
import { warn } from './warning.js';

/** What outlives the object. Nothing of it may lead back to that. */
export interface Remains {
  readonly channel: Channel;
  readonly stopper: Stopper;
  readonly features: ReadonlySet<Feature>;
  readonly recorder: { close(): void } | undefined;
}

/** An open userfaultfd, for others of its thread. */
export class Watcher {
  readonly #remains: Remains;
  readonly #object: WeakRef<Userfaultfd>;
  /** The object was collected. */
  dropped = false;

  constructor(object: Userfaultfd, remains: Remains) {
    this.#remains = remains;
    this.#object = new WeakRef(object);
  }

  get fd(): number {
    return this.#remains.channel.fd;
  }

  get features(): ReadonlySet<Feature> {
    return this.#remains.features;
  }

  /** Whether a loop serves faults now. */
  get waiting(): boolean {
    return this.#object.deref()?.waiting ?? false;
  }

  /** Whether any part of `length` bytes at `start` is registered. */
  watches(start: bigint, length: number): boolean {
    return this.#remains.channel.core.arguments(start, length).rangeMeets() !== 0;
  }

  /** Takes [start, end) from it, as far as it has that. */
  unregister(start: bigint, end: bigint): void {
    const { channel } = this.#remains;
    for (const range of channel.ranges()) {
      const from = range.start > start ? range.start : start;
      const rangeEnd = range.start + BigInt(range.length);
      const to = rangeEnd < end ? rangeEnd : end;
      if (from < to) (this.#object.deref() ?? channel).unregister(from, Number(to - from));
    }
    if (this.dropped) this.closeIfIdle();
  }

  forget(start: bigint, length: number): void {
    this.#remains.channel.forget(start, length);
  }

  /** The object was collected: closes what it left, or warns. */
  drop(): void {
    this.dropped = true;
    const { channel, stopper } = this.#remains;
    // No loop can run any more.
    const eventfd = stopper.eventfd;
    if (eventfd >= 0) {
      stopper.publish(-1);
      channel.port.close(eventfd);
    }
    if (this.closeIfIdle()) return;
    warn(
      `a Userfaultfd (fd ${this.fd}) was dropped without close() while memory is registered with it. It stays open, ` +
        'because closing it would let threads that wait read zeros; nobody answers its faults. Keep the object, or close it',
    );
  }

  /** Closes one whose object is gone, unless it may watch something still. */
  closeIfIdle(): boolean {
    if (!this.dropped) return false;
    const { channel, recorder } = this.#remains;
    const mayWatch = !channel.knowsAll || channel.strange || channel.core.exports.rangeCount() > 0;
    if (mayWatch && channel.present()) return false;
    open.delete(this);
    // Its number may be another one's, if somebody has closed it behind our back.
    if (!isOwned(this.fd) && channel.probe() >= 0) channel.close();
    recorder?.close();
    released();
    return true;
  }
}

const open = new Set<Watcher>();
const watchers = new WeakMap<Userfaultfd, Watcher>();
const objects = new FinalizationRegistry<Watcher>((watcher) => watcher.drop());

/** What to do when memory may be watched no longer. */
let released = (): void => {};

export function onRelease(listener: () => void): void {
  released = listener;
}

export function enroll(object: Userfaultfd, remains: Remains): void {
  for (const watcher of open) {
    // What was left to nobody may be adopted by its number.
    if (watcher.dropped && watcher.fd === remains.channel.fd) open.delete(watcher);
    else watcher.closeIfIdle();
  }
  const watcher = new Watcher(object, remains);
  open.add(watcher);
  watchers.set(object, watcher);
  objects.register(object, watcher, object);
}

export function strike(object: Userfaultfd): void {
  const watcher = watchers.get(object);
  if (!watcher) return;
  objects.unregister(object);
  open.delete(watcher);
  released();
}

/** Something was unregistered. */
export function unregistered(): void {
  released();
}

/** Whether a descriptor belongs to an object that is there. */
export function isOwned(fd: number): boolean {
  return [...open].some((watcher) => watcher.fd === fd && !watcher.dropped);
}

/** Those that have registered a part of the `length` bytes at `start`. */
export function watchersOf(start: bigint, length: number): Watcher[] {
  return [...open].filter((watcher) => watcher.watches(start, length));
}

/** Whether this thread has a userfaultfd open. */
export function anyOpen(): boolean {
  return open.size > 0;
}

/** Other memory will be mapped at [start, start + length) one day: what is known of its pages is forgotten. */
export function forgetMemory(start: bigint, length: number): void {
  for (const watcher of open) watcher.forget(start, length);
}
