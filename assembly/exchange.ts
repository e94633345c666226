// The memory through which the core and its caller exchange data: one struct for arguments and results, and the structs
// that the kernel reads and writes. Their offsets never change, so the shim can pass the address of `request` to
// ioctl(2), and the kernel writes its answer into it.

import {
  O_CLOEXEC,
  O_NONBLOCK,
  POLLIN,
  pollfd,
  UFFD_API,
  UFFD_USER_MODE_ONLY,
  UFFDIO_API,
  UFFDIO_COPY,
  UFFDIO_REGISTER,
  UFFDIO_UNREGISTER,
  UFFDIO_WAKE,
  USERFAULTFD_IOC_NEW,
  uffdio_api,
  uffdio_copy,
  uffdio_range,
  uffdio_register,
} from './abi';

/**
 * All values that the core and its caller exchange, except small integers. The caller writes the arguments before a
 * call. The core writes all other fields before it returns an action or a result.
 */
@unmanaged
export class Exchange {
  // Arguments. Usually 0 is the start (or destination), 1 the length, and 2 the source (or the operations, or the
  // features).
  argument0: u64;
  argument1: u64;
  argument2: u64;
  // The next three fields. For a fault: `start` is its page, `third` its address as the kernel reported it. For a
  // change: start and end of a removal or unmapping; from, to and length of a move; or the child's descriptor in
  // `start`. For a finished fill: `start` is where it ended, `third` where the data for that address lies. For a range:
  // start, end, operations. For a window: start.
  start: u64;
  end: u64;
  third: u64;
  // The next six fields are counts of bytes: whole numbers below 2^53.
  /**
   * For a fill: bytes that it has resolved. Their pages were installed by it, or the kernel returned EEXIST for them.
   */
  resolved: f64;
  /** Bytes of `resolved` that the kernel reported as installed. */
  installed: f64;
  /** For `beginAhead`: bytes that were skipped before the first missing page. */
  passed: f64;
  /** Bytes that were installed for faults answered from sources. */
  answeredBytes: f64;
  /** Bytes of `answeredBytes` that are zeros of holes. */
  holeBytes: f64;
  /** Bytes of `answeredBytes` that are zeros of removed pages. */
  removedBytes: f64;
  /** Most bytes that the next read may return. */
  room: u32;
  /** Request number of the next ioctl, whose struct is in `request`. */
  code: u32;
  /**
   * For a fault: its kind (KIND_*), whether it is a write, its thread, and how many fills of its page in a row returned
   * EEXIST.
   */
  kind: u32;
  write: u32;
  tid: u32;
  tries: u32;
  /** For a finished fill: its operation, and how it ended (a `Step`). */
  operation: u32;
  outcome: u32;
  /**
   * The positive errno of a failed fill, or of the error that made the descriptor unusable. 0: a message was malformed.
   */
  errno: i32;
  /** For a malformed message: its offset in `messages`, and its length in bytes. */
  badOffset: u32;
  badBytes: u32;
  /** How many faults and changes wait for the handler, deferred faults included. */
  waiting: u32;
  /** 1: the watched process has exited or called exec. */
  exited: u32;
  /** 1: the last read stopped at a fork event, because no descriptor was left for the child. */
  starved: u32;
  /** 1: at least one source exists. */
  sourced: u32;
  /** 1: a call that the handler made has resolved the current fault, or has found its memory gone. */
  settled: u32;
  /** 1: a fault was reported for memory that is not registered, as far as the core knows. */
  strange: u32;
  /**
   * Since the last report: faults answered from sources, the writes among them, and faults that were deferred because
   * their source could not answer them yet.
   */
  answered: u32;
  writes: u32;
  deferred: u32;
  /** For a range: its modes, and log2 of its page size. For a window: log2 of its page size, in `pageShift`. */
  modes: u32;
  pageShift: u32;
}

export const exchange: usize = memory.data(offsetof<Exchange>(), 8);

/** The struct of the next ioctl. */
export const request: usize = memory.data(64, 8);

export function shared(): Exchange {
  return changetype<Exchange>(exchange);
}

/** Three pollfds: the userfaultfd, the eventfd that stops its loop, and the pidfd of the watched process. */
export const polled: usize = memory.data(24, 8);

const MESSAGES: u32 = 0;
const STOP: u32 = 1;
const PROCESS: u32 = 2;

