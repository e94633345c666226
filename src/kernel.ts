// The port: the only way out of the library. Each adapter (Linux through koffi; others for simulation,
// recording and replay) answers these calls; what crosses here is all that a fault trace needs.
//
// Rules:
//  - A call returns a number ≥ 0, or −errno. Nothing throws, nothing is decided.
//  - Structs lie in the core's memory; `at` is an offset there, and the adapter adds the base.
//  - Time is monotonic, in milliseconds, and comes from here.

/** A kernel to run on. It may serve several userfaultfds; each attaches its own core's memory. */
export interface Kernel {
  /** Bytes of a page, a power of two. */
  readonly pageSize: number;
  attach(memory: WebAssembly.Memory): KernelPort;
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
  /** Bytes of the pages of the mapping that holds `address` (KernelPageSize of /proc/PID/smaps). `pid` 0: this process. */
  pageSizeAt(pid: number, address: bigint): number;
  /** Monotonic milliseconds. */
  now(): number;
  /** Where the bytes of a view lie, for a kernel that reads them. */
  addressOf(view: ArrayBufferView): bigint;
  /** Calls `ready` on the thread's event loop whenever `fd` is readable, until closed. */
  watch(fd: number, ready: () => void): Watch;
  /** Calls `due` once, `delayMs` from now, on the thread's event loop. */
  after(delayMs: number, due: () => void): Watch;
}

/** Something that calls back until it is closed. */
export interface Watch {
  close(): void;
}

/** This machine lacks something: the system, the architecture, koffi's binary, a feature of the kernel. */
export class UnsupportedError extends Error {
  override readonly name: string = 'UnsupportedError';
  readonly code = 'ERR_UFFD_UNSUPPORTED';
}
