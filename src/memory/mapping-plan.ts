// How memory is mapped: its kind, its page size, and its alignment.

import * as memory from '../../shim/memory.js';
import { checkInteger, outOfRange } from '../errors/arguments.js';
import { UffdError } from '../errors/errors.js';
import { wholePages } from './whole-pages.js';

export interface MappingOptions {
  /** Whether the bytes may be written. Default true. */
  writable?: boolean;
}

/** Options of memory that the system makes. */
export interface MemoryOptions extends MappingOptions {
  /**
   * Bytes of a page, a power of two. Default: the system's page size. Larger pages are huge pages from the system's
   * pool (`vm.nr_hugepages`), of a size that the system supports, such as 2 MiB.
   */
  pageSize?: number;
}

export interface AnonymousOptions extends MemoryOptions {
  /** Whether the kernel may use transparent huge pages; the memory is then aligned to them. Default false. */
  transparentHuge?: boolean;
}

export interface FileOptions extends MappingOptions {
  /** Whether writes reach the file and its other mappings. Default false: they stay private. */
  shared?: boolean;
}

/** How to make a mapping. */
export interface Plan {
  length: number;
  pageSize: number;
  protection: number;
  flags: number;
  /** −1: no file. */
  fd: number;
  /** Alignment of the address, in bytes. */
  alignment: number;
}

/** Makes the mapping at a multiple of its alignment, and returns its address. */
export function place(plan: Plan): bigint {
  const { length, pageSize, protection, flags, fd, alignment } = plan;
  const mapped = wholePages(length, pageSize);
  // The kernel aligns a mapping to its page size. For a larger alignment, map more, and cut off what is too much.
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

/** Page size in which a file is mapped, in bytes: a file on hugetlbfs is mapped in huge pages. */
export function filePageSize(fd: number): number {
  return memory.hugeFilePageSize(fd) ?? memory.pageSize();
}

/** Bytes of a transparent huge page: as many as one page table maps, which is one page of entries of 8 bytes. */
export function transparentHugeSize(): number {
  return memory.pageSize() ** 2 / 8;
}

export function checkPageSize(size: number): void {
  checkInteger(size, 'pageSize', memory.pageSize(), 2 ** 34);
  if (!Number.isInteger(Math.log2(size))) throw outOfRange('pageSize', 'a power of two', size);
}

/** Facts for the error if memory could not be mapped. */
export function sizes(length: number, pageSize: number): { length: number; pageSize?: number } {
  return pageSize === memory.pageSize() ? { length } : { length, pageSize };
}
