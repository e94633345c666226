// Access to memory that may be unmapped or protected, or whose file may be too short.
//
// Rule: the kernel does the copying. An access that would raise SIGSEGV or SIGBUS in this process makes the call fail
// with EFAULT instead.

import { constants } from 'node:os';
import { type Libc, libc } from './libc.js';

const { EFAULT, ENOMEM } = constants.errno;
const MS_ASYNC = 1;

/**
 * Copies the bytes at `address` into `into`.
 *
 * @returns bytes copied: fewer than requested if the next page cannot be read. −errno if the call itself
 *   is refused
 */
export function readMemory(address: bigint, into: Uint8Array): number {
  return transfer(libc().process_vm_readv, address, libc().koffi.address(into), into.length);
}

/**
 * Copies `length` bytes at `from` to `to`.
 *
 * @returns bytes copied: fewer than requested if the next page cannot be read or written. −errno if the call itself is
 *   refused
 */
export function copyMemory(from: bigint, to: bigint, length: number): number {
  return transfer(libc().process_vm_readv, from, to, length);
}

/**
 * Copies `from` to `address`.
 *
 * @returns bytes copied: fewer than requested if the next page cannot be written. −errno if the call
 *   itself is refused
 */
export function writeMemory(address: bigint, from: Uint8Array): number {
  return transfer(libc().process_vm_writev, address, libc().koffi.address(from), from.length);
}

/** The kernel may stop at any page boundary. Only the next call shows whether the page there can be accessed. */
function transfer(call: Libc['process_vm_readv'], address: bigint, local: bigint, length: number): number {
  const c = libc();
  let done = 0;
  while (done < length) {
    const left = BigInt(length - done);
    const here = new BigUint64Array([local + BigInt(done), left]);
    const there = new BigUint64Array([address + BigInt(done), left]);
    const copied = call(process.pid, here, 1, there, 1, 0);
    const errno = c.errno();
    if (copied < 0) return errno === EFAULT ? done : -errno;
    done += copied;
  }
  return done;
}

/** Whether all of a range is mapped: 1, or 0 if it has a hole. −errno */
export function isMapped(address: bigint, length: number): number {
  const c = libc();
  // MS_ASYNC starts no I/O (since Linux 2.6.19), so msync only checks the mappings.
  const result = c.msync(address, length, MS_ASYNC);
  const errno = c.errno();
  if (result === 0) return 1;
  return errno === ENOMEM ? 0 : -errno;
}
