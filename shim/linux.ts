// The port on Linux. Every method makes one call, and returns −errno if the call fails. The port adds the base address
// of the core's memory to offsets, and reads that address again after the memory has grown.

import type { Kernel, KernelPort, LinearMemory, Watch } from '../src/kernel/port.js';
import { now } from './clock.js';
import { closeDescriptor } from './descriptors.js';
import { type Libc, libc, orErrno, preadv2Number, userfaultfdNumber } from './libc.js';
import { pageSize, unfillableAt, watchedPageSizeAt } from './memory.js';
import { openPidfd } from './process.js';
import { linuxProcessors } from './processors.js';
import { makeEventfd, signalEventfd, watchReadable } from './watch.js';

const O_RDONLY_CLOEXEC = 0x80000;
const O_RDWR_CLOEXEC = 0x80002;
const RWF_NOWAIT = 8;
/** Errors that mean that this kernel, or a seccomp filter, does not allow a userfaultfd to be read with RWF_NOWAIT. */
const NO_NOWAIT: ReadonlySet<number> = new Set([-1, -38, -95]);

/** The kernel that this process runs on. @throws UnsupportedError if that is not Linux, or koffi is missing */
export function linuxKernel(): Kernel {
  const c = libc();
  return { pageSize: pageSize(), attach: (memory) => new LinuxPort(c, memory) };
}

/** Adds 1 to an eventfd's counter, for a thread that has no port. */
export function eventfdSignal(): (fd: number) => number {
  // The library is loaded now, and not at the first signal.
  libc();
  return signalEventfd;
}

/** userfaultfd(2), for a probe without a port. */
export function trySyscall(flags: number): number {
  return orErrno(libc().syscall(userfaultfdNumber(), flags));
}

/** The key of the vector's address among the addresses. */
const VECTOR = -1;

class LinuxPort implements KernelPort {
  readonly processors = linuxProcessors;
  readonly #c: Libc;
  readonly #memory: LinearMemory;
  /** The whole memory of the core. When the memory grows, it gets a new buffer, and the old buffer becomes empty. */
  #bytes = new Uint8Array();
  #base = 0;
  /**
   * Addresses by offset, and the address of the vector. Numbers of this size are objects in V8. A map keeps these
   * objects, but each read of a field would make a new object, and so garbage at each call.
   */
  readonly #addresses = new Map<number, number>();
  /** struct iovec for `read`, in 32-bit halves, because a whole word would be a bigint, and so garbage at each call. */
  readonly #vector = new Uint32Array(4);
  /**
   * Whether the kernel supports reads that never wait, whatever the file's flags are (for a userfaultfd since Linux
   * 6.10).
   */
  #nowait = true;

  constructor(c: Libc, memory: LinearMemory) {
    this.#c = c;
    this.#memory = memory;
  }

  /** The address of an offset. It is below 2^48, so a number can hold it. */
  #address(at: number): number {
    if (this.#bytes.length === 0) {
      this.#bytes = new Uint8Array(this.#memory.buffer);
      this.#base = Number(this.#c.koffi.address(this.#bytes));
      this.#addresses.clear();
    }
    let address = this.#addresses.get(at);
    if (address === undefined) {
      address = this.#base + at;
      this.#addresses.set(at, address);
    }
    return address;
  }

  userfaultfd(flags: number): number {
    return trySyscall(flags);
  }

  openDevice(): number {
    return this.#open('/dev/userfaultfd', O_RDWR_CLOEXEC);
  }

  openPagemap(pid: number): number {
    return this.#open(`/proc/${pid || 'self'}/pagemap`, O_RDONLY_CLOEXEC);
  }

  #open(path: string, flags: number): number {
    return orErrno(this.#c.open(path, flags));
  }

  pidfd(pid: number): number {
    return openPidfd(pid);
  }

  pageSizeAt(pid: number, address: bigint): number {
    return watchedPageSizeAt(pid, address);
  }

  unfillableAt(pid: number, address: bigint): string | undefined {
    return unfillableAt(pid, address);
  }

  ioctl(fd: number, request: number, at: number): number {
    return orErrno(this.#c.ioctl(fd, request | 0, this.#address(at)));
  }

  ioctlValue(fd: number, request: number, value: number): number {
    return orErrno(this.#c.ioctl(fd, request | 0, value));
  }

  /**
   * Never waits, if the kernel supports that. A process that shares the file may clear O_NONBLOCK at any time, and then
   * a plain read would block.
   */
  read(fd: number, at: number, length: number): number {
    if (this.#nowait) {
      const result = this.#readNow(fd, this.#address(at), length);
      if (!NO_NOWAIT.has(result)) return result;
      this.#nowait = false;
    }
    return orErrno(this.#c.read(fd, this.#address(at), length));
  }

  #readNow(fd: number, address: number, length: number): number {
    const vector = this.#vector;
    let at = this.#addresses.get(VECTOR);
    if (at === undefined) {
      at = Number(this.#c.koffi.address(vector));
      this.#addresses.set(VECTOR, at);
    }
    vector[0] = address % 2 ** 32;
    vector[1] = address / 2 ** 32;
    vector[2] = length;
    // Offset −1 means the current position, which a userfaultfd does not have.
    return orErrno(this.#c.preadv2(preadv2Number, fd, at, 1, -1, -1, RWF_NOWAIT));
  }

  poll(at: number, count: number, timeoutMs: number): number {
    return orErrno(this.#c.poll(this.#address(at), count, timeoutMs));
  }

  fcntl(fd: number, command: number, argument: number): number {
    return orErrno(this.#c.fcntl(fd, command, argument));
  }

  close(fd: number): number {
    return closeDescriptor(fd);
  }

  eventfd(): number {
    return makeEventfd();
  }

  now(): number {
    return now();
  }

  addressOf(view: ArrayBufferView): bigint {
    return this.#c.koffi.address(view);
  }

  watch(fd: number, ready: () => void): Watch {
    return watchReadable(fd, ready);
  }

  after(delayMs: number, due: () => void): Watch {
    return linuxProcessors.after(delayMs, due);
  }
}
