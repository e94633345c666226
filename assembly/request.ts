// Where the outside puts arguments and the core puts kernel structs. Both stay at one address for ever, so
// the shim can hand the address of `request` to ioctl and the kernel writes its answer in place.

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

/** Four u64 arguments: of a transfer, a registration, a question. */
export const parameters: usize = memory.data(32, 8);

/** The struct of the next ioctl; and its number, where it is a transfer's. */
export const request: usize = memory.data(64, 8);
export const code: usize = memory.data(4, 4);

/** Which ioctl it is. */
export function requestIs(number: u32): void {
  store<u32>(code, number);
}

/** Three pollfds: the userfaultfd, the eventfd that stops its loop, and the pidfd of the watched process. */
export const polled: usize = memory.data(24, 8);

/** Which of them is the process. */
const PROCESS: u32 = 2;

/**
 * An address that hardly anybody maps, and a length that no mapping there has: far above every program, far below
 * every library, inside the address space of each machine supported.
 */
const NOWHERE: u64 = 1 << 36;
const NOTHING: u64 = 1 << 38;

export function argument(index: u32): u64 {
  return load<u64>(parameters + <usize>(index << 3));
}

/** Flags of userfaultfd(2), and of the device's request. */
export function openFlags(userModeOnly: bool): u32 {
  return O_CLOEXEC | O_NONBLOCK | (userModeOnly ? UFFD_USER_MODE_ONLY : 0);
}

/** The device's request; its argument is the flags. */
export function openRequest(): u32 {
  return USERFAULTFD_IOC_NEW;
}

// Each of these fills in `request` and gives the request number.

export function requestApi(features: u64): u32 {
  const it = changetype<uffdio_api>(request);
  it.api = UFFD_API;
  it.features = features;
  it.ioctls = 0;
  return UFFDIO_API;
}

/** Arguments 0 (start) and 1 (length). */
export function requestRegister(modes: u32): u32 {
  const it = changetype<uffdio_register>(request);
  it.start = argument(0);
  it.len = argument(1);
  it.mode = modes;
  it.ioctls = 0;
  return UFFDIO_REGISTER;
}

/** Arguments 0 (start) and 1 (length). */
export function requestUnregister(): u32 {
  return range(UFFDIO_UNREGISTER);
}

/** Arguments 0 (start) and 1 (length). */
export function requestWake(): u32 {
  return range(UFFDIO_WAKE);
}

/**
 * A COPY that installs nothing: its target is larger than any mapping, and its source is not mapped. It says ESRCH
 * once the memory of the watched process is gone, which after an exec nothing else tells.
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

function range(code: u32): u32 {
  const it = changetype<uffdio_range>(request);
  it.start = argument(0);
  it.len = argument(1);
  return code;
}

/** The features the kernel granted, or with features 0 offers. */
export function apiFeatures(): u64 {
  return changetype<uffdio_api>(request).features;
}

/** A bit per operation that the descriptor itself allows. */
export function apiOperations(): u64 {
  return changetype<uffdio_api>(request).ioctls;
}

export function registerOperations(): u64 {
  return changetype<uffdio_register>(request).ioctls;
}

/** Whom to poll; −1: nobody. */
export function pollWatch(userfaultfd: i32, stop: i32, process: i32): void {
  watch(0, userfaultfd);
  watch(1, stop);
  watch(PROCESS, process);
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
