// System calls that another process makes, and that this process answers (seccomp_unotify(2)): the filter that traps
// them, their notifications, and the memory of the process that waits for an answer. Failed calls return −errno.
//
// The numbers are from Linux 6.18: include/uapi/linux/seccomp.h, include/uapi/linux/prctl.h and
// include/uapi/linux/personality.h.

import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { libc, orErrno, seccompNumber } from './libc.js';

const PR_SET_NO_NEW_PRIVS = 38;
const SECCOMP_SET_MODE_FILTER = 1;
const SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3;
/** Once a call was received, only a fatal signal interrupts its wait for the answer (Linux 5.19). */
const SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5;
const SECCOMP_IOCTL_NOTIF_RECV = 0xc0502100 | 0;
const SECCOMP_IOCTL_NOTIF_SEND = 0xc0182101 | 0;
const SECCOMP_IOCTL_NOTIF_ID_VALID = 0x40082102;
const SECCOMP_IOCTL_NOTIF_ADDFD = 0x40182103;
const SECCOMP_IOCTL_NOTIF_SET_FLAGS = 0x40082104;
/** The waker and the woken thread use one processor (Linux 6.6). */
const SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP = 1;
/** struct sock_fprog: the number of instructions, padding, and their address. */
const FPROG_BYTES = 16;
const INSTRUCTION_BYTES = 8;
const ADDR_NO_RANDOMIZE = 0x0040000;
const READ_PERSONALITY = 0xffffffff;
const F_SETFD = 2;
const O_NONBLOCK_CLOEXEC = 0x80800;
const EINVAL = -22;
const EFAULT = -14;
const EPERM = -1;
const EINTR = -4;
const ENOSYS = -38;

const O_CLOEXEC = 0x80000;
/** struct iovec. */
const IOVEC_BYTES = 16;
/** struct seccomp_notif_addfd. */
const ADDFD_BYTES = 24;

/** struct seccomp_notif and struct seccomp_notif_resp. */
export const NOTIFICATION_BYTES = 80;
export const ANSWER_BYTES = 24;

