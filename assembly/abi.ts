// The kernel's declarations: every struct, request number and flag of <linux/userfaultfd.h> that this library uses, up
// to Linux 6.18; PAGEMAP_SCAN of <linux/fs.h>; and the errno values that the core distinguishes. There is no logic
// here.
//
// Rules: there is one @unmanaged class per struct, with its padding written out. Names are the header's. The class of a
// union's member repeats the fields before the union. A comment such as `5.7` is the Linux version that brought the
// declarations below it. test/abi.test.ts compares the file with the C header.

// ---- uffd_msg: 32 bytes, packed -------------------------------------------------------------------------

/** The fields that all messages share. What the arguments mean depends on `event`. */
@unmanaged
export class uffd_msg {
  event: u8;
  reserved1: u8;
  reserved2: u16;
  reserved3: u32;
  arg0: u64;
  arg1: u64;
  arg2: u64;
}

@unmanaged
export class uffd_msg_pagefault {
  event: u8;
  reserved1: u8;
  reserved2: u16;
  reserved3: u32;
  flags: u64;
  /** Aligned down to the page (in hugetlb memory to the huge page) unless EXACT_ADDRESS is on. */
  address: u64;
  /** 0 unless THREAD_ID is on. */
  ptid: u32;
  padding: u32;
}

@unmanaged
export class uffd_msg_fork {
  event: u8;
  reserved1: u8;
  reserved2: u16;
  reserved3: u32;
  ufd: u32;
  padding0: u32;
  padding1: u64;
  padding2: u64;
}

@unmanaged
export class uffd_msg_remap {
  event: u8;
  reserved1: u8;
  reserved2: u16;
  reserved3: u32;
  from: u64;
  to: u64;
  /** Bytes that were moved: the old length, or the new one if mremap shrank the mapping. */
  len: u64;
}

/** The arguments of REMOVE and UNMAP. */
@unmanaged
export class uffd_msg_remove {
  event: u8;
  reserved1: u8;
  reserved2: u16;
  reserved3: u32;
  start: u64;
  /** Exclusive. */
  end: u64;
  padding: u64;
}

export const SIZEOF_UFFD_MSG: u32 = 32;

// 4.3
export const UFFD_EVENT_PAGEFAULT: u32 = 0x12;
// 4.11
export const UFFD_EVENT_FORK: u32 = 0x13;
export const UFFD_EVENT_REMAP: u32 = 0x14;
export const UFFD_EVENT_REMOVE: u32 = 0x15;
export const UFFD_EVENT_UNMAP: u32 = 0x16;

export const UFFD_PAGEFAULT_FLAG_WRITE: u64 = 1;
export const UFFD_PAGEFAULT_FLAG_WP: u64 = 2;
export const UFFD_PAGEFAULT_FLAG_MINOR: u64 = 4;

// ---- ioctl arguments ------------------------------------------------------------------------------------

@unmanaged
export class uffdio_api {
  api: u64;
  features: u64;
  ioctls: u64;
}

@unmanaged
export class uffdio_range {
  start: u64;
  len: u64;
}

@unmanaged
export class uffdio_register {
  start: u64;
  len: u64;
  mode: u64;
  /** Out: a bit for each operation that the whole range allows. Bits that this library does not know are kept. */
  ioctls: u64;
}

@unmanaged
export class uffdio_copy {
  dst: u64;
  src: u64;
  len: u64;
  mode: u64;
  /**
   * Out, signed: bytes copied, or −errno. The core zeroes it before the call, because kernels before 6.15 do not write
   * it on EAGAIN.
   */
  copy: i64;
}

@unmanaged
export class uffdio_zeropage {
  start: u64;
  len: u64;
  mode: u64;
  zeropage: i64;
}

@unmanaged
export class uffdio_move {
  dst: u64;
  src: u64;
  len: u64;
  mode: u64;
  move: i64;
}

@unmanaged
export class uffdio_writeprotect {
  start: u64;
  len: u64;
  mode: u64;
}

@unmanaged
export class uffdio_continue {
  start: u64;
  len: u64;
  mode: u64;
  mapped: i64;
}

@unmanaged
export class uffdio_poison {
  start: u64;
  len: u64;
  mode: u64;
  updated: i64;
}

// ---- request numbers (x86-64 and arm64) -----------------------------------------------------------------

export const UFFD_API: u64 = 0xaa;
// 4.3
export const UFFDIO_API: u32 = 0xc018aa3f;
export const UFFDIO_REGISTER: u32 = 0xc020aa00;
export const UFFDIO_UNREGISTER: u32 = 0x8010aa01;
export const UFFDIO_WAKE: u32 = 0x8010aa02;
export const UFFDIO_COPY: u32 = 0xc028aa03;
export const UFFDIO_ZEROPAGE: u32 = 0xc020aa04;
// 5.7
export const UFFDIO_WRITEPROTECT: u32 = 0xc018aa06;
// 5.13
export const UFFDIO_CONTINUE: u32 = 0xc020aa07;
// 6.1, on /dev/userfaultfd, flags by value
export const USERFAULTFD_IOC_NEW: u32 = 0x0000aa00;
// 6.6
export const UFFDIO_POISON: u32 = 0xc020aa08;
// 6.8
export const UFFDIO_MOVE: u32 = 0xc028aa05;

