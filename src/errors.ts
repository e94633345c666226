// Errors in three kinds, told apart by class and code: the caller's mistakes (RangeError, TypeError with
// Node's codes), the kernel's refusals (UffdError with the errno), and what this machine lacks
// (UnsupportedError, ERR_UFFD_UNSUPPORTED). A message says what was tried, on what range, and what to do.

export { UnsupportedError } from './kernel.js';

/** errno values that userfaultfd's calls give, by number. The numbers are the same on x86-64 and arm64. */
const ERRNO: Readonly<Record<number, string>> = {
  1: 'EPERM',
  2: 'ENOENT',
  3: 'ESRCH',
  4: 'EINTR',
  5: 'EIO',
  9: 'EBADF',
  11: 'EAGAIN',
  12: 'ENOMEM',
  13: 'EACCES',
  14: 'EFAULT',
  16: 'EBUSY',
  17: 'EEXIST',
  19: 'ENODEV',
  22: 'EINVAL',
  23: 'ENFILE',
  24: 'EMFILE',
  25: 'ENOTTY',
  28: 'ENOSPC',
  29: 'ESPIPE',
  38: 'ENOSYS',
};

/** Positive errno values, by name. */
export const Errno = Object.fromEntries(
  Object.entries(ERRNO).map(([value, name]) => [name, Number(value)]),
) as Readonly<Record<string, number>>;

/** 'EBUSY' for 16; 'E123' for a number without a name here. */
export function errnoName(errno: number): string {
  return ERRNO[errno] ?? `E${errno}`;
}

/** What is behind an errno of a call, and the way out, where that can be said. */
const REASONS: Readonly<Record<string, string>> = {
  'userfaultfd EPERM':
    'faults of kernel mode need CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd=1, or access to /dev/userfaultfd; ' +
    'or open with userModeOnly: true, which serves faults of user mode only. In a container, its seccomp profile may forbid the call',
  'userfaultfd ENOSYS': 'this kernel was built without CONFIG_USERFAULTFD, or a seccomp filter hides it',
  'userfaultfd EMFILE': 'the process has no file descriptor left (ulimit -n)',
  'userfaultfd ENFILE': 'the system has no file descriptor left (fs.file-max)',
  '/dev/userfaultfd ENOENT': 'the device exists from Linux 6.1 on; where it is missing, use the system call',
  '/dev/userfaultfd EACCES': 'the device may be used by whom its file permissions allow',
  '/dev/userfaultfd EPERM': 'the device may be used by whom its file permissions allow',
  'UFFDIO_API EPERM': "the feature 'event-fork' needs CAP_SYS_PTRACE",
  'UFFDIO_API EINVAL': 'the handshake was done before; adopt such a descriptor with Userfaultfd.wrap',
  'UFFDIO_REGISTER EINVAL':
    "nothing is mapped there, or that kind of memory does not allow the mode: 'minor' needs shared memory, files on disk cannot be watched, huge pages need a range in their own size",
  'UFFDIO_REGISTER EBUSY': 'another userfaultfd has registered a part of it',
  'UFFDIO_REGISTER EPERM': 'it is a shared mapping of a file that was opened for reading only',
  'UFFDIO_REGISTER ENOMEM': 'the process has exited or called exec, or its memory is used up',
  'UFFDIO_UNREGISTER EINVAL': 'nothing is mapped there, or a part of it belongs to another userfaultfd',
  'UFFDIO_UNREGISTER ENOMEM': 'the process has exited or called exec',
  'UFFDIO_COPY EFAULT':
    'the source cannot be read: it is not mapped, or lies behind the end of a file that was truncated',
  'UFFDIO_COPY EINVAL':
    'write-protecting while copying needs a range registered for write-protect; huge pages come only whole',
  'UFFDIO_ZEROPAGE EINVAL': 'this memory has no zero page (huge pages have none): copy zeros instead',
  'UFFDIO_CONTINUE EFAULT':
    'the page is not in the page cache; write it through another mapping of the file first',
  'UFFDIO_CONTINUE EINVAL': 'only shared memory (memfd, shmem, hugetlbfs) can be continued',
  'UFFDIO_MOVE EBUSY':
    'a page is shared after a fork, or pinned; rewrite it, or keep the memory out of forks with MADV_DONTFORK',
  'UFFDIO_MOVE EEXIST': 'a page is already there; the source keeps what was not moved',
  'UFFDIO_MOVE EINVAL':
    'both ranges must be private anonymous memory of this process with equal protection, the target registered here',
  'UFFDIO_MOVE ENOENT': 'the source has a hole (allow it with allowHoles), or is not mapped',
  'read EINVAL': 'the descriptor is no userfaultfd whose handshake is done',
  EBADF: 'the userfaultfd is closed or was released',
  ENOMEM: 'there is no memory left',
  ENOTTY: 'the descriptor is no userfaultfd',
};

export interface UffdErrorOptions {
  /** Bytes that were resolved before the failure. */
  transferred?: number;
  /** Where it failed. */
  address?: bigint;
  /** Bytes it was tried on. */
  length?: number;
  /** More than the table knows. */
  reason?: string;
}

/**
 * The kernel refused. `code` and `errno` are as in Node's system errors ('EBUSY', −16), `syscall` the call
 * ('UFFDIO_COPY', 'read'), `transferred` the bytes resolved before, `address` where it failed.
 */
export class UffdError extends Error {
  override readonly name: string = 'UffdError';
  readonly code: string;
  readonly errno: number;
  readonly syscall: string;
  readonly transferred: number;
  readonly address?: bigint;

  constructor(errno: number, syscall: string, options: UffdErrorOptions = {}) {
    const code = errnoName(Math.abs(errno));
    const { transferred = 0, address, length, reason } = options;
    const where =
      address === undefined ? '' : ` at ${hex(address)}${length === undefined ? '' : `, ${length} bytes`}`;
    const why = reason ?? REASONS[`${syscall} ${code}`] ?? REASONS[code];
    const done = transferred > 0 ? ` (${transferred} bytes were resolved before)` : '';
    super(`${code}: ${syscall}${where} failed${why ? `: ${why}` : ''}${done}`);
    this.code = code;
    this.errno = -Math.abs(errno);
    this.syscall = syscall;
    this.transferred = transferred;
    if (address !== undefined) this.address = address;
  }
}

/** An address as people read it. */
export function hex(address: bigint): string {
  return `0x${address.toString(16)}`;
}
