// Stops a loop from another thread. A `StopSignal` is shared memory that holds the number of the loop's eventfd. Post
// `signal.shared` to the other thread, and call `new StopSignal(shared).request(…)` there.
//
// Other threads read and use the eventfd's number only under a lock. The loop's thread takes the same lock before it
// closes the eventfd, so a signal never reaches another file that got the same number. Under the lock, a request sets a
// flag and signals the eventfd, and the loop clears the flag and drains the eventfd. So neither a flag nor a signal is
// left over.

/** Bytes of the shared memory. */
const BYTES = 12;

/** Words of the shared memory. */
const REQUESTED = 0;
const LOCK = 1;
/** The word that holds the eventfd's number plus one; 0 once the eventfd is closed. */
const EVENTFD = 2;

/** A web page that is not cross-origin isolated has no shared memory, and no other thread that could request a stop. */
const Memory = globalThis.SharedArrayBuffer ?? ArrayBuffer;

type Signal = (fd: number) => void;

/** Whether a value is the shared memory of a `StopSignal`. */
export function isStopHandle(handle: unknown): handle is SharedArrayBuffer {
  return handle instanceof Memory && handle.byteLength === BYTES;
}

export class StopSignal {
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

  /** Whether a stop was requested and no loop has stopped for it yet. */
  get requested(): boolean {
    return Atomics.load(this.#words, REQUESTED) !== 0;
  }

  /**
   * Requests the loop to stop, from any thread: it ends after the current callback. If no loop runs, the next
   * one ends at once, so a stop that races a start is not lost. `signal` writes to an eventfd.
   */
  request(signal: Signal): void {
    this.#locked(() => {
      Atomics.store(this.#words, REQUESTED, 1);
      const fd = Atomics.load(this.#words, EVENTFD) - 1;
      if (fd >= 0) signal(fd);
    });
  }

  /** To call when the loop has stopped: clears the request. `drain` reads the eventfd. */
  obeyed(drain: () => void): void {
    this.#locked(() => {
      Atomics.store(this.#words, REQUESTED, 0);
      drain();
    });
  }

  /** Publishes the eventfd that other threads have to signal; −1: none. */
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
