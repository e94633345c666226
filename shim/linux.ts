// The port on Linux. Every method is one call; a failure is −errno. The base of the core's memory is added
// here, and read again after that memory grew.

import type { Kernel, KernelPort, LinearMemory, Watch } from '../src/kernel.js';
import { now } from './clock.js';
import { closeDescriptor } from './descriptors.js';
import { type Libc, libc, userfaultfdNumber } from './libc.js';
import { pageSize, unfillableAt, watchedPageSizeAt } from './memory.js';
import { openPidfd } from './process.js';
import { linuxProcessors } from './processors.js';
import { watchReadable } from './watch.js';

const O_RDONLY_CLOEXEC = 0x80000;
const O_RDWR_CLOEXEC = 0x80002;
const EFD_NONBLOCK_CLOEXEC = 0x80800;

/** The kernel this process runs on. Throws UnsupportedError where that is not Linux, or koffi is missing. */
export function linuxKernel(): Kernel {
  const c = libc();
  return { pageSize: pageSize(), attach: (memory) => new LinuxPort(c, memory) };
}

/** What adds 1 to an eventfd's counter, for a thread that has no port. */
export function eventfdSignal(): (fd: number) => number {
  const c = libc();
  return (fd) => (c.eventfd_write(fd, 1) < 0 ? -c.errno() : 0);
}

/** userfaultfd(2), for a probe without a port. */
export function trySyscall(flags: number): number {
  const c = libc();
  const fd = c.syscall(userfaultfdNumber(), flags);
  return fd < 0 ? -c.errno() : fd;
}

class LinuxPort implements KernelPort {
  readonly processors = linuxProcessors;
  readonly #c: Libc;
  readonly #memory: LinearMemory;
  /** All of it. Memory that has grown has another buffer, and whoever looks at the old one sees nothing. */
  #bytes = new Uint8Array();
  #base = 0;
  /** Addresses by offset. Numbers of their size are objects to V8: made once, they are no garbage of each call. */
  readonly #addresses = new Map<number, number>();

  constructor(c: Libc, memory: LinearMemory) {
    this.#c = c;
    this.#memory = memory;
  }

  /** The address of an offset: below 2^48, so a number holds it. */
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
    const fd = this.#c.open(path, flags);
    return fd < 0 ? -this.#c.errno() : fd;
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
    const result = this.#c.ioctl(fd, request | 0, this.#address(at));
    return result < 0 ? -this.#c.errno() : result;
  }

  ioctlValue(fd: number, request: number, value: number): number {
    const result = this.#c.ioctl(fd, request | 0, value);
    return result < 0 ? -this.#c.errno() : result;
  }

  read(fd: number, at: number, length: number): number {
    const result = this.#c.read(fd, this.#address(at), length);
    return result < 0 ? -this.#c.errno() : result;
  }

  poll(at: number, count: number, timeoutMs: number): number {
    const result = this.#c.poll(this.#address(at), count, timeoutMs);
    return result < 0 ? -this.#c.errno() : result;
  }

  fcntl(fd: number, command: number, argument: number): number {
    const result = this.#c.fcntl(fd, command, argument);
    return result < 0 ? -this.#c.errno() : result;
  }

  close(fd: number): number {
    return closeDescriptor(fd);
  }

  eventfd(): number {
    const fd = this.#c.eventfd(0, EFD_NONBLOCK_CLOEXEC);
    return fd < 0 ? -this.#c.errno() : fd;
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
