// Memory calls on Linux. Addresses are bigint; a failure is −errno, for mmap and mremap as a bigint.

import { readFileSync, statfsSync } from 'node:fs';
import { constants } from 'node:os';
import { libc } from './libc.js';

export const PROT_READ = 1;
export const PROT_WRITE = 2;
export const MAP_SHARED = 0x01;
export const MAP_PRIVATE = 0x02;
export const MAP_FIXED = 0x10;
export const MAP_ANONYMOUS = 0x20;
export const MAP_NORESERVE = 0x4000;
export const MAP_HUGETLB = 0x40000;
export const MREMAP_MAYMOVE = 1;
export const MREMAP_FIXED = 2;
export const MREMAP_DONTUNMAP = 4;
export const MADV_WILLNEED = 3;
export const MADV_DONTNEED = 4;
export const MADV_HUGEPAGE = 14;
export const MADV_NOHUGEPAGE = 15;
const MFD_CLOEXEC = 1;
const MFD_HUGETLB = 4;
/** Where mmap's and memfd_create's flags carry log2 of the huge page's size. */
const HUGE_SHIFT = 26;
const F_DUPFD_CLOEXEC = 1030;
const SC_PAGESIZE = 30;

export function pageSize(): number {
  return libc().sysconf(SC_PAGESIZE);
}

export function mmap(
  address: bigint,
  length: number,
  protection: number,
  flags: number,
  fd = -1,
  offset = 0,
): bigint {
  const c = libc();
  return addressOrErrno(c.mmap(address, length, protection, flags, fd, offset), c.errno());
}

export function munmap(address: bigint, length: number): number {
  const c = libc();
  return c.munmap(address, length) < 0 ? -c.errno() : 0;
}

export function mremap(
  address: bigint,
  oldLength: number,
  newLength: number,
  flags: number,
  to = 0n,
): bigint {
  const c = libc();
  return addressOrErrno(c.mremap(address, oldLength, newLength, flags, to), c.errno());
}

export function madvise(address: bigint, length: number, advice: number): number {
  const c = libc();
  return c.madvise(address, length, advice) < 0 ? -c.errno() : 0;
}

/** The flags that ask for huge pages of a size, for mmap; none for the system's own page size. */
export function hugeFlags(size: number): number {
  return size === pageSize() ? 0 : MAP_HUGETLB | (Math.log2(size) << HUGE_SHIFT);
}

/**
 * A file in memory of `length` bytes, close-on-exec. `size`: bytes of its pages; others than the system's are
 * huge pages out of the pool.
 */
export function memfdCreate(name: string, length: number, size = pageSize()): number {
  const c = libc();
  const huge = size === pageSize() ? 0 : MFD_HUGETLB | (Math.log2(size) << HUGE_SHIFT);
  const fd = c.memfd_create(name, MFD_CLOEXEC | huge);
  if (fd < 0) return -c.errno();
  if (c.ftruncate(fd, length) < 0) {
    const errno = c.errno();
    c.close(fd);
    return -errno;
  }
  return fd;
}

/** Another descriptor of the same file, close-on-exec. */
export function duplicate(fd: number): number {
  const c = libc();
  const copy = c.fcntl(fd, F_DUPFD_CLOEXEC, 0);
  return copy < 0 ? -c.errno() : copy;
}

/** A mapping of a process, as /proc/PID/smaps says it. */
interface MappingSeen {
  /** KernelPageSize, in bytes. */
  readonly pageSize: number;
  /** What is mapped: a path, a name of the kernel's, or nothing for anonymous memory. */
  readonly name: string;
  /** Whether a userfaultfd watches it. */
  readonly watched: boolean;
}

/** Modes of a registration, among the VmFlags: missing, write-protect, minor. */
const WATCHED = /^VmFlags:.* u[mwi]( |$)/m;

