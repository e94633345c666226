// Formats numbers for messages: errno values, and addresses. This file is separate from the error texts, so that code
// for web pages stays small.

/** errno values of the calls that this library makes. They are the same on x86-64 and arm64. */
const ERRNO: Readonly<Record<number, string>> = {
  1: 'EPERM',
  2: 'ENOENT',
  3: 'ESRCH',
  4: 'EINTR',
  5: 'EIO',
  6: 'ENXIO',
  9: 'EBADF',
  11: 'EAGAIN',
  12: 'ENOMEM',
  13: 'EACCES',
  14: 'EFAULT',
  16: 'EBUSY',
  17: 'EEXIST',
  19: 'ENODEV',
  20: 'ENOTDIR',
  22: 'EINVAL',
  23: 'ENFILE',
  24: 'EMFILE',
  25: 'ENOTTY',
  27: 'EFBIG',
  28: 'ENOSPC',
  29: 'ESPIPE',
  32: 'EPIPE',
  36: 'ENAMETOOLONG',
  38: 'ENOSYS',
  98: 'EADDRINUSE',
  111: 'ECONNREFUSED',
};

/** Positive errno values, by name. */
export const Errno = Object.fromEntries(
  Object.entries(ERRNO).map(([value, name]) => [name, Number(value)]),
) as Readonly<Record<string, number>>;

/** 'EBUSY' for 16; 'E123' for a number without a name here. */
export function errnoName(errno: number): string {
  return ERRNO[errno] ?? `E${errno}`;
}

/** An address in hexadecimal. */
export function hex(address: bigint): string {
  return `0x${address.toString(16)}`;
}
