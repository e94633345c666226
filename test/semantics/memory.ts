// Memory of every kind, at fixed addresses far below those that the kernel chooses: a hole that a test makes stays a
// hole, and a mapping has room to grow.

import { existsSync, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync, statfsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { libc } from '../../shim/libc.js';
import {
  MADV_NOHUGEPAGE,
  MAP_ANONYMOUS,
  MAP_HUGETLB,
  MAP_NORESERVE,
  MAP_PRIVATE,
  MAP_SHARED,
  madvise,
  mmap,
  munmap,
  PROT_READ,
  PROT_WRITE,
  pageSize,
} from '../../shim/memory.js';
import type { Area, Facility, MapOptions, MemoryKind } from './world.js';

const MAP_FIXED_NOREPLACE = 0x100000;
const MADV_HUGEPAGE = 14;
const MADV_GUARD_INSTALL = 102;
const MFD_CLOEXEC = 1;
const MFD_HUGETLB = 4;
const O_RDONLY = 0;
const TMPFS = 0x01021994;
const EEXIST = 17n;

const THP = '/sys/kernel/mm/transparent_hugepage/enabled';

/**
 * Address of the next mapping. It is above the addresses that V8 requests (2^46), since V8 would put its own pages
 * into the free space between these mappings, and below the addresses that the kernel chooses by itself.
 */
let next = 0x4800_0000_0000n;

let hugePage: number | undefined;

/** Bytes of a huge page; 0 if this kernel has none. */
function hugePageSize(): number {
  hugePage ??=
    Number(/^Hugepagesize:\s*(\d+) kB/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1] ?? 0) * 1024;
  return hugePage;
}

/** A folder on a disk, if the system has one: /tmp may be a tmpfs. */
function diskFolder(): string | undefined {
  const here = dirname(fileURLToPath(import.meta.url));
  return [tmpdir(), here].find((folder) => statfsSync(folder).type !== TMPFS);
}

export function lacks(what: Facility): string | undefined {
  switch (what) {
    case 'hugetlb':
    case 'private-hugetlb':
      return hugePageSize() === 0 ? 'this kernel has no huge pages' : undefined;
    case 'thp':
      if (!existsSync(THP)) return 'this kernel has no transparent huge pages';
      return readFileSync(THP, 'utf8').includes('[never]') ? `${THP} says never` : undefined;
    case 'file':
    case 'private-file':
      return diskFolder() ? undefined : 'there is no folder on a disk here';
    case 'guard':
      return lacksGuards();
    case 'device':
      return existsSync('/dev/userfaultfd') ? undefined : 'there is no /dev/userfaultfd';
    case 'privileges':
      return process.getuid?.() === 0 ? undefined : 'only root can drop privileges';
    default:
      return undefined;
  }
}

/** Tries to install a guard on a page of its own; the reason if that fails. */
function lacksGuards(): string | undefined {
  const page = pageSize();
  const address = mmap(0n, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS);
  const answer = madvise(address, page, MADV_GUARD_INSTALL);
  munmap(address, page);
  return answer === 0 ? undefined : 'this kernel has no guard regions';
}

export class RealMemory {
  readonly #slots: { address: bigint; length: number }[] = [];
  readonly #descriptors: number[] = [];
  readonly #folders: string[] = [];

  map(
    kind: MemoryKind,
    pages: number,
    { protection = PROT_READ | PROT_WRITE, objectLength }: MapOptions,
  ): Area {
    const huge = kind === 'hugetlb' || kind === 'private-hugetlb';
    const unit = huge ? hugePageSize() : pageSize();
    const length = pages * unit;
    const aliased = ['shmem', 'private-shmem', 'hugetlb', 'file'].includes(kind);
    const object = this.#object(kind, objectLength ?? length);
    const priv = ['anonymous', 'thp', 'private-hugetlb', 'private-shmem', 'private-file'].includes(kind);
    const pool = kind === 'private-hugetlb' ? MAP_HUGETLB : 0;
    const flags = (priv ? MAP_PRIVATE : MAP_SHARED) | (object < 0 ? MAP_ANONYMOUS | MAP_NORESERVE : 0) | pool;
    const address = this.#place(length, kind === 'read-only-shmem' ? PROT_READ : protection, flags, object);
    if (object < 0 && !huge) madvise(address, length, kind === 'thp' ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    const alias = aliased ? this.#place(length, PROT_READ | PROT_WRITE, MAP_SHARED, object) : 0n;
    return { address, length, pageSize: unit, alias };
  }

  vacant(pages: number): bigint {
    return this.#slot(pages * pageSize());
  }

  close(): void {
    for (const { address, length } of this.#slots) munmap(address, length);
    for (const fd of this.#descriptors) libc().close(fd);
    for (const folder of this.#folders) rmSync(folder, { recursive: true });
  }

  /** The descriptor of the file to map; −1 for anonymous memory. */
  #object(kind: MemoryKind, length: number): number {
    if (kind === 'anonymous' || kind === 'thp' || kind === 'private-hugetlb') return -1;
    if (kind === 'file' || kind === 'private-file') return this.#file(length);
    const fd = libc().memfd_create('semantics', kind === 'hugetlb' ? MFD_CLOEXEC | MFD_HUGETLB : MFD_CLOEXEC);
    if (fd < 0) throw new Error(`memfd_create: errno ${libc().errno()}`);
    this.#descriptors.push(fd);
    ftruncateSync(fd, length);
    if (kind !== 'read-only-shmem') return fd;
    const readOnly = openSync(`/proc/self/fd/${fd}`, O_RDONLY);
    this.#descriptors.push(readOnly);
    return readOnly;
  }

  #file(length: number): number {
    const folder = mkdtempSync(join(diskFolder() as string, 'uffd-'));
    this.#folders.push(folder);
    const fd = openSync(join(folder, 'file'), 'w+');
    this.#descriptors.push(fd);
    ftruncateSync(fd, length);
    return fd;
  }

  #place(length: number, protection: number, flags: number, fd: number): bigint {
    for (;;) {
      const wanted = this.#slot(length);
      const address = mmap(wanted, length, protection, flags | MAP_FIXED_NOREPLACE, fd);
      if (address === wanted) return address;
      if (address !== -EEXIST) throw new Error(`mmap: errno ${-address}`);
      // Another mapping is there, which this module did not make and must not unmap.
      this.#slots.pop();
    }
  }

  /** Reserves addresses for `length` bytes. At least `length` bytes plus a huge page are left free after them. */
  #slot(length: number): bigint {
    const unit = BigInt(hugePageSize() || 1 << 21);
    const room = (BigInt(2 * length) / unit + 2n) * unit;
    const address = next;
    next += room;
    this.#slots.push({ address, length: Number(room) });
    return address;
  }
}
