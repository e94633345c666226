// The C functions that the shim calls. They are declared at the first call and not at import. So a program can import
// everything on a machine without koffi, and gets the error when it uses the real kernel.
//
// Rules: `errno` is read right after the call (`orErrno`), because anything in between may change it. `ioctl` and
// `fcntl` are declared without dots: on Linux their variadic arguments are passed like the others.

import { UnsupportedError } from '../src/kernel/port.js';
import { koffi as loadKoffi } from './koffi.js';

/** koffi returns an integer as a number if it fits, and as a bigint otherwise. */
type Word = number | bigint;

/** The JavaScript types that stand for C types: those of arguments, and those of results. */
interface ArgumentTypes
  extends Record<'int' | 'uint' | 'long' | 'ulong' | 'size_t' | 'intptr_t' | 'int64_t' | 'uint64_t', number> {
  uintptr_t: Word;
  str: string;
  'void *': Uint8Array | Int32Array | BigUint64Array;
}
interface ResultTypes extends Record<'int' | 'uint' | 'long' | 'intptr_t', number> {
  void: void;
  int64_t: Word;
  uintptr_t: Word;
}

export type Libc = ReturnType<typeof load>;

/** System call numbers by Node's name of the architecture. */
const SYS_USERFAULTFD: Readonly<Record<string, number>> = { x64: 323, arm64: 282 };
/** Has the same value on all architectures that have userfaultfd. Node has no name for it. */
export const O_PATH = 0x200000;
const SYS_PREADV2: Readonly<Record<string, number>> = { x64: 327, arm64: 286 };
const SYS_KCMP: Readonly<Record<string, number>> = { x64: 312, arm64: 272 };
const SYS_SECCOMP: Readonly<Record<string, number>> = { x64: 317, arm64: 277 };
/** The same on all architectures. */
export const SYS_PIDFD_SEND_SIGNAL = 424;
export const SYS_PIDFD_OPEN = 434;
export const SYS_PIDFD_GETFD = 438;

let loaded: Libc | undefined;

export function libc(): Libc {
  loaded ??= load();
  return loaded;
}

/**
 * System call numbers of preadv2(2), kcmp(2) and seccomp(2). On an unknown architecture they are −1, which is no system
 * call.
 */
export const preadv2Number = SYS_PREADV2[process.arch] ?? -1;
export const kcmpNumber = SYS_KCMP[process.arch] ?? -1;
export const seccompNumber = SYS_SECCOMP[process.arch] ?? -1;

/** The result of the C call that was made last, or −errno if the result is negative. */
export function orErrno(result: number): number {
  return result < 0 ? -libc().errno() : result;
}

/** userfaultfd(2)'s number on this architecture. */
export function userfaultfdNumber(): number {
  const number = SYS_USERFAULTFD[process.arch];
  if (number === undefined) {
    throw new UnsupportedError(
      `this library does not know userfaultfd's system call number on ${process.arch}, only on x64 and arm64`,
    );
  }
  return number;
}

