// The port: the only way out of the library. Each adapter (Linux through koffi; others for simulation,
// recording and replay) answers these calls; what crosses here is all that a fault trace needs.
//
// Rules:
//  - A call returns a number ≥ 0, or −errno. Nothing throws, nothing is decided.
//  - Structs lie in the core's memory; `at` is an offset there, and the adapter adds the base.
//  - Time is monotonic, in milliseconds, and comes from here.

/** A WebAssembly memory, as far as it is needed here; so nobody needs the types of web pages for it. */
export interface LinearMemory {
  readonly buffer: ArrayBuffer;
}

/** A place in it that never moves: a global of the module. */
export interface MemoryPlace {
  readonly value: number;
}

/** A kernel to run on. It may serve several userfaultfds; each attaches its own core's memory. */
export interface Kernel {
  /** Bytes of a page, a power of two. */
  readonly pageSize: number;
  /** Its descriptors and its memory are not those of this process: it is simulated, or answers from a trace. */
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
  /** poll(2) on `count` pollfds at offset `at`. `timeoutMs` −1: without limit. */
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
   * Bytes of the pages of the mapping that holds `address`, which was just registered (KernelPageSize of /proc/PID/smaps);
   * −ENOENT where that process has nothing there that is watched. `pid` 0: this process.
   */
  pageSizeAt(pid: number, address: bigint): number;
  /**
   * What is mapped at `address`, in words, if it can be watched and not filled: for the message of a fill that failed.
   * Undefined: that is not it, or it cannot be told. Asked for no other reason, and not recorded.
   */
  unfillableAt?(pid: number, address: bigint): string | undefined;
  /** Monotonic milliseconds. */
  now(): number;
  /** Where the bytes of a view lie, for a kernel that reads them. */
  addressOf(view: ArrayBufferView): bigint;
  /** Calls `ready` on the thread's event loop whenever `fd` is readable, until closed. */
  watch(fd: number, ready: () => void): Watch;
  /** Calls `due` once, `delayMs` from now, on the thread's event loop. */
  after(delayMs: number, due: () => void): Watch;
  /** Where threads run; only where they run on a machine's processors. */
  readonly processors?: Processors;
  /** Told what the program asks for and what its handler answers, for those who record or replay. No kernel has it. */
  note?(code: Note, first: bigint, second: number, third: number, fourth: bigint): void;
  /** The port behind a recorder, for what a replay is not to see. */
  readonly unrecorded?: KernelPort;
  /** Takes an error that no caller is there for; where it is missing, that is an uncaught exception. */
  raise?(error: unknown): void;
  /** Whether another thread has asked the loop to stop, as found; passed through for those who record or replay. */
  sense?(stopRequested: boolean): boolean;
}

/** A thread, as the system sees it. */
export interface ThreadSeen {
  readonly tid: number;
  /** Where it runs, or ran last. */
  readonly processor: number;
  /** Page faults since it began, those that a userfaultfd answered among them. */
  readonly faults: number;
}

/** The processors of a machine, by their numbers, and who runs where. `pid` 0: this process. */
export interface Processors {
  /** Where the calling thread may run. */
  allowed(): number[];
  /** The calling thread runs there from now on; −EINVAL: it may run on none of them. */
  place(cpus: readonly number[]): number;
  thread(pid: number, tid: number): ThreadSeen | undefined;
  threads(pid: number): readonly ThreadSeen[];
  /** Lets others run who want the processor of the calling thread (sched_yield(2)). */
  yield(): void;
  /** Keeps idle processors from sleeping, those of everybody, until it is closed; undefined: that is not allowed. */
  keepAwake(): Watch | undefined;
  /** Monotonic milliseconds; and what is due once, so many from now. Not the port's, which are recorded. */
  now(): number;
  after(delayMs: number, due: () => void): Watch;
}

/** What stands behind a userfaultfd that is opened without a kernel of its own: the system of this process. */
export interface System {
  /** @throws UnsupportedError where it cannot be called */
  kernel(): Kernel;
  /** userfaultfd(2), for a probe without a port. */
  trySyscall(flags: number): number;
  /** What adds 1 to an eventfd's counter, for a thread that has no port. */
  eventfdSignal(): (fd: number) => number;
}

/**
 * What a program asks of a `Userfaultfd`, by code, with its arguments; and how a callback ended (`ANSWER`). The first
 * six are the operations, by row of the transfer table: start, length, options, source.
 */
export const Note = {
  /** start, length */
  WAKE: 6,
  CLAIM: 7,
  /** start, length, modes (0: `forget`, which registers nothing), page size (0: not told) */
  REGISTER: 8,
  UNREGISTER: 9,
  /** 0, index of the wait strategy */
  START: 10,
  /** 0: asked by the program; 1: found by the loop, asked by another thread */
  STOP: 11,
  POLL: 12,
  RELEASE: 13,
  CLOSE: 14,
  /** one of `Answer` */
  ANSWER: 15,
} as const;
export type Note = number;

/** How a callback ended: `notNow` and `answered` for faults, `returned` for the others. */
export const Answer = { notNow: 0n, answered: 1n, returned: 2n, threw: 3n } as const;

/** Something that calls back until it is closed. */
export interface Watch {
  close(): void;
}

/** This machine lacks something: the system, the architecture, koffi's binary, a feature of the kernel. */
export class UnsupportedError extends Error {
  override readonly name: string = 'UnsupportedError';
  readonly code = 'ERR_UFFD_UNSUPPORTED';
}
