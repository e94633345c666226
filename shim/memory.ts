// Memory calls on Linux. Addresses are bigint. A call that fails returns −errno; mmap and mremap return it as a bigint.

import { closeSync, openSync, readFileSync, readSync, statfsSync } from 'node:fs';
import { constants } from 'node:os';
import { libc, orErrno } from './libc.js';

export const PROT_NONE = 0;
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
export const MADV_DONTFORK = 10;
export const MADV_HUGEPAGE = 14;
export const MADV_NOHUGEPAGE = 15;
/** Linux 5.14. */
export const MADV_POPULATE_READ = 22;
export const MADV_POPULATE_WRITE = 23;
const MFD_CLOEXEC = 1;
const MFD_ALLOW_SEALING = 2;
const MFD_HUGETLB = 4;
const F_ADD_SEALS = 1033;
/** F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_FUTURE_WRITE (Linux 5.1). */
const SEALS = 0x1 | 0x2 | 0x4 | 0x10;
/** Position of log2 of the huge page size in the flags of mmap and memfd_create. */
const HUGE_SHIFT = 26;
const FALLOC_FL_KEEP_SIZE_PUNCH_HOLE = 3;
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
  return orErrno(libc().munmap(address, length));
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
  return orErrno(libc().madvise(address, length, advice));
}

/** madvise in a thread of its own, because it waits until a userfaultfd's event is read. 0, or −1 if it failed. */
export function madviseInThread(address: bigint, length: number, advice: number): Promise<number> {
  const call = libc().madvise as unknown as { async(...values: unknown[]): void };
  return new Promise((resolve, reject) => {
    call.async(address, length, advice, (error: Error | null, result: number) =>
      error ? reject(error) : resolve(result),
    );
  });
}

export function mprotect(address: bigint, length: number, protection: number): number {
  return orErrno(libc().mprotect(address, length, protection));
}

/** Frees the memory of a part of a file; its bytes are zero from then on. */
export function punchHole(fd: number, offset: number, length: number): number {
  return orErrno(libc().fallocate(fd, FALLOC_FL_KEEP_SIZE_PUNCH_HOLE, offset, length));
}

const SHMEM_ENABLED = '/sys/kernel/mm/transparent_hugepage/shmem_enabled';
const SETTING_MOST = 100;

/**
 * The setting that says whether a write to an in-memory file makes only the pages that it writes, and never a huge page
 * around them. `madvise` does not say it, because a write has no mapping. Root may change the setting at any time.
 */
export class SmallPageWrites {
  readonly #fd: number;
  readonly #setting = Buffer.alloc(SETTING_MOST);
  readonly #known = Buffer.alloc(SETTING_MOST);
  #small: boolean;

  constructor() {
    this.#fd = openSetting();
    // The kernel was built without transparent huge pages.
    this.#small = this.#fd === -constants.errno.ENOENT;
  }