/** The userfaultfd's descriptor, which `starve` later puts back into the poll set. */
let watched: i32 = -1;

/**
 * An address at which practically nothing is mapped, and a length that no mapping has. The address lies far above every
 * program, far below every library, and inside the address space of each supported machine.
 */
const NOWHERE: u64 = 1 << 36;
const NOTHING: u64 = 1 << 38;

export function argument(index: u32): u64 {
  return load<u64>(exchange + <usize>(index << 3));
}

/** The end of the range of arguments 0 (start) and 1 (length). */
export function argumentEnd(): u64 {
  return argument(0) + argument(1);
}

/** Flags of userfaultfd(2), and of the request to /dev/userfaultfd. */
export function openFlags(userModeOnly: bool): u32 {
  return O_CLOEXEC | O_NONBLOCK | (userModeOnly ? UFFD_USER_MODE_ONLY : 0);
}

/** The request to /dev/userfaultfd that opens a userfaultfd. Its argument is the flags. */
export function openRequest(): u32 {
  return USERFAULTFD_IOC_NEW;
}

// The functions named `request…` fill in `request` and return the request number.

/** Prepares UFFDIO_API. Argument 2: the wanted features. */
export function requestApi(): u32 {
  const it = changetype<uffdio_api>(request);
  it.api = UFFD_API;
  it.features = argument(2);
  it.ioctls = 0;
  return UFFDIO_API;
}

/** Prepares UFFDIO_REGISTER of the range of arguments 0 (start) and 1 (length). */
export function requestRegister(modes: u32): u32 {
  const it = changetype<uffdio_register>(request);
  it.start = argument(0);
  it.len = argument(1);
  it.mode = modes;
  it.ioctls = 0;
  return UFFDIO_REGISTER;
}

/** Prepares UFFDIO_UNREGISTER of the range of arguments 0 (start) and 1 (length). */
export function requestUnregister(): u32 {
  const it = changetype<uffdio_range>(request);
  it.start = argument(0);
  it.len = argument(1);
  return UFFDIO_UNREGISTER;
}

/** Prepares a WAKE of [from, to). */
export function prepareWake(from: u64, to: u64): void {
  shared().code = UFFDIO_WAKE;
  const it = changetype<uffdio_range>(request);
  it.start = from;
  it.len = to - from;
}

/**
 * Prepares a COPY that installs nothing, because its target is larger than any mapping and its source is not mapped.
 * The kernel answers ESRCH once the memory of the watched process is gone. After an exec no other call reports that.
 */
export function requestPresence(): u32 {
  const it = changetype<uffdio_copy>(request);
  it.dst = NOWHERE;
  it.src = NOWHERE;
  it.len = NOTHING;
  it.mode = 0;
  it.copy = 0;
  return UFFDIO_COPY;
}

/**
 * Writes into `start` the features that the kernel's answer to UFFDIO_API has, and into `end` a bit for each allowed
 * operation.
 */
export function apiGranted(): void {
  const it = changetype<uffdio_api>(request);
  shared().start = it.features;
  shared().end = it.ioctls;
}

/** Writes into `third` a bit for each operation that the whole registered range allows. */
export function registerGranted(): void {
  shared().third = changetype<uffdio_register>(request).ioctls;
}

/**
 * Sets the descriptors to poll; −1: none. While a fork event is starved (see `starve`), the userfaultfd is left out.
 */
export function pollWatch(userfaultfd: i32, stop: i32, process: i32): void {
  watched = userfaultfd;
  watch(MESSAGES, shared().starved ? -1 : userfaultfd);
  watch(STOP, stop);
  watch(PROCESS, process);
}

/**
 * Sets whether a fork event waits because no descriptor is left for its child. The event cannot be read until a
 * descriptor is free, and poll(2) would report it again and again. So the userfaultfd is not polled meanwhile.
 */
export function starve(on: bool): void {
  shared().starved = on ? 1 : 0;
  pollfdAt(MESSAGES).fd = on ? -1 : watched;
}

/** Whether the last poll found that the watched process has exited. */
export function pollExited(): bool {
  return pollfdAt(PROCESS).revents != 0;
}

function pollfdAt(index: u32): pollfd {
  return changetype<pollfd>(polled + <usize>(index << 3));
}

function watch(index: u32, fd: i32): void {
  const it = pollfdAt(index);
  it.fd = fd;
  it.events = POLLIN;
  it.revents = 0;
}
