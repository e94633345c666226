// The port on Linux. Every method is one call; a failure is −errno. The base of the core's memory is added
// here, and read again after that memory grew.

import type { Kernel, KernelPort, LinearMemory, Watch } from '../src/kernel.js';
import { now } from './clock.js';
import { closeDescriptor } from './descriptors.js';
import { type Libc, libc, preadv2Number, userfaultfdNumber } from './libc.js';
import { pageSize, unfillableAt, watchedPageSizeAt } from './memory.js';
import { openPidfd } from './process.js';
import { linuxProcessors } from './processors.js';
import { watchReadable } from './watch.js';

const O_RDONLY_CLOEXEC = 0x80000;
const O_RDWR_CLOEXEC = 0x80002;
const EFD_NONBLOCK_CLOEXEC = 0x80800;
const RWF_NOWAIT = 8;
/** What says that this kernel, or a filter, has no such read of a userfaultfd. */
const NO_NOWAIT: ReadonlySet<number> = new Set([-1, -38, -95]);

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
  /** struct iovec for `read`, in halves: a whole word would be a bigint, garbage of each call. */
  readonly #vector = new Uint32Array(4);
  #vectorAddress = 0;
  /** The kernel can read without waiting, whatever the file's flags say (a userfaultfd: since Linux 6.10). */
  #nowait = true;

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

  /**
   * Never waits, if the kernel can do that: who else has the file may clear its O_NONBLOCK at any time, and a plain read
   * would hang then.
   */
  read(fd: number, at: number, length: number): number {
    if (this.#nowait) {
      const result = this.#readNow(fd, this.#address(at), length);
      if (!NO_NOWAIT.has(result)) return result;
      this.#nowait = false;
    }
    const result = this.#c.read(fd, this.#address(at), length);
    return result < 0 ? -this.#c.errno() : result;
  }

  #readNow(fd: number, address: number, length: number): number {
    const vector = this.#vector;
    if (this.#vectorAddress === 0) this.#vectorAddress = Number(this.#c.koffi.address(vector));
    vector[0] = address % 2 ** 32;
    vector[1] = address / 2 ** 32;
    vector[2] = length;
    // At its position, which such a file does not have.
    const result = this.#c.preadv2(preadv2Number, fd, this.#vectorAddress, 1, -1, -1, RWF_NOWAIT);
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
