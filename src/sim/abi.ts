// The kernel's numbers, for the simulated kernel: requests, flags, events and errno values. test/abi.test.ts compares
// them with the core's own.

/** Request numbers, by name. */
export const REQUEST = {
  API: 0xc018aa3f,
  REGISTER: 0xc020aa00,
  UNREGISTER: 0x8010aa01,
  WAKE: 0x8010aa02,
  COPY: 0xc028aa03,
  ZEROPAGE: 0xc020aa04,
  MOVE: 0xc028aa05,
  WRITEPROTECT: 0xc018aa06,
  CONTINUE: 0xc020aa07,
  POISON: 0xc020aa08,
  NEW: 0x0000aa00,
} as const;

export const UFFD_API = 0xaan;

export const EVENT = { PAGEFAULT: 0x12, FORK: 0x13, REMAP: 0x14, REMOVE: 0x15, UNMAP: 0x16 } as const;

/** Flags of a page fault message. */
export const FAULT = { WRITE: 1, WP: 2, MINOR: 4 } as const;

/** Modes of REGISTER. */
export const MODE = { MISSING: 1, WP: 2, MINOR: 4 } as const;

/** Mode bits of the operations. */
export const BIT = {
  DONTWAKE: 1,
  COPY_WP: 2,
  MOVE_HOLES: 2,
  WRITEPROTECT_WP: 1,
  WRITEPROTECT_DONTWAKE: 2,
} as const;

export const FEATURE = {
  EVENT_FORK: 1 << 1,
  EVENT_REMAP: 1 << 2,
  EVENT_REMOVE: 1 << 3,
  EVENT_UNMAP: 1 << 6,
  SIGBUS: 1 << 7,
  THREAD_ID: 1 << 8,
  EXACT_ADDRESS: 1 << 11,
  WP_UNPOPULATED: 1 << 13,
  WP_ASYNC: 1 << 15,
} as const;

/** Flags of userfaultfd(2). */
export const OPEN = { CLOEXEC: 0x80000, NONBLOCK: 0x800, USER_MODE_ONLY: 1 } as const;

export const MESSAGE_BYTES = 32;

/** errno values as the port returns them: negative. */
export const E = {
  PERM: -1,
  NOENT: -2,
  SRCH: -3,
  INTR: -4,
  IO: -5,
  BADF: -9,
  AGAIN: -11,
  NOMEM: -12,
  ACCES: -13,
  FAULT: -14,
  BUSY: -16,
  EXIST: -17,
  INVAL: -22,
  MFILE: -24,
  NOTTY: -25,
  NOSPC: -28,
  NOSYS: -38,
} as const;

export const POLL = { IN: 1, ERR: 8, NVAL: 0x20 } as const;

/** Protection of memory. */
export const PROT = { READ: 1, WRITE: 2 } as const;

/** Advice of madvise. */
export const ADVICE = {
  DONTNEED: 4,
  FREE: 8,
  REMOVE: 9,
  DONTFORK: 10,
  DOFORK: 11,
  DONTDUMP: 16,
  DODUMP: 17,
  COLD: 20,
  PAGEOUT: 21,
  POPULATE_READ: 22,
  POPULATE_WRITE: 23,
  GUARD_INSTALL: 102,
  GUARD_REMOVE: 103,
} as const;

/** Flags of mremap. */
export const MREMAP = { MAYMOVE: 1, FIXED: 2, DONTUNMAP: 4 } as const;
