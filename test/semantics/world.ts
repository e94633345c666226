// What a test of the kernel's semantics may do, and all it may do: the port, memory, and actors that touch it.
// The tests of this folder are written against this interface, so that whatever answers it (the machine's own
// kernel in real.ts) can be held to the same statements.
//
// Rules:
//  - Everything is synchronous. A step returns when the world is quiet: the actor has done it, or is asleep.
//  - The test itself never touches watched memory; actors do.
//  - Outcomes are plain values, to stand in tables: a number ≥ 0, or the name of what happened.

import type { Kernel } from '../../src/kernel.js';

/** Kinds of memory. All are readable and writable unless `MapOptions.protection` says otherwise. */
export type MemoryKind =
  /** Private anonymous, in small pages. */
  | 'anonymous'
  /** Private anonymous, aligned and asked to be in transparent huge pages. */
  | 'thp'
  /** Shared mapping of a memfd, with an alias. */
  | 'shmem'
  /** Private mapping of a memfd; the alias is shared. */
  | 'private-shmem'
  /** Shared mapping of a memfd in huge pages, with an alias. */
  | 'hugetlb'
  /** Private anonymous, in huge pages of the pool that are not reserved (MAP_NORESERVE). */
  | 'private-hugetlb'
  /** Shared and private mapping of a file on a disk. */
  | 'file'
  | 'private-file'
  /** Shared mapping of a memfd that is open for reading only; cannot be written. */
  | 'read-only-shmem';

/** What a world may lack, beside kinds of memory. */
export type Facility =
  | MemoryKind
  /** Guard regions (MADV_GUARD_INSTALL). */
  | 'guard'
  /** Processes with less privilege. */
  | 'privileges'
  /** Descriptors as the operating system has them: pread, write, /proc, dup, epoll, a limit. */
  | 'descriptors'
  /** The device /dev/userfaultfd. */
  | 'device'
  /** Node's child_process. */
  | 'child-process';

export interface MapOptions {
  /** PROT_READ 1 | PROT_WRITE 2; both by default. */
  protection?: number;
  /** Bytes that the object behind it has, where it is shorter than the mapping. */
  objectLength?: number;
}

/** Memory that was mapped. `alias` shows the same pages at another place, never watched. */
export interface Area {
  readonly address: bigint;
  readonly length: number;
  /** Bytes of one of its pages, or of its huge pages. */
  readonly pageSize: number;
  readonly alias: bigint;
}

/** Whoever touches the byte, or makes the kernel do it for him by a system call. */
export type By = 'user' | 'kernel';

/**
 * What became of a step: what it answered, the name of an errno, the signal that memory raised, or where it is
 * asleep: in a page fault, waiting for an event to be read, or in a read. 'gone': the process has left its memory.
 */
export type Outcome = number | string;

/** What the page tables say of a page: bits 63, 62, 57, 56 of its word in pagemap. */
export interface PageBits {
  present: boolean;
  /** Swapped, or a marker. */
  swap: boolean;
  uffdWp: boolean;
  /** Mapped once, and not the zero page. */
  exclusive: boolean;
}

/** A thread of the test's process, or a process that was forked from it; one step at a time. */
export interface Actor {
  readonly tid: number;
  /** What became of the last step by now. */
  outcome(): Outcome;
  /** The byte at an address. */
  read(address: bigint, by?: By): Outcome;
  write(address: bigint, value: number, by?: By): Outcome;
  /** The byte at an address of another process, by process_vm_readv. */
  readOf(process: Actor, address: bigint): Outcome;
  madvise(address: bigint, length: number, advice: number): Outcome;
  munmap(address: bigint, length: number): Outcome;
  /** The new address as a number. */
  mremap(address: bigint, oldLength: number, newLength: number, flags: number, to?: bigint): Outcome;
  mprotect(address: bigint, length: number, protection: number): Outcome;
  mlock(address: bigint, length: number): Outcome;
  /** Maps fresh private anonymous memory over what is there (MAP_FIXED); its address as a number. */
  overlay(address: bigint, length: number): Outcome;
  /** Forks; the child answers steps once the fork is through. It shares descriptors unless told otherwise. */
  fork(descriptors?: 'shared' | 'copied'): Actor;
  exit(): Outcome;
  exec(): Outcome;
  /** Kills a forked one, asleep or not, and waits until it is gone. */
  kill(): void;
  /** Interrupts a sleeping actor by a signal that it handles. */
  interrupt(): void;
  /** Gives up its privileges; for a forked one. */
  dropPrivileges(): Outcome;
  /** The port's calls, made by this actor. */
  userfaultfd(flags: number): Outcome;
  ioctl(fd: number, request: number, at: number): Outcome;
  /** read(2) to an address. */
  readInto(fd: number, address: bigint, length: number): Outcome;
  /** The page tables of its process. */
  page(address: bigint): PageBits;
}

export interface World {
  readonly kernel: Kernel;
  /** Where the structs of calls lie; what actors pass to `ioctl` too. */
  readonly memory: WebAssembly.Memory;
  /** Why it has not got something; undefined where it has. */
  lacks(what: Facility): string | undefined;
  /** Fresh memory with room on both sides. Pages are not there yet. */
  map(kind: MemoryKind, pages: number, options?: MapOptions): Area;
  /** Addresses where nothing is mapped, for as long as the world is there. */
  vacant(pages: number): bigint;
  /** What the page tables of the test's own process say of `count` pages. */
  pages(address: bigint, count: number): PageBits[];
  /** Bytes of a page that is there, of the test's own process: nobody faults. */
  peek(address: bigint, length: number): Uint8Array;
  /** A thread of the test's own process. */
  thread(): Actor;
  /** A descriptor's unread faults, and those together with the faults that were read and sleep on. */
  queue(fd: number): { pending: number; total: number };
  /** Runs a body while no other test uses the machine's pool of huge pages. */
  withPool(body: () => void): Promise<void>;
  /** Runs a body while no new descriptor can be had. */
  withoutDescriptors(body: () => void): void;
  /** Waits for something that callbacks of the port's event loop bring about. */
  during<T>(something: T | Promise<T>): Promise<T>;
  /** Something to do at the end: first in, last out. */
  defer(end: () => void): void;
  /** Ends what is deferred, then the actors, then the memory. */
  close(): void;
}
