// The interface of a kernel to the semantics tests: the port, memory, and actors that touch the memory. The tests use
// only this interface, so that the same tests can check every implementation: the machine's own kernel (real.ts) and
// the simulated kernel (simulated.ts).
//
// Rules:
//  - A step is synchronous. It returns when the world is quiet: the actor has finished the step, or is asleep.
//  - The test itself never touches watched memory; actors do.
//  - Outcomes are plain values, so that tables can hold them: a number ≥ 0, or a name ('fault', 'EFAULT', 'SIGBUS').

import type { Kernel } from '../../src/kernel/port.js';

/** Kinds of memory. All are readable and writable unless `MapOptions.protection` says otherwise. */
export type MemoryKind =
  /** Private anonymous, in small pages. */
  | 'anonymous'
  /** Private anonymous, aligned, and advised to use transparent huge pages. */
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

/** Facilities that a world may lack, beside kinds of memory. */
export type Facility =
  | MemoryKind
  /** Guard regions (MADV_GUARD_INSTALL). */
  | 'guard'
  /** Processes without privileges. */
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
  /** Bytes of the mapped object, if it is shorter than the mapping. */
  objectLength?: number;
}

/** Mapped memory. `alias` is a second mapping of the same pages, which is never watched. */
export interface Area {
  readonly address: bigint;
  readonly length: number;
  /** Bytes of one page, or of one huge page in memory of huge pages. */
  readonly pageSize: number;
  readonly alias: bigint;
}

/** How an actor touches a byte: by its own access, or by a system call in which the kernel accesses the byte. */
export type By = 'user' | 'kernel';

/**
 * Outcome of a step: its result, the name of an errno, the signal that memory raised, or the place where the actor
 * sleeps: in a page fault, in a change until its event is read, or in a read. 'gone': the process has lost its memory.
 */
export type Outcome = number | string;

/** The state of a page in the page tables: bits 63, 62, 57, 56 of its word in pagemap. */
export interface PageBits {
  present: boolean;
  /** Swapped, or a marker. */
  swap: boolean;
  uffdWp: boolean;
  /** Mapped once, and not the zero page. */
  exclusive: boolean;
}

/** A thread of the test's process, or a process forked from it; it performs one step at a time. */
export interface Actor {
  readonly tid: number;
  /** The current outcome of the last step. */
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
  /** Maps fresh private anonymous memory over existing mappings (MAP_FIXED); its address as a number. */
  overlay(address: bigint, length: number): Outcome;
  /** Forks; the child accepts steps once the fork has returned. It shares descriptors by default. */
  fork(descriptors?: 'shared' | 'copied'): Actor;
  exit(): Outcome;
  exec(): Outcome;
  /** Kills a forked actor, asleep or not, and waits until its process has ended. */
  kill(): void;
  /** Interrupts a sleeping actor with a signal that it handles. */
  interrupt(): void;
  /** Drops all privileges; only for a forked actor. */
  dropPrivileges(): Outcome;
  /** The port's calls, made by this actor. */
  userfaultfd(flags: number): Outcome;
  ioctl(fd: number, request: number, at: number): Outcome;
  /** read(2) into memory at an address. */
  readInto(fd: number, address: bigint, length: number): Outcome;
  /** The state of a page in the page tables of the actor's process. */
  page(address: bigint): PageBits;
}

export interface World {
  readonly kernel: Kernel;
  /** Memory for the structs of calls, including those of an actor's `ioctl`. */
  readonly memory: WebAssembly.Memory;
  /** The reason why the world lacks a facility; undefined if the world has it. */
  lacks(what: Facility): string | undefined;
  /** Maps fresh memory with free addresses on both sides. Its pages are missing. */
  map(kind: MemoryKind, pages: number, options?: MapOptions): Area;
  /** Addresses where nothing is mapped as long as the world exists. */
  vacant(pages: number): bigint;
  /** The state of `count` pages in the page tables of the test's own process. */
  pages(address: bigint, count: number): PageBits[];
  /** Bytes of a present page of the test's own process: reading them raises no fault. */
  peek(address: bigint, length: number): Uint8Array;
  /** A thread of the test's own process. */
  thread(): Actor;
  /** The number of a descriptor's unread faults, and of all its waiting faults, including those already read. */
  queue(fd: number): { pending: number; total: number };
  /** Runs a body while the process can open no new descriptor. */
  withoutDescriptors(body: () => void): void;
  /** Waits for a promise that callbacks of the port's event loop settle. */
  during<T>(something: T | Promise<T>): Promise<T>;
  /** Adds a cleanup for `close`, which runs the last one first. */
  defer(end: () => void): void;
  /** Runs the deferred cleanups, ends the actors, and frees the memory. */
  close(): void;
}
