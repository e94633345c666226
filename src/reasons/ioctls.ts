// The rows of userfaultfd's ioctls, in the order of kernel-semantics: Each ioctl. Some errnos never come out of
// this library as an error; they have their rows for whoever meets them elsewhere, and say what it makes of them.

import type { Reason, Reasons } from '../reasons.js';
import {
  asks,
  beyondAll,
  hugeRange,
  isTracked,
  lacks,
  notForWriteProtect,
  notToBeFilled,
  partOfHugePage,
  REPLACED,
  unregistered,
} from './facts.js';

const ARGUMENT: Reason = {
  cause: "the kernel cannot reach the call's own argument",
  remedy:
    'the library keeps it where that cannot happen; whoever makes the call itself passes memory of its own',
};

const HUGE: Reason = {
  when: partOfHugePage,
  cause: 'the memory is in huge pages of {pageSize} bytes, and these come only whole',
  remedy: 'begin at a multiple of that, and take a multiple of it',
};

const BEYOND: Reason = {
  cause: 'the range reaches beyond the memory that a process can have',
  remedy: 'check the address, which is none that mmap gave',
};

const UNFILLABLE: Reason = {
  when: notToBeFilled,
  cause: 'page {page} is in {unfillable}, which can be watched for writes and not filled',
  remedy: 'write to it; fill anonymous memory, shared memory (a memfd, tmpfs) or huge pages instead',
};

/** What is left where a fill is refused as invalid. */
const INVALID: readonly Reason[] = [
  UNFILLABLE,
  { ...BEYOND, when: beyondAll },
  {
    cause:
      'the memory at {page} is of a kind that can be watched and not filled (a file on disk, a device, secret ' +
      'memory), or the range reaches beyond the memory that a process can have',
    remedy:
      'see in /proc/PID/maps what is mapped there; anonymous memory, shared memory (a memfd, tmpfs) and huge ' +
      'pages can be filled',
  },
];

const GONE: Reason = {
  cause: 'the process whose memory this is has exited or called exec',
  remedy: 'nothing can be done for it: close the userfaultfd',
};

const CHANGING: Reason = {
  cause: 'a mapping change (madvise, munmap, mremap, fork) is going on, and its event has to be read first',
  remedy: 'the library reads it and goes on, or returns how far it came; the fault is then offered again',
};

const NO_MAPPING: Reason = {
  cause: 'nothing is mapped at {page}, or nothing registered, or the range spans mappings that differ',
  remedy:
    'the library fills each mapping by itself, wakes who waits at a page that is not mapped, and returns how far it came',
};

const NEVER_TOLD: Reason = {
  when: unregistered,
  cause: 'nothing is registered here at {page}, and nothing ever was',
  remedy: "register the memory first, or pass its ranges to wrap (see 'ranges' for what is registered)",
};

const PRESENT: Reason = {
  cause: 'page {page} is there already',
  remedy: 'the library wakes who waits for it, counts it and goes on; what it holds stays',
};

const PRESENT_OR_MARKED: Reason = {
  cause: 'page {page} is there already, or a marker (write protection, poison, a guard) is in its place',
  remedy: PRESENT.remedy,
};

const PRESENT_OR_POOL_EMPTY: Reason = {
  when: hugeRange,
  cause: 'page {page} is there already, or no huge page of {pageSize} bytes is free',
  remedy:
    'the library wakes who waits for it, counts it and goes on; if it faults again, its fault comes after a delay, ' +
    'with repeats set',
};

const FULL: Reason = {
  cause: 'there is no memory for page {page}',
  remedy: 'free some, or raise the limit of the control group (memory.max)',
};

const POOL_EMPTY: Reason = {
  when: hugeRange,
  cause: 'no huge page of {pageSize} bytes is free for {page}',
  remedy: 'add to their pool (vm.nr_hugepages, or nr_hugepages of that size below /sys/kernel/mm/hugepages)',
};

const BEHIND_FILE: Reason = {
  cause: 'page {page} lies behind the end of the file that is mapped there',
  remedy: 'fill up to the end only, or make the file longer first',
};

const NOT_FOR_WRITE_PROTECT: Reason = {
  when: notForWriteProtect,
  cause: 'the range is not registered for write-protect, so page {page} cannot be installed protected',
  remedy: "register it with the mode 'write-protect' as well, or leave the option writeProtect out",
};

