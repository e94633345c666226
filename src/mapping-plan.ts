// How memory is asked for: the kinds there are, in pages of which size, and where it is put.

import { statfsSync } from 'node:fs';
import * as memory from '../shim/memory.js';
import { checkInteger, outOfRange } from './arguments.js';
import { UffdError } from './errors.js';
import { wholePages } from './whole-pages.js';

export interface MappingOptions {
  /** Whether the bytes may be written. Default true. */
  writable?: boolean;
}

/** Options of memory that the system makes. */
export interface MemoryOptions extends MappingOptions {
  /**
   * Bytes of a page, a power of two. Default: the system's. Larger ones are huge pages out of the system's pool
   * (`vm.nr_hugepages`), of a size that it has: 2 MiB, say.
   */
  pageSize?: number;
}

export interface AnonymousOptions extends MemoryOptions {
  /** Whether the kernel may back it with transparent huge pages; it is aligned to them then. Default false. */
  transparentHuge?: boolean;
}

export interface FileOptions extends MappingOptions {
  /** Whether writes reach the file, and other mappings of it. Default false: they stay private. */
  shared?: boolean;
}

/** What a mapping is made of. */
export interface Plan {
  length: number;
  pageSize: number;
  protection: number;
  flags: number;
  /** −1: no file. */
  fd: number;
  /** Bytes to align the address to. */
  alignment: number;
}

/** What statfs(2) calls hugetlbfs. */
const HUGETLBFS_MAGIC = 0x958458f6;

/** Maps it, at a multiple of its alignment: the address. */
export function place(plan: Plan): bigint {
  const { length, pageSize, protection, flags, fd, alignment } = plan;
  const mapped = wholePages(length, pageSize);
  // Where the kernel aligns by itself, there is nothing to cut off.
  const slack = alignment > pageSize ? alignment - pageSize : 0;
  const found = memory.mmap(0n, mapped + slack, protection, flags, fd);
  if (found < 0n) throw new UffdError(Number(found), 'mmap', sizes(length, pageSize));
  const address = found + BigInt(slack && (alignment - Number(found % BigInt(alignment))) % alignment);
  const before = Number(address - found);
  if (before > 0) memory.munmap(found, before);
  if (slack > before) memory.munmap(address + BigInt(mapped), slack - before);
  return address;
}

export function protectionOf({ writable = true }: MappingOptions): number {
  return memory.PROT_READ | (writable ? memory.PROT_WRITE : 0);
}

/** Bytes of the pages that a file is mapped in: one on hugetlbfs comes in its huge pages. */
export function filePageSize(fd: number): number {
  const { type, bsize } = statfsSync(`/proc/self/fd/${fd}`);
  return type === HUGETLBFS_MAGIC ? bsize : memory.pageSize();
}

/** Bytes of a transparent huge page: what one page of page table entries maps, of 8 bytes each. */
export function transparentHugeSize(): number {
  return memory.pageSize() ** 2 / 8;
}

export function checkPageSize(size: number): void {
  checkInteger(size, 'pageSize', memory.pageSize(), 2 ** 34);
  if (!Number.isInteger(Math.log2(size))) throw outOfRange('pageSize', 'a power of two', size);
}

/** What an error may say of memory that could not be had. */
export function sizes(length: number, pageSize: number): { length: number; pageSize?: number } {
  return pageSize === memory.pageSize() ? { length } : { length, pageSize };
}