  /** Whether only small pages are made now; false if that is not known. */
  get only(): boolean {
    if (this.#fd < 0) return this.#small;
    if (readSync(this.#fd, this.#setting, 0, SETTING_MOST, 0) === 0) return false;
    if (!this.#setting.equals(this.#known)) {
      this.#setting.copy(this.#known);
      this.#small = /\[(never|deny|advise)\]/.test(this.#setting.toString('latin1'));
    }
    return this.#small;
  }

  close(): void {
    if (this.#fd >= 0) closeSync(this.#fd);
  }
}

/** Opens the setting; −errno. */
function openSetting(): number {
  try {
    return openSync(SHMEM_ENABLED, 'r');
  } catch (error) {
    return (error as NodeJS.ErrnoException).errno ?? -constants.errno.EIO;
  }
}

/** mmap's flags for huge pages of a size; 0 for the system's own page size. */
export function hugeFlags(size: number): number {
  return size === pageSize() ? 0 : MAP_HUGETLB | (Math.log2(size) << HUGE_SHIFT);
}

/**
 * Makes an in-memory file of `length` bytes, close-on-exec. `size`: its page size. A size other than the system's means
 * huge pages from the pool.
 */
export function memfdCreate(name: string, length: number, size = pageSize()): number {
  const huge = size === pageSize() ? 0 : MFD_HUGETLB | (Math.log2(size) << HUGE_SHIFT);
  return memfdWith(name, length, huge);
}

/** As `memfdCreate`, in pages of the system's size, for a file that can be sealed. */
export function sealableMemfd(name: string, length: number): number {
  return memfdWith(name, length, MFD_ALLOW_SEALING);
}

/**
 * Seals an in-memory file: from now on it has this size, and bytes of it are only written through mappings that exist.
 */
export function sealMemfd(fd: number): number {
  return orErrno(libc().fcntl(fd, F_ADD_SEALS, SEALS));
}

function memfdWith(name: string, length: number, flags: number): number {
  const c = libc();
  const fd = c.memfd_create(name, MFD_CLOEXEC | flags);
  if (fd < 0) return -c.errno();
  if (c.ftruncate(fd, length) < 0) {
    const errno = c.errno();
    c.close(fd);
    return -errno;
  }
  return fd;
}

/** Duplicates a descriptor, close-on-exec. */
export function duplicate(fd: number): number {
  return orErrno(libc().fcntl(fd, F_DUPFD_CLOEXEC, 0));
}

/** A mapping of a process, according to /proc/PID/smaps. */
interface SmapsEntry {
  readonly start: bigint;
  /** Exclusive. */
  readonly end: bigint;
  /** What is mapped: a path, a name that the kernel gives, or '' for anonymous memory. */
  readonly name: string;
  /** The lines of smaps that describe it. */
  readonly fields: string;
}

/**
 * VmFlags of a mapping that is registered with a userfaultfd: in any mode (missing, write-protect, minor), and in
 * missing mode.
 */
const WATCHED = /^VmFlags:.* u[mwi]( |$)/m;
const WATCHED_FOR_MISSING = /^VmFlags:.* um( |$)/m;

/** The mappings of a process. `pid` 0: this process. @throws if they cannot be read */
function* mappingsOf(pid: number): Generator<SmapsEntry> {
  for (const [, start, end, name = '', fields = ''] of readFileSync(
    `/proc/${pid || 'self'}/smaps`,
    'latin1',
  ).matchAll(/^([0-9a-f]+)-([0-9a-f]+) (?:\S+ +){3}\d+ *(.*)\n((?:[A-Z]\w+:.*\n)*)/gm)) {
    yield { start: BigInt(`0x${start}`), end: BigInt(`0x${end}`), name, fields };
  }
}

/**
 * The private anonymous memory of a process, in ascending order, adjacent mappings as one; empty if that cannot be read.
 * /proc/PID/smaps would walk the page tables of the whole process.
 */
export function anonymousAreas(pid: number): { start: bigint; end: bigint }[] {
  const areas: { start: bigint; end: bigint }[] = [];
  let maps: string;
  try {
    maps = readFileSync(`/proc/${pid}/maps`, 'latin1');
  } catch {
    // The mappings cannot be read: for example, it is another user's process.
    return areas;
  }
  for (const [, from, to] of maps.matchAll(/^([0-9a-f]+)-([0-9a-f]+) ...p \S+ \S+ 0 /gm)) {
    const [start, end] = [BigInt(`0x${from}`), BigInt(`0x${to}`)];
    const last = areas.at(-1);
    if (last?.end === start) last.end = end;
    else areas.push({ start, end });
  }
  return areas;
}

/** The mapping of a process that holds `address`, or −errno. */
function mappingAt(pid: number, address: bigint): SmapsEntry | number {
  try {
    for (const entry of mappingsOf(pid)) if (address >= entry.start && address < entry.end) return entry;
    return -constants.errno.ENOENT;
  } catch (error) {
    return (error as NodeJS.ErrnoException).errno ?? -constants.errno.EIO;
  }
}

/** The areas of this process that any userfaultfd watches; undefined: its mappings cannot be read. */
export function watchedAreas(): { start: bigint; end: bigint }[] | undefined {
  try {
    return [...mappingsOf(0)].filter(({ fields }) => WATCHED.test(fields));
  } catch {
    return undefined;
  }
}

/**
 * Whether a userfaultfd watches the mapping at an address of a process for missing pages. Also false if this process
 * may not read the mappings.
 */
export function watchesMissing(pid: number, address: bigint): boolean {
  const mapping = mappingAt(pid, address);
  return typeof mapping !== 'number' && WATCHED_FOR_MISSING.test(mapping.fields);
}

/** KernelPageSize of the mapping that holds `address`, in bytes, or −errno. `pid` 0: this process. */
export function pageSizeAt(pid: number, address: bigint): number {
  const mapping = mappingAt(pid, address);
  return typeof mapping === 'number' ? mapping : pageSizeOf(mapping);
}

function pageSizeOf({ fields }: SmapsEntry): number {
  const [, size] = /^KernelPageSize:\s*(\d+) kB$/m.exec(fields) ?? [];
  return Number(size) * 1024;
}

/**
 * As `pageSizeAt`, for memory that was just registered. −ENOENT: the process has no watched mapping there, so it is not
 * the process whose memory was registered.
 */
export function watchedPageSizeAt(pid: number, address: bigint): number {
  const mapping = mappingAt(pid, address);
  if (typeof mapping === 'number') return mapping;
  return WATCHED.test(mapping.fields) ? pageSizeOf(mapping) : -constants.errno.ENOENT;
}

/** Names of shared memory: a memfd, shmget, /dev/zero, huge pages without a file. */
const SHARED_MEMORY = /^\/(memfd:|SYSV|dev\/zero|anon_hugepage)/;
const TMPFS_MAGIC = 0x01021994;
const HUGETLBFS_MAGIC = 0x958458f6;

/**
 * Describes the mapping at a watched address if its kind of memory can be watched for writes but not filled: a file, a
 * device, secret memory. Undefined: the mapping is of another kind, or cannot be read.
 */
export function unfillableAt(pid: number, address: bigint): string | undefined {
  const mapping = mappingAt(pid, address);
  if (typeof mapping === 'number' || !WATCHED.test(mapping.fields)) return undefined;
  const { name } = mapping;
  if (name === '' || SHARED_MEMORY.test(name) || /^\[(heap|stack|anon)/.test(name)) return undefined;
  if (name.startsWith('/secretmem')) return 'secret memory (memfd_secret)';
  if (!name.startsWith('/')) return `the kernel's own memory (${name})`;
  try {
    if ([TMPFS_MAGIC, HUGETLBFS_MAGIC].includes(statfsSync(name).type)) return undefined;
  } catch {
    // The file was deleted, or is in another mount namespace: only its name is known.
  }
  return `a mapping of the file ${name}`;
}

/** Page size of a file on hugetlbfs, in bytes; undefined for a file on another file system. */
export function hugeFilePageSize(fd: number): number | undefined {
  const { type, bsize } = statfsSync(`/proc/self/fd/${fd}`);
  return type === HUGETLBFS_MAGIC ? bsize : undefined;
}

/** The bytes at an address. The buffer does not own them, and does not keep them mapped. */
export function view(address: bigint, length: number): ArrayBuffer {
  return libc().koffi.view(address, length);
}

/** mmap and mremap return all ones (MAP_FAILED) on failure. */
function addressOrErrno(result: number | bigint, errno: number): bigint {
  const address = BigInt.asUintN(64, BigInt(result));
  return address === 0xffffffffffffffffn ? BigInt(-errno) : address;
}