const NO_ROOM: Reason = {
  cause:
    'the process whose memory this is has exited or called exec (Linux 4.11 and 4.12 say so), or there is no room ' +
    'for page {page} in what is mapped there',
  remedy: 'close the userfaultfd of a process that is gone; else make room there, and fill again',
};

/** What every fill may meet. */
const FILL = {
  EAGAIN: CHANGING,
  ENOENT: [NEVER_TOLD, NO_MAPPING],
  ENOSPC: NO_ROOM,
  ESRCH: GONE,
} satisfies Reasons;

export const IOCTLS: Readonly<Record<string, Reasons>> = {
  UFFDIO_API: {
    EFAULT: ARGUMENT,
    EINVAL: {
      cause: 'the handshake was done before, or this kernel lacks a feature that was asked for',
      remedy:
        "adopt such a descriptor with Userfaultfd.wrap; ask under 'optional' for what can be done without",
    },
    EPERM: {
      cause: "the feature 'event-fork' needs CAP_SYS_PTRACE, also where only faults of user mode are served",
      remedy: "run with that capability, or ask for the feature under 'optional'",
    },
  },

  UFFDIO_REGISTER: {
    EBUSY: {
      cause: 'another userfaultfd has registered a part of it',
      remedy: 'unregister that part there, or close the other one first',
    },
    EFAULT: {
      cause:
        "the kernel cannot write its answer to the call's own argument; the range is registered all the same",
      remedy: 'unregister it; whoever makes the call itself passes memory of its own',
    },
    EINVAL: [
      {
        when: asks('minor'),
        cause:
          "'minor' needs shared memory (a memfd, shmem or hugetlbfs), and what is mapped there is " +
          'none, or nothing is',
        remedy:
          "map it shared; register private memory for 'missing' (minor faults need Linux 5.13 for " +
          'huge pages, 5.14 for others)',
      },
      {
        when: asks('write-protect'),
        cause:
          'nothing is mapped there, or it is a file on disk, or shared memory or huge pages before Linux 5.19',
        remedy:
          "watch memory that is mapped; a file takes 'write-protect' alone, with the feature " +
          "'wp-async' (Linux 6.7); huge pages come only whole",
      },
      {
        cause:
          'nothing is mapped there, or it is a file on disk, or huge pages of which the range covers a part',
        remedy:
          'watch memory that is mapped, anonymous or shared; begin and end on a huge page; copy a ' +
          'file to memory instead of watching its mapping',
      },
    ],
    ENOMEM: {
      cause: 'the process has exited or called exec, or has as many mappings as it may',
      remedy:
        'close the userfaultfd of a process that is gone; else raise vm.max_map_count, or watch fewer pieces',
    },
    EPERM: {
      cause:
        'it is a shared mapping of a file that was opened for reading only, and filling would write ' +
        'to the file',
      remedy: 'open the file for reading and writing, or map it privately',
    },
  },

  UFFDIO_UNREGISTER: {
    EFAULT: ARGUMENT,
    EINVAL: [
      HUGE,
      {
        cause:
          'nothing is mapped there, or a part of it belongs to another userfaultfd, or cannot be ' +
          'watched at all',
        remedy: "unregister what this one has registered (see 'ranges'); what was unmapped needs none",
      },
    ],
    ENOMEM: {
      cause: 'the process has exited or called exec, or has as many mappings as it may',
      remedy:
        'close the userfaultfd of a process that is gone; else raise vm.max_map_count, or unregister ' +
        'whole ranges',
    },
  },

  UFFDIO_WAKE: {
    EFAULT: ARGUMENT,
    EINVAL: BEYOND,
  },

  UFFDIO_COPY: {
    ...FILL,
    EEXIST: [PRESENT_OR_POOL_EMPTY, PRESENT],
    EFAULT: {
      cause:
        'the source cannot be read at {source}: it is not mapped, lies behind the end of a file that ' +
        'was truncated, is poisoned, or is watched and cannot wait; or page {page} lies behind the ' +
        'end of its own file',
      remedy: 'check both; pages before it are installed',
    },
    EINVAL: [NOT_FOR_WRITE_PROTECT, HUGE, ...INVALID],
    ENOMEM: [POOL_EMPTY, FULL],
  },

  UFFDIO_ZEROPAGE: {
    ...FILL,
    EEXIST: PRESENT_OR_MARKED,
    EFAULT: BEHIND_FILE,
    EINVAL: [
      {
        when: hugeRange,
        cause: 'the memory is in huge pages of {pageSize} bytes, which have no zero page',
        remedy: 'copy zeros instead',
      },
      ...INVALID,
    ],
    ENOMEM: FULL,
  },

  UFFDIO_CONTINUE: {
    ...FILL,
    EEXIST: PRESENT,
    EFAULT: {
      cause: 'page {page} is not in the page cache',
      remedy: 'write it through another mapping of the file first (Mapping.alias)',
    },
    EINVAL: [
      NOT_FOR_WRITE_PROTECT,
      HUGE,
      UNFILLABLE,
      {
        cause:
          'page {page} is private memory, or lies behind the end of its file, or this kernel cannot ' +
          'continue (Linux 5.13 and 5.14 can)',
        remedy: 'only shared memory (a memfd, shmem or hugetlbfs) can be continued; copy into private memory',
      },
    ],
    EIO: {
      cause: 'the memory that holds page {page} is broken (the hardware said so)',
      remedy: 'poison the page, so that whoever touches it hears of it',
    },
    ENOMEM: FULL,
  },

  UFFDIO_POISON: {
    ...FILL,
    EEXIST: PRESENT_OR_MARKED,
    EFAULT: BEHIND_FILE,
    EINVAL: [
      {
        when: lacks('poison'),
        cause: 'this kernel cannot poison pages there (Linux 6.6 can)',
        remedy: 'end the process that touches them, or unmap them, where their data cannot be had',
      },
      HUGE,
      ...INVALID,
    ],
    ENOMEM: FULL,
  },

  UFFDIO_WRITEPROTECT: {
    EAGAIN: CHANGING,
    EFAULT: ARGUMENT,
    EINVAL: [
      HUGE,
      {
        cause:
          'the range reaches beyond the memory that a process can have, or this kernel cannot ' +
          'write-protect (Linux 5.7 can)',
        remedy: 'check the address, which is none that mmap gave, and the kernel',
      },
    ],
    ENOENT: [
      NEVER_TOLD,
      { when: isTracked, ...REPLACED },
      {
        cause: "nothing is mapped at {page}, or a part of the range is not registered for 'write-protect'",
        remedy: 'register it with that mode; the library wakes who waits there and returns 0',
      },
    ],
    ENOMEM: FULL,
    ESRCH: GONE,
  },

  UFFDIO_MOVE: {
    EAGAIN: CHANGING,
    EBUSY: {
      cause: 'page {source} of the source is shared after a fork, or pinned',
      remedy:
        'rewrite it, which gives it a page of its own, or copy it; keep memory that is to be moved ' +
        'out of forks (MADV_DONTFORK)',
    },
    EEXIST: {
      cause: 'page {page} of the target is there already',
      remedy:
        'the source keeps what was not moved; move to an empty page, or drop that one first (MADV_DONTNEED)',
    },
    EFAULT: {
      cause:
        'page {source} of the source is poisoned, a guard, or protected while it is empty: there is ' +
        'nothing to move',
      remedy: 'leave it out; pages before it were moved',
    },
    EINVAL: [
      {
        when: unregistered,
        cause: 'nothing is registered here at the target, {page}',
        remedy: "register the target with this userfaultfd (see 'ranges'); the source need not be registered",
      },
      {
        when: lacks('move'),
        cause:
          'pages cannot be moved to {page}: this kernel has no move (Linux 6.8 has), or the memory is ' +
          'in huge pages',
        remedy: 'copy them',
      },
      {
        cause:
          'the ranges are not both private anonymous memory of this process, in one mapping each, ' +
          'with equal protection and locking',
        remedy:
          'move within one mapping at a time, or copy; memory of another process, and shared memory, ' +
          'cannot be moved',
      },
    ],
    ENOENT: {
      cause:
        'the source has a hole at {source}, or is not mapped there, or the target is not mapped at {page}',
      remedy: 'allow holes with allowHoles; else move only what was written',
    },
    ENOMEM: FULL,
    ESRCH: GONE,
  },
};