function load() {
  if (process.platform !== 'linux') {
    throw new UnsupportedError(`userfaultfd is a part of Linux; this is ${process.platform}`);
  }
  userfaultfdNumber();
  const koffi = loadKoffi();
  const library = koffi.load(null);
  const declare = <Result extends keyof ResultTypes, Types extends (keyof ArgumentTypes)[]>(
    name: string,
    result: Result,
    types: [...Types],
  ): ((...values: { [Index in keyof Types]: ArgumentTypes[Types[Index]] }) => ResultTypes[Result]) =>
    library.func(name, result, types) as never;
  // The arguments for one list of vectors: its address and its length.
  const pair = ['void *', 'ulong'] as const;
  const range = ['uintptr_t', 'ulong'] as const;
  return {
    koffi,
    errno: koffi.errno as () => number,
    syscall: declare('syscall', 'long', ['long', 'ulong']),
    // As a bare system call: C libraries have a wrapper only since 2022.
    pidfd_open: declare('syscall', 'long', ['long', 'int', 'uint']),
    pidfd_getfd: declare('syscall', 'long', ['long', 'int', 'int', 'uint']),
    open: declare('open', 'int', ['str', 'int']),
    pipe2: declare('pipe2', 'int', ['void *', 'int']),
    // The kernel uses 32 bits of the request. They are passed as a signed number, because V8 stores a request with the
    // highest bit set as a small integer only if it is signed.
    ioctl: declare('ioctl', 'int', ['int', 'int', 'uintptr_t']),
    fcntl: declare('fcntl', 'int', ['int', 'int', 'long']),
    read: declare('read', 'intptr_t', ['int', 'uintptr_t', 'size_t']),
    pread: declare('pread', 'intptr_t', ['int', 'void *', 'size_t', 'int64_t']),
    pwrite: declare('pwrite', 'intptr_t', ['int', 'void *', 'size_t', 'int64_t']),
    readlinkat: declare('readlinkat', 'intptr_t', ['int', 'str', 'void *', 'size_t']),
    poll: declare('poll', 'int', ['uintptr_t', 'ulong', 'int']),
    close: declare('close', 'int', ['int']),
    syncfs: declare('syncfs', 'int', ['int']),
    sync_file_range: declare('sync_file_range', 'int', ['int', 'int64_t', 'int64_t', 'uint']),
    // As a bare system call: musl has a wrapper only since 2024.
    preadv2: declare('syscall', 'long', ['long', 'int', 'uintptr_t', 'ulong', 'long', 'long', 'int']),
    kcmp: declare('syscall', 'long', ['long', 'int', 'int', 'int', 'ulong', 'ulong']),
    dlsym: declare('dlsym', 'uintptr_t', ['uintptr_t', 'str']),
    pthread_create: declare('pthread_create', 'int', ['uintptr_t', 'uintptr_t', 'uintptr_t', 'uintptr_t']),
    pthread_attr_init: declare('pthread_attr_init', 'int', ['uintptr_t']),
    pthread_attr_setstacksize: declare('pthread_attr_setstacksize', 'int', ['uintptr_t', 'size_t']),
    pthread_attr_destroy: declare('pthread_attr_destroy', 'int', ['uintptr_t']),
    pthread_tryjoin_np: declare('pthread_tryjoin_np', 'int', ['uintptr_t', 'uintptr_t']),
    eventfd: declare('eventfd', 'int', ['uint', 'int']),
    eventfd_write: declare('eventfd_write', 'int', ['int', 'uint64_t']),
    mmap: declare('mmap', 'uintptr_t', ['uintptr_t', 'size_t', 'int', 'int', 'int', 'int64_t']),
    munmap: declare('munmap', 'int', ['uintptr_t', 'size_t']),
    mremap: declare('mremap', 'uintptr_t', ['uintptr_t', 'size_t', 'size_t', 'int', 'uintptr_t']),
    madvise: declare('madvise', 'int', ['uintptr_t', 'size_t', 'int']),
    mprotect: declare('mprotect', 'int', ['uintptr_t', 'size_t', 'int']),
    fallocate: declare('fallocate', 'int', ['int', 'int', 'int64_t', 'int64_t']),
    msync: declare('msync', 'int', ['uintptr_t', 'size_t', 'int']),
    process_vm_readv: declare('process_vm_readv', 'intptr_t', ['int', ...pair, ...pair, 'ulong']),
    process_vm_writev: declare('process_vm_writev', 'intptr_t', ['int', ...pair, ...pair, 'ulong']),
    // With addresses, which koffi passes four times as fast as arrays.
    read_process: declare('process_vm_readv', 'intptr_t', ['int', ...range, ...range, 'ulong']),
    write_process: declare('process_vm_writev', 'intptr_t', ['int', ...range, ...range, 'ulong']),
    flock: declare('flock', 'int', ['int', 'int']),
    memfd_create: declare('memfd_create', 'int', ['str', 'uint']),
    ftruncate: declare('ftruncate', 'int', ['int', 'int64_t']),
    sched_getaffinity: declare('sched_getaffinity', 'int', ['int', 'size_t', 'void *']),
    sched_setaffinity: declare('sched_setaffinity', 'int', ['int', 'size_t', 'void *']),
    sched_yield: declare('sched_yield', 'int', []),
    sysconf: declare('sysconf', 'long', ['int']),
    lseek: declare('lseek', 'int64_t', ['int', 'int64_t', 'int']),
    socket: declare('socket', 'int', ['int', 'int', 'int']),
    socketpair: declare('socketpair', 'int', ['int', 'int', 'int', 'void *']),
    bind: declare('bind', 'int', ['int', 'void *', 'uint']),
    listen: declare('listen', 'int', ['int', 'int']),
    connect: declare('connect', 'int', ['int', 'void *', 'uint']),
    accept4: declare('accept4', 'int', ['int', 'uintptr_t', 'uintptr_t', 'int']),
    getsockopt: declare('getsockopt', 'int', ['int', 'int', 'int', 'uintptr_t', 'uintptr_t']),
    shutdown: declare('shutdown', 'int', ['int', 'int']),
    recvmsg: declare('recvmsg', 'intptr_t', ['int', 'uintptr_t', 'int']),
    sendmsg: declare('sendmsg', 'intptr_t', ['int', 'uintptr_t', 'int']),
    clock_gettime: declare('clock_gettime', 'int', ['int', 'uintptr_t']),
    exit_now: declare('_exit', 'void', ['int']),
    prctl: declare('prctl', 'int', ['int', 'ulong', 'ulong', 'ulong', 'ulong']),
    personality: declare('personality', 'int', ['ulong']),
    signal: declare('signal', 'intptr_t', ['int', 'intptr_t']),
    execve: declare('execve', 'int', ['str', 'void *', 'void *']),
    // As a bare system call: no C library has a wrapper.
    seccomp: declare('syscall', 'long', ['long', 'uint', 'uint', 'void *']),
    alarm: declare('alarm', 'uint', ['uint']),
    // As a bare system call, like pidfd_open.
    pidfd_send_signal: declare('syscall', 'long', ['long', 'int', 'int', 'uintptr_t', 'uint']),
  };
}
