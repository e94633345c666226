// The userfaultfds that are open on this thread. A mapping checks here whether its memory is watched. The thread that
// serves a range must not touch it. It must not unmap watched memory either, because that waits until the same thread
// reads the event.
//
// Rules:
//  - This table does not keep objects alive. An object that is collected without `close`, and watches nothing, is
//    closed.
//  - A collected userfaultfd that may still watch memory stays open, with a warning: closing it would let waiting
//    threads read zeros. It is closed once none of its memory is registered (its mappings were closed) or its process
//    is gone.

import { warn } from '../errors/warning.js';
import type { Feature } from '../kernel/features.js';
import type { Session } from './session.js';
import type { StopSignal } from './stop-signal.js';

/** What this table needs from an open `Userfaultfd`. */
interface UffdObject {
  readonly waiting: boolean;
  unregister(start: bigint, length: number): void;
}

/** What outlives a `Userfaultfd` object that is collected. It must hold no reference to the object. */
export interface UffdResources {
  readonly session: Session;
  readonly stopper: StopSignal;
  readonly features: ReadonlySet<Feature>;
  readonly recorder: { close(): void } | undefined;
}

/** An open userfaultfd, as other code of its thread sees it. */
export class OpenUffd {
  readonly #resources: UffdResources;
  readonly #object: WeakRef<UffdObject>;
  /** Whether the object was collected. */
  dropped = false;

  constructor(object: UffdObject, resources: UffdResources) {
    this.#resources = resources;
    this.#object = new WeakRef(object);
  }

  get fd(): number {
    return this.#resources.session.fd;
  }

  get features(): ReadonlySet<Feature> {
    return this.#resources.features;
  }

  /** Whether a loop serves faults now. */
  get waiting(): boolean {
    return this.#object.deref()?.waiting ?? false;
  }

  /** Whether any part of `length` bytes at `start` is registered. */
  watches(start: bigint, length: number): boolean {
    return this.#resources.session.core.arguments(start, length).rangeMeets() !== 0;
  }

  /** Unregisters the parts of [start, end) that it watches. */
  unregister(start: bigint, end: bigint): void {
    const { session } = this.#resources;
    for (const range of session.ranges()) {
      const from = range.start > start ? range.start : start;
      const rangeEnd = range.start + BigInt(range.length);
      const to = rangeEnd < end ? rangeEnd : end;
      if (from < to) (this.#object.deref() ?? session).unregister(from, Number(to - from));
    }
    if (this.dropped) this.closeIfIdle();
  }

  forget(start: bigint, length: number): void {
    this.#resources.session.forget(start, length);
  }

  /** The object was collected: closes its descriptor, or warns. */
  drop(): void {
    this.dropped = true;
    const { session, stopper } = this.#resources;
    // No loop can run any more.
    const eventfd = stopper.eventfd;
    if (eventfd >= 0) {
      stopper.publish(-1);
      session.port.close(eventfd);
    }
    if (this.closeIfIdle()) return;
    warn(
      `a Userfaultfd (fd ${this.fd}) was dropped without close() while memory is registered with it. It stays open, ` +
        'because closing it would let waiting threads read zeros; its faults are not answered. Keep the object, or ' +
        'close it',
    );
  }

  /** Closes a userfaultfd whose object was collected, unless it may still watch something. */
  closeIfIdle(): boolean {
    if (!this.dropped) return false;
    const { session, recorder } = this.#resources;
    const mayWatch =
      !session.knowsAllRanges || session.core.strange !== 0 || session.core.exports.rangeCount() > 0;
    if (mayWatch && session.memoryExists()) return false;
    open.delete(this);
    // If other code closed the descriptor, its number may belong to another file by now.
    if (!isOwned(this.fd) && session.probe() >= 0) session.close();
    recorder?.close();
    released();
    return true;
  }
}

const open = new Set<OpenUffd>();
const byObject = new WeakMap<UffdObject, OpenUffd>();
const collected = new FinalizationRegistry<OpenUffd>((uffd) => uffd.drop());

/** Called after some memory has possibly ceased to be watched. */
let released = (): void => {};

export function onRelease(listener: () => void): void {
  released = listener;
}

export function addOpenUffd(object: UffdObject, resources: UffdResources): void {
  for (const uffd of open) {
    // `wrap` may adopt the descriptor of a collected object by its number.
    if (uffd.dropped && uffd.fd === resources.session.fd) open.delete(uffd);
    else uffd.closeIfIdle();
  }
  const uffd = new OpenUffd(object, resources);
  open.add(uffd);
  byObject.set(object, uffd);
  collected.register(object, uffd, object);
}

export function deleteOpenUffd(object: UffdObject): void {
  const uffd = byObject.get(object);
  if (!uffd) return;
  collected.unregister(object);
  open.delete(uffd);
  released();
}

/** To call after memory was unregistered. */
export function unregistered(): void {
  released();
}

/** Whether a descriptor belongs to an object that still exists. */
export function isOwned(fd: number): boolean {
  return [...open].some((uffd) => uffd.fd === fd && !uffd.dropped);
}

/** The userfaultfds that have registered a part of the `length` bytes at `start`. */
export function uffdsWatching(start: bigint, length: number): OpenUffd[] {
  return [...open].filter((uffd) => uffd.watches(start, length));
}

/** Whether this thread has a userfaultfd open. */
export function anyOpen(): boolean {
  return open.size > 0;
}

/** Forgets the page states of `length` bytes at `start`, because other memory may be mapped there later. */
export function forgetMemory(start: bigint, length: number): void {
  for (const uffd of open) uffd.forget(start, length);
}