// Bit numbers in `ioctls`.
export const _UFFDIO_REGISTER: u32 = 0x00;
export const _UFFDIO_UNREGISTER: u32 = 0x01;
export const _UFFDIO_WAKE: u32 = 0x02;
export const _UFFDIO_COPY: u32 = 0x03;
export const _UFFDIO_ZEROPAGE: u32 = 0x04;
export const _UFFDIO_MOVE: u32 = 0x05;
export const _UFFDIO_WRITEPROTECT: u32 = 0x06;
export const _UFFDIO_CONTINUE: u32 = 0x07;
export const _UFFDIO_POISON: u32 = 0x08;
export const _UFFDIO_API: u32 = 0x3f;

// ---- flags ----------------------------------------------------------------------------------------------

export const O_CLOEXEC: u32 = 0x80000;
export const O_NONBLOCK: u32 = 0x800;
/** Flag of userfaultfd(2), 5.11: the descriptor reports only faults of user mode. It needs no privilege. */
export const UFFD_USER_MODE_ONLY: u32 = 1;

export const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
export const UFFDIO_REGISTER_MODE_WP: u64 = 2;
export const UFFDIO_REGISTER_MODE_MINOR: u64 = 4;

export const UFFDIO_COPY_MODE_DONTWAKE: u64 = 1;
export const UFFDIO_COPY_MODE_WP: u64 = 2;
export const UFFDIO_ZEROPAGE_MODE_DONTWAKE: u64 = 1;
export const UFFDIO_CONTINUE_MODE_DONTWAKE: u64 = 1;
export const UFFDIO_CONTINUE_MODE_WP: u64 = 2;
export const UFFDIO_POISON_MODE_DONTWAKE: u64 = 1;
export const UFFDIO_MOVE_MODE_DONTWAKE: u64 = 1;
export const UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES: u64 = 2;
// Here the bits for WP and DONTWAKE are swapped compared with COPY's.
export const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1;
export const UFFDIO_WRITEPROTECT_MODE_DONTWAKE: u64 = 2;

// 5.7
export const UFFD_FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
// 4.11
export const UFFD_FEATURE_EVENT_FORK: u64 = 1 << 1;
export const UFFD_FEATURE_EVENT_REMAP: u64 = 1 << 2;
export const UFFD_FEATURE_EVENT_REMOVE: u64 = 1 << 3;
export const UFFD_FEATURE_MISSING_HUGETLBFS: u64 = 1 << 4;
export const UFFD_FEATURE_MISSING_SHMEM: u64 = 1 << 5;
export const UFFD_FEATURE_EVENT_UNMAP: u64 = 1 << 6;
// 4.14
export const UFFD_FEATURE_SIGBUS: u64 = 1 << 7;
export const UFFD_FEATURE_THREAD_ID: u64 = 1 << 8;
// 5.13
export const UFFD_FEATURE_MINOR_HUGETLBFS: u64 = 1 << 9;
// 5.14
export const UFFD_FEATURE_MINOR_SHMEM: u64 = 1 << 10;
// 5.18
export const UFFD_FEATURE_EXACT_ADDRESS: u64 = 1 << 11;
// 5.19
export const UFFD_FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
// 6.4
export const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
// 6.6
export const UFFD_FEATURE_POISON: u64 = 1 << 14;
// 6.7
export const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
// 6.8
export const UFFD_FEATURE_MOVE: u64 = 1 << 16;

// ---- PAGEMAP_SCAN, on /proc/PID/pagemap (6.7) ------------------------------------------------------------

@unmanaged
export class pm_scan_arg {
  /** Bytes of this struct. */
  size: u64;
  flags: u64;
  start: u64;
  end: u64;
  /** Out: the address at which the walk ended. It is `end` if the walk is complete. */
  walk_end: u64;
  /** Address of an array of `page_region`. */
  vec: u64;
  vec_len: u64;
  /** 0: no limit. */
  max_pages: u64;
  category_inverted: u64;
  category_mask: u64;
  category_anyof_mask: u64;
  return_mask: u64;
}

@unmanaged
export class page_region {
  start: u64;
  /** Exclusive. */
  end: u64;
  categories: u64;
}

export const PAGEMAP_SCAN: u32 = 0xc0606610;

/** Write-protects the pages that match. */
export const PM_SCAN_WP_MATCHING: u64 = 1;
/** Makes the scan fail with EPERM if a part of the range is not registered for asynchronous write-protection. */
export const PM_SCAN_CHECK_WPASYNC: u64 = 2;

export const PAGE_IS_WPALLOWED: u64 = 1 << 0;
export const PAGE_IS_WRITTEN: u64 = 1 << 1;
export const PAGE_IS_PRESENT: u64 = 1 << 3;
/** The page is in swap, or replaced by a marker. */
export const PAGE_IS_SWAPPED: u64 = 1 << 4;

// ---- struct pollfd --------------------------------------------------------------------------------------

@unmanaged
export class pollfd {
  fd: i32;
  events: i16;
  revents: i16;
}

export const POLLIN: i16 = 0x1;

// ---- errno ----------------------------------------------------------------------------------------------

export const ENOENT: i32 = 2;
export const ESRCH: i32 = 3;
export const EINTR: i32 = 4;
export const EBADF: i32 = 9;
export const EAGAIN: i32 = 11;
export const ENOMEM: i32 = 12;
export const EEXIST: i32 = 17;
export const ENFILE: i32 = 23;
export const EMFILE: i32 = 24;
