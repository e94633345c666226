// The C functions the shim calls, declared once, at the first call and not at import: a machine without koffi can
// import everything, and hears what is missing when it asks for the real kernel.
//
// Rules: `errno` is read on the line after the call, because anything in between may change it. `ioctl` and
// `fcntl` are declared without dots: on Linux their variadic arguments travel like the others.

import { UnsupportedError } from '../src/kernel.js';
import { type Koffi, koffi as loadKoffi } from './koffi.js';

/** koffi gives an integer as a number where it fits and as a bigint where it does not. */
type Word = number | bigint;

/** process_vm_readv and process_vm_writev: both lists of vectors are pairs of an address and a length. */
export type VectorCall = (
  pid: number,
  local: BigUint64Array,
  localCount: number,
  remote: BigUint64Array,
  remoteCount: number,
  flags: number,
) => number;

export interface Libc {
  koffi: Koffi;
  errno(): number;
  syscall(number: number, argument: number): number;
  pidfd_open(number: number, pid: number, flags: number): number;
  open(path: string, flags: number): number;
  ioctl(fd: number, request: number, argument: Word): number;
  fcntl(fd: number, command: number, argument: number): number;
  read(fd: number, buffer: Word, length: number): number;
  pread(fd: number, buffer: Uint8Array, length: number, offset: number): number;
  readlinkat(fd: number, path: string, buffer: Uint8Array, length: number): number;
  poll(fds: Word, count: number, timeoutMs: number): number;
  close(fd: number): number;
  preadv2(
    number: number,
    fd: number,
    vectors: Word,
    count: number,
    low: number,
    high: number,
    flags: number,
  ): number;
  kcmp(number: number, pid: number, other: number, type: number, first: number, second: number): number;
  dlsym(library: Word, name: string): Word;
  pthread_create(thread: Word, attributes: Word, start: Word, argument: Word): number;
  pthread_tryjoin_np(thread: Word, result: Word): number;
  eventfd(initial: number, flags: number): number;
  eventfd_write(fd: number, value: number): number;
  mmap(address: Word, length: number, protection: number, flags: number, fd: number, offset: number): Word;
  munmap(address: Word, length: number): number;
  mremap(address: Word, oldLength: number, newLength: number, flags: number, to: Word): Word;
  madvise(address: Word, length: number, advice: number): number;
  msync(address: Word, length: number, flags: number): number;
  process_vm_readv: VectorCall;
  process_vm_writev: VectorCall;
  flock(fd: number, operation: number): number;
  memfd_create(name: string, flags: number): number;
  ftruncate(fd: number, length: number): number;
  sysconf(name: number): number;
  sched_getaffinity(pid: number, length: number, mask: Uint8Array): number;
  sched_setaffinity(pid: number, length: number, mask: Uint8Array): number;
  sched_yield(): number;
  lseek(fd: number, offset: number, whence: number): Word;
  socket(domain: number, type: number, protocol: number): number;
  bind(fd: number, address: Uint8Array, length: number): number;
  listen(fd: number, backlog: number): number;
  connect(fd: number, address: Uint8Array, length: number): number;
  accept4(fd: number, address: Word, length: Word, flags: number): number;
  getsockopt(fd: number, level: number, name: number, value: Word, length: Word): number;
  shutdown(fd: number, how: number): number;
  recvmsg(fd: number, message: Word, flags: number): number;
  sendmsg(fd: number, message: Word, flags: number): number;
  clock_gettime(clock: number, timespec: Word): number;
  exit_now(code: number): void;
  alarm(seconds: number): number;
  pidfd_send_signal(number: number, pidfd: number, signal: number, info: Word, flags: number): number;
}

/** System call numbers by Node's name of the machine (kernel-semantics: Syscall numbers). */
const SYS_USERFAULTFD: Readonly<Record<string, number>> = { x64: 323, arm64: 282 };
/** The same on all machines that userfaultfd is on; Node does not name it. */
export const O_PATH = 0x200000;
const SYS_PREADV2: Readonly<Record<string, number>> = { x64: 327, arm64: 286 };
const SYS_KCMP: Readonly<Record<string, number>> = { x64: 312, arm64: 272 };
/** The same on all machines. */
export const SYS_PIDFD_SEND_SIGNAL = 424;
export const SYS_PIDFD_OPEN = 434;

const VECTORS = ['int', 'void *', 'ulong', 'void *', 'ulong', 'ulong'];

let loaded: Libc | undefined;

export function libc(): Libc {
  loaded ??= load();
  return loaded;
}

/** preadv2(2)'s and kcmp(2)'s numbers on this machine; −1, which is no system call, elsewhere. */
export const preadv2Number = SYS_PREADV2[process.arch] ?? -1;
export const kcmpNumber = SYS_KCMP[process.arch] ?? -1;

/** userfaultfd(2)'s number on this machine. */
export function userfaultfdNumber(): number {
  const number = SYS_USERFAULTFD[process.arch];
  if (number === undefined) {
    throw new UnsupportedError(
      `userfaultfd's system call number on ${process.arch} is not known here; x64 and arm64 are`,
    );
  }
  return number;
}

