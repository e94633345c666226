// The port: all calls that the library makes to a kernel go through it. Each adapter implements these calls: Linux
// through koffi, a simulated kernel, recording and replay. To record a trace of faults it is enough to record the calls
// of this port.
//
// Rules:
//  - A call returns a number ≥ 0, or −errno. No call throws, and the port makes no decisions.
//  - Structs lie in the core's memory. `at` is an offset in this memory, and the adapter adds the base address.
//  - Time is monotonic, in milliseconds, and comes from the port.

/**
 * The part of the type WebAssembly.Memory that is needed here. It is declared here so that no file needs the types of
 * web pages.
 */
export interface LinearMemory {
  readonly buffer: ArrayBuffer;
}

/** A kernel to run on. It may serve several userfaultfds, and each of them attaches the memory of its own core. */
export interface Kernel {
  /** Bytes of a page, a power of two. */
  readonly pageSize: number;
  /** Whether its descriptors and memory are not those of this process: it is simulated, or answers from a trace. */
  readonly elsewhere?: boolean;
  attach(memory: LinearMemory): KernelPort;
}

/** The calls of one userfaultfd. */
export interface KernelPort {
  /** userfaultfd(2). `flags`: O_CLOEXEC, O_NONBLOCK, UFFD_USER_MODE_ONLY. */
  userfaultfd(flags: number): number;
  /** Opens /dev/userfaultfd, close-on-exec. */
  openDevice(): number;
  /** ioctl(2) with the struct at offset `at`. */
  ioctl(fd: number, request: number, at: number): number;
  /** ioctl(2) whose argument is a number (USERFAULTFD_IOC_NEW). */
  ioctlValue(fd: number, request: number, value: number): number;
  /** read(2) of at most `length` bytes to offset `at`. */
  read(fd: number, at: number, length: number): number;
  /** poll(2) on `count` pollfds at offset `at`. `timeoutMs` −1: no limit. */
  poll(at: number, count: number, timeoutMs: number): number;
  /** F_GETFL and F_SETFL of fcntl(2). */
  fcntl(fd: number, command: number, argument: number): number;
  close(fd: number): number;
  /** eventfd(2), non-blocking and close-on-exec. */
  eventfd(): number;
  /** pidfd_open(2): readable once the process has exited. */
  pidfd(pid: number): number;
  /** Opens /proc/PID/pagemap, close-on-exec. `pid` 0: this process. */
  openPagemap(pid: number): number;
  /**
   * Page size in bytes of the mapping that holds `address`, which was just registered (KernelPageSize of /proc/PID/smaps);
   * −ENOENT if that process has no watched mapping there. `pid` 0: this process.
   */
  pageSizeAt(pid: number, address: bigint): number;
  /**
   * Describes the mapping at `address` if it can be watched but not filled. Undefined: it can be filled, or that is not
   * known. Called only for the message of a fill that failed, and not recorded.
   */
  unfillableAt?(pid: number, address: bigint): string | undefined;
  /** Monotonic milliseconds. */
  now(): number;
  /** The address of a view's bytes, for a kernel that reads them. */
  addressOf(view: ArrayBufferView): bigint;
  /** Calls `ready` on the thread's event loop whenever `fd` is readable, until closed. */
  watch(fd: number, ready: () => void): Watch;
  /** Calls `due` once, `delayMs` from now, on the thread's event loop. */
  after(delayMs: number, due: () => void): Watch;
  /** Where threads run. Only ports of a real machine have it. */
  readonly processors?: Processors;
  /**
   * Optional hook for recording and replay: gets what the program calls, and how its handler answers. Real kernels omit
   * it.
   */
  note?(code: Note, first: bigint, second: number, third: number, fourth: bigint): void;
  /** A recording port passes its calls on to this port. Calls that must not be recorded are made here. */
  readonly unrecorded?: KernelPort;
  /** Handles an error that no caller can catch; without this method it is an uncaught exception. */
  raise?(error: unknown): void;
  /** Optional hook for recording and replay: the time of the read that comes next. A port without it uses `now`. */
  timeOfRead?(): number;
  /** Optional hook for recording and replay: gets, and may replace, whether a loop that spins reads again or sleeps. */
  readsAgain?(byTime: boolean): boolean;
  /** Optional hook for recording and replay: gets, and may replace, whether another thread has requested a stop. */
  sense?(stopRequested: boolean): boolean;
}

/** A thread, as /proc shows it. */
export interface ThreadSeen {
  readonly tid: number;
  /** The processor on which it runs, or ran last. */
  readonly processor: number;
  /** Its page faults so far, including those that a userfaultfd's handler answered. */
  readonly faults: number;
}

/** The processors of a machine, by number, and which threads run on them. `pid` 0: this process. */
export interface Processors {
  /** The processors on which the calling thread may run. */
  allowed(): number[];
  /** Moves the calling thread to these processors; −EINVAL: it may run on none of them. */
  place(cpus: readonly number[]): number;
  thread(pid: number, tid: number): ThreadSeen | undefined;
  threads(pid: number): readonly ThreadSeen[];
  /** Yields the calling thread's processor to other threads (sched_yield(2)). */
  yield(): void;
  /** Keeps all idle processors of the machine from sleeping, until closed; undefined: not permitted. */
  keepAwake(): Watch | undefined;
  /** Monotonic milliseconds, and a timer. They are separate from those of the port, which are recorded. */
  now(): number;
  after(delayMs: number, due: () => void): Watch;
}

/** The system of this process, for userfaultfds that are opened without the option `kernel`. */
export interface System {
  /** @throws UnsupportedError if the system does not support it */
  kernel(): Kernel;
  /** userfaultfd(2), for a probe without a port. */
  trySyscall(flags: number): number;
  /** Returns the function that adds 1 to an eventfd's counter, for a thread that has no port. */
  eventfdSignal(): (fd: number) => number;
}

/**
 * The notes of a recording, by code: what the program called on a `Userfaultfd`, with its arguments; and how a callback
 * ended (`ANSWER`). Codes 0 to 5 are the operations of assembly/transfer.ts, with start, length, options, source.
 */
export const Note = {
  /** start, length */
  WAKE: 6,
  CLAIM: 7,
  /** start, length, modes (0: `forget`, which registers nothing), page size (0: not given) */
  REGISTER: 8,
  UNREGISTER: 9,
  /** 0, index of the wait strategy */
  START: 10,
  /** 0: the program called `stop`; 1: the loop found a request of another thread */
  STOP: 11,
  POLL: 12,
  RELEASE: 13,
  CLOSE: 14,
  /** one of `Answer` */
  ANSWER: 15,
  /** start, length (0: `forgetSources`), window with the kind of the source in the highest bits (`sourceBits`), address */
  SOURCE: 16,
  /** start, length, options: `fillAhead` */
  AHEAD: 17,
  /** page, 0, window: a call of the method `window`, which makes an adaptive window grow */
  WINDOW: 18,
} as const;
export type Note = number;

/**
 * How a callback ended. For faults: `notNow` (deferred) or `answered`; for other callbacks: `returned`; for both:
 * `threw`.
 */
export const CallbackResult = { notNow: 0n, answered: 1n, returned: 2n, threw: 3n } as const;

/** A subscription that calls back until it is closed. */
export interface Watch {
  close(): void;
}

/** The error if this machine lacks something: the system, the architecture, koffi's binary, a feature of the kernel. */
export class UnsupportedError extends Error {
  override readonly name: string = 'UnsupportedError';
  readonly code = 'ERR_UFFD_UNSUPPORTED';
}