/** Lets this thread and its children gain no privileges at execve, which a filter without CAP_SYS_ADMIN requires. */
export function forgoPrivileges(): number {
  return orErrno(libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

/** Turns off the randomisation of addresses for what this process executes. −EPERM if a filter forbids it. */
export function fixAddresses(): number {
  const now = orErrno(libc().personality(READ_PERSONALITY));
  return now < 0 ? now : orErrno(libc().personality(now | ADDR_NO_RANDOMIZE));
}

/**
 * Sets a filter for the calling thread and its children. Returns the descriptor of the trapped calls. `killable`:
 * whether the kernel supports waits that only a fatal signal interrupts.
 */
export function setFilter(program: Uint8Array): { listener: number; killable: boolean } {
  const { koffi, seccomp } = libc();
  const prog = new DataView(new ArrayBuffer(FPROG_BYTES));
  prog.setUint16(0, program.length / INSTRUCTION_BYTES, true);
  prog.setBigUint64(8, koffi.address(program), true);
  const set = (flags: number): number =>
    orErrno(seccomp(seccompNumber, SECCOMP_SET_MODE_FILTER, flags, new Uint8Array(prog.buffer)));
  const killable = set(SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV);
  if (killable !== EINVAL) return { listener: killable, killable: true };
  return { listener: set(SECCOMP_FILTER_FLAG_NEW_LISTENER), killable: false };
}

/** Makes answers switch to the waiting thread at once. −EINVAL before Linux 6.6. */
export function wakeOnSameProcessor(listener: number): number {
  return orErrno(libc().ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP));
}

/** The buffers of one listener's notifications and answers, with their addresses. */
export class NotificationChannel {
  readonly notification = new DataView(new ArrayBuffer(NOTIFICATION_BYTES));
  readonly answer = new DataView(new ArrayBuffer(ANSWER_BYTES));
  readonly #listener: number;
  readonly #notified: Uint8Array;
  readonly #at: number;
  readonly #answerAt: number;

  constructor(listener: number) {
    const { koffi } = libc();
    this.#listener = listener;
    this.#notified = new Uint8Array(this.notification.buffer);
    this.#at = Number(koffi.address(this.#notified));
    this.#answerAt = Number(koffi.address(new Uint8Array(this.answer.buffer)));
  }

  /** Receives the next trapped call, or waits for one. −ENOENT: the caller was killed; −EINTR: try again. */
  receive(): number {
    this.#notified.fill(0);
    return orErrno(libc().ioctl(this.#listener, SECCOMP_IOCTL_NOTIF_RECV, this.#at));
  }

  /** Sends the answer. −ENOENT: the call was interrupted, or its caller was killed. */
  send(): number {
    return orErrno(libc().ioctl(this.#listener, SECCOMP_IOCTL_NOTIF_SEND, this.#answerAt));
  }

  /** Whether the thread that made a call still waits for its answer. */
  isWaiting(id: bigint): boolean {
    const { koffi, ioctl } = libc();
    const word = new BigUint64Array([id]);
    return ioctl(this.#listener, SECCOMP_IOCTL_NOTIF_ID_VALID, koffi.address(word)) === 0;
  }

  /**
   * Gives the process that made the call a duplicate of a descriptor of this process, close-on-exec. Returns its number
   * there, or −errno (Linux 5.9).
   */
  giveDescriptor(id: bigint, fd: number): number {
    const { koffi, ioctl } = libc();
    const order = new DataView(new ArrayBuffer(ADDFD_BYTES));
    order.setBigUint64(0, id, true);
    order.setUint32(12, fd, true);
    order.setUint32(20, O_CLOEXEC, true);
    const at = koffi.address(new Uint8Array(order.buffer));
    return orErrno(ioctl(this.#listener, SECCOMP_IOCTL_NOTIF_ADDFD, at));
  }
}

/** A pipe whose ends are non-blocking and close-on-exec: the end to read, and the end to write. Both may be −errno. */
export function makePipe(blocking = false): [number, number] {
  const fds = new Int32Array(2);
  const result = orErrno(libc().pipe2(fds, blocking ? 0x80000 : O_NONBLOCK_CLOEXEC));
  return result < 0 ? [result, result] : ([...fds] as [number, number]);
}

/** Waits until one of the descriptors is readable or closed: their indexes as bits; 0: the time is up, −errno. */
export class Readiness {
  readonly #entries: DataView;
  readonly #at: number;
  readonly #count: number;

  constructor(fds: readonly number[]) {
    this.#entries = new DataView(new ArrayBuffer(8 * fds.length));
    for (const [index, fd] of fds.entries()) {
      this.#entries.setInt32(8 * index, fd, true);
      this.#entries.setInt16(8 * index + 4, 1, true);
    }
    this.#count = fds.length;
    this.#at = Number(libc().koffi.address(new Uint8Array(this.#entries.buffer)));
  }

  wait(timeoutMs: number): number {
    const until = performance.now() + timeoutMs;
    let ready = orErrno(libc().poll(this.#at, this.#count, timeoutMs));
    // A signal, such as that of a profiler, ends the wait.
    while (ready === EINTR) {
      const leftMs = timeoutMs < 0 ? -1 : Math.max(0, Math.ceil(until - performance.now()));
      ready = orErrno(libc().poll(this.#at, this.#count, leftMs));
    }
    if (ready <= 0) return ready;
    let bits = 0;
    for (let index = 0; index < this.#count; index++)
      if (this.#entries.getInt16(8 * index + 6, true) !== 0) bits |= 1 << index;
    return bits;
  }
}

/**
 * Turns this process into another program, with these descriptors left open. Returns only if that fails. Node ignores
 * SIGPIPE and SIGXFSZ and marks descriptors as close-on-exec, which the program must not inherit.
 */
export function becomeProgram(
  path: string,
  words: readonly string[],
  environment: readonly string[],
  keep: readonly number[],
): number {
  const { koffi, execve, fcntl, signal } = libc();
  const texts = (list: readonly string[]): { table: BigUint64Array; kept: Buffer[] } => {
    const kept = list.map((text) => Buffer.from(`${text}\0`));
    return { table: new BigUint64Array([...kept.map((text) => koffi.address(text)), 0n]), kept };
  };
  const [argv, envp] = [texts(words), texts(environment)];
  const SIGPIPE = 13;
  const SIGXFSZ = 25;
  for (const number of [SIGPIPE, SIGXFSZ]) signal(number, 0);
  for (const fd of keep) fcntl(fd, F_SETFD, 0);
  return orErrno(execve(path, argv.table, envp.table));
}

/** The memory of other processes that this process may trace. */
export class ForeignMemory {
  /** Whether process_vm_readv works here. If not, /proc/PID/mem is used. */
  #direct = true;
  /** Two vectors, the local one first, in halves of 32 bits, because whole words would be bigints, and so garbage. */
  readonly #vectors = new Uint32Array(8);
  #vectorsAt = 0;
  /** Addresses of buffers, which never move. */
  readonly #bases = new WeakMap<ArrayBufferLike, number>();

  /** Copies `into.length` bytes from an address of a process. 0, or −errno: EFAULT if not all of them can be read. */
  read(pid: number, address: number, into: Uint8Array): number {
    return this.#transfer(pid, address, into, false);
  }

  /** Copies bytes to an address of a process. 0, or −errno. */
  write(pid: number, address: number, from: Uint8Array): number {
    return this.#transfer(pid, address, from, true);
  }

  #transfer(pid: number, address: number, bytes: Uint8Array, writes: boolean): number {
    if (bytes.length === 0) return 0;
    if (!this.#direct) return this.#byFile(pid, address, bytes, writes);
    const c = libc();
    if (this.#vectorsAt === 0) this.#vectorsAt = Number(c.koffi.address(this.#vectors));
    this.#vector(0, this.#addressOf(bytes), bytes.length);
    this.#vector(4, address, bytes.length);
    const call = writes ? c.write_process : c.read_process;
    const copied = orErrno(call(pid, this.#vectorsAt, 1, this.#vectorsAt + IOVEC_BYTES, 1, 0));
    if (copied === bytes.length) return 0;
    if (copied !== EPERM && copied !== ENOSYS) return copied < 0 ? copied : EFAULT;
    this.#direct = false;
    return this.#byFile(pid, address, bytes, writes);
  }

  #vector(first: number, address: number, length: number): void {
    const vectors = this.#vectors;
    vectors[first] = address % 2 ** 32;
    vectors[first + 1] = address / 2 ** 32;
    vectors[first + 2] = length % 2 ** 32;
    vectors[first + 3] = length / 2 ** 32;
  }

  #addressOf(bytes: Uint8Array): number {
    let base = this.#bases.get(bytes.buffer);
    if (base === undefined) {
      base = Number(libc().koffi.address(new Uint8Array(bytes.buffer)));
      this.#bases.set(bytes.buffer, base);
    }
    return base + bytes.byteOffset;
  }

  #byFile(pid: number, address: number, bytes: Uint8Array, writes: boolean): number {
    try {
      const fd = openSync(`/proc/${pid}/mem`, writes ? 'r+' : 'r');
      try {
        const copied = writes
          ? writeSync(fd, bytes, 0, bytes.length, address)
          : readSync(fd, bytes, 0, bytes.length, address);
        return copied === bytes.length ? 0 : EFAULT;
      } finally {
        closeSync(fd);
      }
    } catch (error) {
      const { errno, code } = error as NodeJS.ErrnoException;
      return code === 'EIO' ? EFAULT : (errno ?? EFAULT);
    }
  }
}

/** An instruction of a filter (struct sock_filter): its code, the two jumps, and its number. */
export type Instruction = readonly [code: number, yes: number, no: number, value: number];

/** A filter as the kernel reads it: 8 bytes for each instruction. */
export function packProgram(instructions: readonly Instruction[]): Uint8Array {
  const program = new DataView(new ArrayBuffer(8 * instructions.length));
  for (const [index, [code, yes, no, value]] of instructions.entries()) {
    program.setUint16(8 * index, code, true);
    program.setUint8(8 * index + 2, yes);
    program.setUint8(8 * index + 3, no);
    program.setUint32(8 * index + 4, value, true);
  }
  return new Uint8Array(program.buffer);
}