/** The mapping of a process that holds `address`, or −errno. `pid` 0: this process. */
function mappingAt(pid: number, address: bigint): MappingSeen | number {
  let text: string;
  try {
    text = readFileSync(`/proc/${pid || 'self'}/smaps`, 'latin1');
  } catch (error) {
    return (error as NodeJS.ErrnoException).errno ?? -constants.errno.EIO;
  }
  for (const [, start, end, name = '', fields = ''] of text.matchAll(
    /^([0-9a-f]+)-([0-9a-f]+) (?:\S+ +){3}\d+ *(.*)\n((?:[A-Z]\w+:.*\n)*)/gm,
  )) {
    if (address < BigInt(`0x${start}`) || address >= BigInt(`0x${end}`)) continue;
    const [, size] = /^KernelPageSize:\s*(\d+) kB$/m.exec(fields) ?? [];
    return { pageSize: Number(size) * 1024, name, watched: WATCHED.test(fields) };
  }
  return -constants.errno.ENOENT;
}

/** What any userfaultfd watches in this process; undefined: it cannot be seen. */
export function watchedAreas(): { start: bigint; end: bigint }[] | undefined {
  let text: string;
  try {
    text = readFileSync('/proc/self/smaps', 'latin1');
  } catch {
    return undefined;
  }
  return [...text.matchAll(/^([0-9a-f]+)-([0-9a-f]+) .*\n((?:[A-Z]\w+:.*\n)*)/gm)].flatMap(
    ([, start, end, fields = '']) => {
      return WATCHED.test(fields) ? [{ start: BigInt(`0x${start}`), end: BigInt(`0x${end}`) }] : [];
    },
  );
}

/** KernelPageSize of the mapping that holds `address`, in bytes, or −errno. `pid` 0: this process. */
export function pageSizeAt(pid: number, address: bigint): number {
  const mapping = mappingAt(pid, address);
  return typeof mapping === 'number' ? mapping : mapping.pageSize;
}

/**
 * The same of memory that was just registered. −ENOENT where the process has none there, or none that is watched: then
 * it is not the process whose memory was registered.
 */
export function watchedPageSizeAt(pid: number, address: bigint): number {
  const mapping = mappingAt(pid, address);
  if (typeof mapping === 'number') return mapping;
  return mapping.watched ? mapping.pageSize : -constants.errno.ENOENT;
}

/** Of shared memory: a memfd, shmget, /dev/zero, huge pages without a file. */
const SHARED_MEMORY = /^\/(memfd:|SYSV|dev\/zero|anon_hugepage)/;
const TMPFS_MAGIC = 0x01021994;
const HUGETLBFS_MAGIC = 0x958458f6;

/**
 * What lies at an address that is watched, in words, if it is a kind of memory that can be watched for writes and not
 * filled: a file, a device, secret memory. Undefined: any other, or it cannot be told.
 */
export function unfillableAt(pid: number, address: bigint): string | undefined {
  const mapping = mappingAt(pid, address);
  if (typeof mapping === 'number' || !mapping.watched) return undefined;
  const { name } = mapping;
  if (name === '' || SHARED_MEMORY.test(name) || /^\[(heap|stack|anon)/.test(name)) return undefined;
  if (name.startsWith('/secretmem')) return 'secret memory (memfd_secret)';
  if (!name.startsWith('/')) return `the kernel's own memory (${name})`;
  try {
    if ([TMPFS_MAGIC, HUGETLBFS_MAGIC].includes(statfsSync(name).type)) return undefined;
  } catch {
    // It was deleted, or is in another mount namespace: its name is what is known of it.
  }
  return `a mapping of the file ${name}`;
}

/** The bytes at an address. The buffer does not own them, and does not keep them mapped. */
export function view(address: bigint, length: number): ArrayBuffer {
  return libc().koffi.view(address, length);
}

/** mmap and mremap answer all ones (MAP_FAILED) where they fail. */
function addressOrErrno(result: number | bigint, errno: number): bigint {
  const address = BigInt.asUintN(64, BigInt(result));
  return address === 0xffffffffffffffffn ? BigInt(-errno) : address;
}