function load(): Libc {
  if (process.platform !== 'linux') {
    throw new UnsupportedError(`userfaultfd is a part of Linux; this is ${process.platform}`);
  }
  userfaultfdNumber();
  const koffi = loadKoffi();
  const c = koffi.load(null);
  return {
    koffi,
    errno: koffi.errno as () => number,
    syscall: c.func('syscall', 'long', ['long', 'ulong']),
    // As a bare system call: C libraries have it since 2022 only.
    pidfd_open: c.func('syscall', 'long', ['long', 'int', 'uint']),
    open: c.func('open', 'int', ['str', 'int']),
    // The kernel takes 32 bits of the request; and a number with the sign bit set is small to V8, one without is not.
    ioctl: c.func('ioctl', 'int', ['int', 'int', 'uintptr_t']),
    fcntl: c.func('fcntl', 'int', ['int', 'int', 'long']),
    read: c.func('read', 'intptr_t', ['int', 'uintptr_t', 'size_t']),
    pread: c.func('pread', 'intptr_t', ['int', 'void *', 'size_t', 'int64_t']),
    readlinkat: c.func('readlinkat', 'intptr_t', ['int', 'str', 'void *', 'size_t']),
    poll: c.func('poll', 'int', ['uintptr_t', 'ulong', 'int']),
    close: c.func('close', 'int', ['int']),
    // As a bare system call: musl has it since 2024 only.
    preadv2: c.func('syscall', 'long', ['long', 'int', 'uintptr_t', 'ulong', 'long', 'long', 'int']),
    kcmp: c.func('syscall', 'long', ['long', 'int', 'int', 'int', 'ulong', 'ulong']),
    dlsym: c.func('dlsym', 'uintptr_t', ['uintptr_t', 'str']),
    pthread_create: c.func('pthread_create', 'int', ['uintptr_t', 'uintptr_t', 'uintptr_t', 'uintptr_t']),
    pthread_tryjoin_np: c.func('pthread_tryjoin_np', 'int', ['uintptr_t', 'uintptr_t']),
    eventfd: c.func('eventfd', 'int', ['uint', 'int']),
    eventfd_write: c.func('eventfd_write', 'int', ['int', 'uint64_t']),
    mmap: c.func('mmap', 'uintptr_t', ['uintptr_t', 'size_t', 'int', 'int', 'int', 'int64_t']),
    munmap: c.func('munmap', 'int', ['uintptr_t', 'size_t']),
    mremap: c.func('mremap', 'uintptr_t', ['uintptr_t', 'size_t', 'size_t', 'int', 'uintptr_t']),
    madvise: c.func('madvise', 'int', ['uintptr_t', 'size_t', 'int']),
    msync: c.func('msync', 'int', ['uintptr_t', 'size_t', 'int']),
    process_vm_readv: c.func('process_vm_readv', 'intptr_t', VECTORS),
    process_vm_writev: c.func('process_vm_writev', 'intptr_t', VECTORS),
    flock: c.func('flock', 'int', ['int', 'int']),
    memfd_create: c.func('memfd_create', 'int', ['str', 'uint']),
    ftruncate: c.func('ftruncate', 'int', ['int', 'int64_t']),
    sched_getaffinity: c.func('sched_getaffinity', 'int', ['int', 'size_t', 'void *']),
    sched_setaffinity: c.func('sched_setaffinity', 'int', ['int', 'size_t', 'void *']),
    sched_yield: c.func('sched_yield', 'int', []),
    sysconf: c.func('sysconf', 'long', ['int']),
    lseek: c.func('lseek', 'int64_t', ['int', 'int64_t', 'int']),
    socket: c.func('socket', 'int', ['int', 'int', 'int']),
    bind: c.func('bind', 'int', ['int', 'void *', 'uint']),
    listen: c.func('listen', 'int', ['int', 'int']),
    connect: c.func('connect', 'int', ['int', 'void *', 'uint']),
    accept4: c.func('accept4', 'int', ['int', 'uintptr_t', 'uintptr_t', 'int']),
    getsockopt: c.func('getsockopt', 'int', ['int', 'int', 'int', 'uintptr_t', 'uintptr_t']),
    shutdown: c.func('shutdown', 'int', ['int', 'int']),
    recvmsg: c.func('recvmsg', 'intptr_t', ['int', 'uintptr_t', 'int']),
    sendmsg: c.func('sendmsg', 'intptr_t', ['int', 'uintptr_t', 'int']),
    clock_gettime: c.func('clock_gettime', 'int', ['int', 'uintptr_t']),
    exit_now: c.func('_exit', 'void', ['int']),
    alarm: c.func('alarm', 'uint', ['uint']),
    // As a bare system call, like pidfd_open.
    pidfd_send_signal: c.func('syscall', 'long', ['long', 'int', 'int', 'uintptr_t', 'uint']),
  };
}
