// Stops a loop from another thread. A `Stopper` is shared memory with the loop's eventfd in it: post
// `stopper.shared` to the other thread, and there call `new Stopper(shared).request(…)`.
//
// The eventfd's number is read and used under a lock that its owner takes before closing it, so a signal can
// never reach a descriptor that was recycled. A stop and its signal are one step under that lock, and so are
// obeying and reading the signal: neither is left over without the other.

/** Bytes of the shared memory. */
const BYTES = 12;

/** Its words. */
const REQUESTED = 0;
const LOCK = 1;
/** The eventfd, plus one; 0 once it is closed. */
const EVENTFD = 2;

/** A page that is not isolated has no shared memory, and no other thread that could ask. */
const Memory = globalThis.SharedArrayBuffer ?? ArrayBuffer;

type Signal = (fd: number) => void;

/** Whether it is what another `Stopper` shares. */
export function isStopHandle(handle: unknown): handle is SharedArrayBuffer {
  return handle instanceof Memory && handle.byteLength === BYTES;
}

export class Stopper {
  /** What to post to the other thread. */
  readonly shared: SharedArrayBuffer;
  readonly #words: Int32Array;

  constructor(shared: SharedArrayBuffer = new Memory(BYTES)) {
    this.shared = shared;
    this.#words = new Int32Array(shared);
  }

  /** The loop's eventfd; −1: there is none. */
  get eventfd(): number {
    return Atomics.load(this.#words, EVENTFD) - 1;
  }

  /** Whether a stop was asked for and no loop has obeyed yet. */
  get requested(): boolean {
    return Atomics.load(this.#words, REQUESTED) !== 0;
  }

  /**
   * Asks the loop to stop, from any thread: it ends after the callback it is in. Where no loop runs, the next
   * one ends at once, so a stop that races a start is not lost. `signal` writes to an eventfd.
   */
  request(signal: Signal): void {
    this.#locked(() => {
      Atomics.store(this.#words, REQUESTED, 1);
      const fd = Atomics.load(this.#words, EVENTFD) - 1;
      if (fd >= 0) signal(fd);
    });
  }

  /** The loop has obeyed: uses the stop up. `drain` reads the eventfd. */
  obeyed(drain: () => void): void {
    this.#locked(() => {
      Atomics.store(this.#words, REQUESTED, 0);
      drain();
    });
  }

  /** Tells the other threads which eventfd to signal; −1: none any more. */
  publish(eventfd: number): void {
    this.#locked(() => Atomics.store(this.#words, EVENTFD, eventfd + 1));
  }

  #locked(action: () => void): void {
    while (Atomics.compareExchange(this.#words, LOCK, 0, 1) !== 0);
    try {
      action();
    } finally {
      Atomics.store(this.#words, LOCK, 0);
    }
  }
}
