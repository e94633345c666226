// The rows of the system calls around userfaultfd: those that make a descriptor, read from it and wait for it,
// memory, and the pages' state in /proc.

import type { Reason, Reasons } from '../reasons.js';
import { inHugePages, REPLACED } from './facts.js';

const EMFILE: Reason = {
  cause: 'the process has no file descriptor left',
  remedy: 'close some, or raise its limit (ulimit -n)',
};

const ENFILE: Reason = {
  cause: 'the system has no file descriptor left',
  remedy: 'raise fs.file-max, or end what holds them',
};

const ENOMEM: Reason = {
  cause: 'there is no memory left',
  remedy: 'free some, or raise the limit of the control group (memory.max)',
};

/** Older kernels say EINVAL, newer ones ENOENT. */
const THREAD: Reason = {
  cause: '{process} is a thread of a process, not a process',
  remedy: 'pass the id of its process (Tgid in /proc/PID/status)',
};

const PASS_SIZE = 'pass their size to register as the option pageSize';

/** What every call that makes a descriptor may meet. */
const DESCRIPTOR = { EMFILE, ENFILE, ENOMEM } satisfies Reasons;

export const CALLS: Readonly<Record<string, Reasons>> = {
  userfaultfd: {
    ...DESCRIPTOR,
    EINVAL: {
      cause: 'this kernel cannot serve faults of user mode only (Linux 5.11 can)',
      remedy: 'open with userModeOnly: false, with the privilege that needs',
    },
    ENOSYS: {
      cause: 'this kernel was built without CONFIG_USERFAULTFD, or a seccomp filter hides it',
      remedy: 'run a kernel that has it; allow the call in the seccomp profile of the container',
    },
    EPERM: {
      cause:
        'faults of kernel mode need CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd=1, or access to ' +
        '/dev/userfaultfd',
      remedy:
        'get one of these, or open with userModeOnly: true, which serves faults of user mode only; in ' +
        'a container its seccomp profile may forbid the call',
    },
    ESRCH: {
      cause: 'the process whose memory this is has exited or called exec',
      remedy: 'the watch has ended, and the userfaultfd is closed: open one for the process that runs now',
    },
  },

  '/dev/userfaultfd': {
    ...DESCRIPTOR,
    EACCES: {
      cause: 'the device may be used by whom its file permissions allow',
      remedy: 'give this user access to the file (chmod, an ACL, or a udev rule), or use the system call',
    },
    EINVAL: {
      cause: 'the device does not know a flag',
      remedy: 'use the system call',
    },
    ENOENT: {
      cause: 'there is no such device: it exists from Linux 6.1 on, and containers are often not given it',
      remedy: 'use the system call, or pass the device into the container (--device /dev/userfaultfd)',
    },
    ENOTTY: {
      cause: 'what lies at that path is another device',
      remedy: 'make the node anew, with the numbers that /proc/misc tells, or use the system call',
    },
    ENXIO: {
      cause: 'the node has no driver behind it: it exists from Linux 6.1 on',
      remedy: 'use the system call',
    },
    EPERM: {
      cause: 'the device may be used by whom its file permissions and the control group allow',
      remedy: 'allow the device to the container (--device /dev/userfaultfd), or use the system call',
    },
  },

  wrap: {
    EBADF: {
      cause: 'fd is no open file descriptor',
      remedy: 'pass one that is open in this process: received over a socket, or what release() gave',
    },
    EINVAL: {
      cause: 'the handshake of this userfaultfd is not done',
      remedy: 'open one with Userfaultfd.open, which does it',
    },
    ENOTTY: {
      cause: 'fd is no userfaultfd',
      remedy: "pass a userfaultfd's descriptor ('anon_inode:[userfaultfd]' in /proc/PID/fd)",
    },
  },

  read: {
    EAGAIN: {
      cause: 'no message waits',
      remedy: 'the library waits for the next one',
    },
    EFAULT: {
      cause: 'the buffer cannot be written, and the message is lost',
      remedy: 'the library reads to memory that is always there; whoever reads elsewhere does so too',
    },
    EINVAL: {
      cause: 'the descriptor is no userfaultfd whose handshake is done',
      remedy: 'pass its fd to nobody who closes it: another file may have taken its number',
    },
    EIO: {
      cause: 'the kernel sent what this library does not know',
      remedy: 'leave out the feature that brings it, or use a newer version of this library',
    },
    EMFILE: {
      cause: "a process has forked, and no file descriptor is left for its child's userfaultfd",
      remedy:
        'close some, or raise the limit (ulimit -n): until then the fork waits, and every fill; leave out ' +
        "'event-fork' where children need no watch",
    },
    ENFILE,
    ENOMEM,
    ESPIPE: {
      cause: 'a userfaultfd has no positions to read at',
      remedy: 'read without one: no pread, and no stream with a start',
    },
  },

  poll: {
    EFAULT: {
      cause: "the kernel cannot reach the call's own argument",
      remedy: 'the library keeps it where that cannot happen',
    },
    EINVAL: {
      cause: 'the process may have fewer open files than it waits for (3)',
      remedy: 'raise its limit (ulimit -n)',
    },
    ENOMEM,
  },

  pidfd_open: {
    ...DESCRIPTOR,
    EINVAL: THREAD,
    ENODEV: {
      cause: 'this kernel has no file system for process descriptors',
      remedy: 'leave out pid; the end of the process then shows at the next fill only',
    },
    ENOENT: THREAD,
    ENOSYS: {
      cause: 'this kernel cannot watch a process (Linux 5.3 can), or a seccomp filter hides it',
      remedy: 'nothing: its exit is noticed all the same, within a fifth of a second',
    },
    EPERM: {
      cause: 'a seccomp filter forbids to watch a process',
      remedy: 'leave out pid, or allow pidfd_open in the seccomp profile of the container',
    },
    ESRCH: {
      cause: 'there is no process {process} to watch',
      remedy: 'pass the id of a process that runs, as this container counts them',
    },
  },

  bind: {
    EACCES: {
      cause: 'this user may not make a file in that folder',
      remedy: 'choose another folder, or run as a user who may',
    },
    EADDRINUSE: {
      cause: 'something has just come to be at that path',
      remedy: 'choose another path, or end who has it',
    },
    ENAMETOOLONG: {
      cause: 'a path of a unix socket has at most 107 bytes',
      remedy: 'choose a shorter one, or a relative one',
    },
    ENOENT: { cause: 'there is no such folder', remedy: 'make it first' },
    ENOTDIR: { cause: 'a part of the path is no folder', remedy: 'choose another path' },
  },

  connect: {
    EACCES: {
      cause: 'this user may not write to the socket',
      remedy: 'have its owner or mode changed (--socket-owner, --socket-mode)',
    },
    EAGAIN: {
      cause: 'too many wait to be accepted already',
      remedy: 'try again in a moment',
    },
    ECONNREFUSED: {
      cause: 'nobody listens at that socket',
      remedy: 'start uffd serve first, and wait until it is ready',
    },
    ENAMETOOLONG: {
      cause: 'a path of a unix socket has at most 107 bytes',
      remedy: 'choose a shorter one, or a relative one',
    },
    ENOENT: {
      cause: 'there is no such socket',
      remedy: 'start uffd serve first, and wait until it is ready',
    },
  },

  accept4: DESCRIPTOR,

  sendmsg: {
    EAGAIN: {
      cause: 'who listens has not read what was sent before',
      remedy: 'try again in a moment',
    },
    EPIPE: {
      cause: 'who listened has closed the connection',
      remedy: 'look at what it has to say',
    },
  },

  eventfd: {
    ...DESCRIPTOR,
    EINVAL: {
      cause: 'this kernel does not know a flag (Linux 2.6.27 does)',
      remedy: 'run a newer kernel',
    },
    ENODEV: {
      cause: 'this kernel has no file system for anonymous files',
      remedy: 'run one that was built with it',
    },
  },

  lseek: {
    EIO: {
      cause: 'the device behind the memory file does not say how long it is',
      remedy: 'see what the kernel says of it (dmesg); serve a copy of its contents in a file',
    },
  },

  mmap: {
    EACCES: {
      cause: 'the file was opened in a way that does not allow this mapping',
      remedy: 'open it for reading, and for writing too where the mapping is shared and writable',
    },
    EAGAIN: {
      cause: 'the memory would be locked at once (mlockall), and that is more than RLIMIT_MEMLOCK',
      remedy: 'raise the limit (ulimit -l), or unlock what comes in future',
    },
    EINVAL: [
      {
        when: inHugePages,
        cause:
          '{bytes} bytes in huge pages of {pageSize} bytes cannot be had: this machine has none of that size',
        remedy: 'take a size that it has (see /sys/kernel/mm/hugepages)',
      },
      {
        cause: '{bytes} bytes cannot be mapped from this file',
        remedy: 'map a regular file, or memory',
      },
    ],
    ENFILE,
    ENODEV: {
      cause: 'the file system of this file maps no files',
      remedy: 'copy the file to another one',
    },
    ENOMEM: [
      {
        when: inHugePages,
        cause:
          '{bytes} bytes in huge pages of {pageSize} bytes cannot be had: the pool of that size has too few',
        remedy: 'add to it (vm.nr_hugepages, or nr_hugepages of that size below /sys/kernel/mm/hugepages)',
      },
      {
        cause:
          '{bytes} bytes cannot be mapped: there is no room, in addresses or in memory that may be promised',
        remedy: 'map less, or raise ulimit -v, vm.overcommit_memory or vm.max_map_count, whichever it meets',
      },
    ],
    EPERM: {
      cause: 'a seal of the file, or a security module, forbids this mapping',
      remedy: 'map it read-only or privately',
    },
  },

  madvise: {
    EINVAL: {
      cause: 'the pages are locked (mlock), or memory of that kind does not take it',
      remedy: 'unlock them first',
    },
    ENOMEM: {
      cause: 'a part of the range is not mapped',
      remedy: 'see who has unmapped it',
    },
  },

  mremap: {
    EFAULT: {
      cause: 'a part of the range is not mapped, or it spans mappings that differ',
      remedy: 'move each mapping by itself',
    },
    EINVAL: {
      cause:
        'this kernel cannot move pages and leave their mapping (Linux 5.7 can), or not those of huge pages',
      remedy: 'copy them to a mapping of their own',
    },
    ENOMEM: {
      cause: 'there is no room for them, or the process has as many mappings as it may',
      remedy: 'unmap some, or raise ulimit -v or vm.max_map_count, whichever it meets',
    },
  },

  memfd_create: {
    ...DESCRIPTOR,
    EACCES: {
      cause: 'vm.memfd_noexec=2 allows only such that can never be executed',
      remedy: 'set it to 0 or 1',
    },
    EFBIG: {
      cause: '{bytes} bytes are more than a file may have (ulimit -f)',
      remedy: 'raise the limit, or take less',
    },
    EINVAL: [
      {
        when: inHugePages,
        cause:
          '{bytes} bytes in huge pages of {pageSize} bytes cannot be had: this kernel makes no files of them',
        remedy: 'take memory that is not shared (Mapping.anonymous), or small pages',
      },
      {
        cause: 'a file in memory cannot have {bytes} bytes',
        remedy: 'take less',
      },
    ],
    ENODEV: {
      cause:
        '{bytes} bytes in huge pages of {pageSize} bytes cannot be had: this machine has none of that size',
      remedy: 'take a size that it has (see /sys/kernel/mm/hugepages)',
    },
    ENOSYS: {
      cause: 'a seccomp filter hides the call',
      remedy: 'allow memfd_create in the seccomp profile of the container, or map a file in /dev/shm',
    },
    EPERM: {
      cause: 'this user may have no files in huge pages, or a seccomp filter forbids the call',
      remedy:
        'set vm.hugetlb_shm_group to a group of this user, or allow memfd_create in the seccomp profile',
    },
  },

  fcntl: { EMFILE },

  '/proc/PID/pagemap': {
    ...DESCRIPTOR,
    EACCES: {
      cause: 'this user may not look into the memory of process {process}',
      remedy: 'run as its user, or with CAP_SYS_PTRACE',
    },
    ENOENT: {
      cause:
        'there is no process {process}, or /proc is not mounted, or this kernel has no ' +
        'CONFIG_PROC_PAGE_MONITOR',
      remedy: 'pass the id of a process that runs, and mount /proc where it is missing',
    },
    EPERM: {
      cause: 'a security module forbids to look into the memory of process {process}',
      remedy: 'run as its user, or with CAP_SYS_PTRACE',
    },
    ESRCH: {
      cause: 'process {process} has no memory: it has exited, or is a thread of the kernel',
      remedy: 'pass the id of a process that runs',
    },
  },

  '/proc/PID/smaps': {
    EACCES: { cause: 'this user may not see which size the pages at {page} have', remedy: PASS_SIZE },
    EIO: { cause: 'which size the pages at {page} have cannot be read', remedy: PASS_SIZE },
    EMFILE: { cause: `${EMFILE.cause}, to see which size the pages at {page} have`, remedy: PASS_SIZE },
    ENFILE: { cause: `${ENFILE.cause}, to see which size the pages at {page} have`, remedy: PASS_SIZE },
    ENOENT: {
      cause:
        'which size the pages at {page} have cannot be seen: it is another process that has them, or /proc is ' +
        'not mounted, or this kernel has no CONFIG_PROC_PAGE_MONITOR',
      remedy: `${PASS_SIZE}, or say with the option pid of open or wrap whose memory it is`,
    },
    ENOMEM: { cause: `${ENOMEM.cause} to see which size the pages at {page} have`, remedy: PASS_SIZE },
    EPERM: {
      cause: 'a security module forbids to see which size the pages at {page} have',
      remedy: PASS_SIZE,
    },
    ESRCH: {
      cause: 'the process that has the pages at {page} has exited',
      remedy: 'close the userfaultfd, or say with the option pid of open or wrap whose memory it is',
    },
  },

  PAGEMAP_SCAN: {
    EFAULT: {
      cause: 'the range is no memory of a process, or the answer cannot be written',
      remedy: 'check start and end, and pass memory of your own for the answer',
    },
    EINVAL: {
      cause: 'the range is not in whole pages, or this kernel does not know a category or flag',
      remedy: 'begin and end on a page; ask for categories that this kernel has',
    },
    ENOENT: REPLACED,
    ENOMEM,
    ENOTTY: {
      cause: 'this kernel cannot scan (Linux 6.7 can)',
      remedy: 'run a newer kernel, or write-protect pages and answer their faults',
    },
    EPERM: {
      cause:
        "a part of the range is not registered for 'write-protect' with a userfaultfd that has 'wp-async'",
      remedy: "open one with the feature 'wp-async', and register the whole range for 'write-protect'",
    },
    ESRCH: {
      cause: 'the process whose memory this is has exited or called exec',
      remedy: 'nothing is left to be scanned: close the descriptor',
    },
  },

  process_vm_readv: {
    EFAULT: {
      cause:
        'the page at {page} cannot be read: it is a guard page, has no read permission, or lies behind the end of ' +
        'its file',
      remedy: 'make it readable, or track the memory on either side of it with a tracker each',
    },
  },

  process_vm_writev: {
    EFAULT: {
      cause:
        'the page at {page} cannot be written: it is read-only, a guard page, or lies behind the end of its file',
      remedy:
        'make it writable and restore again; pages that were restored before it keep the bytes of the checkpoint, ' +
        'and count as written',
    },
  },

  msync: {
    EPERM: {
      cause: 'a seccomp filter forbids the call, which is used to find memory that was unmapped',
      remedy: 'allow msync in the seccomp profile of the container',
    },
  },

  'userfaultfd core': {
    ENOMEM: {
      cause: "the core's tables have reached the largest size of their memory",
      remedy: 'watch less memory with one userfaultfd, or fewer pieces',
    },
  },

  'any call': {
    EBADF: {
      cause: 'the userfaultfd is closed or was released',
      remedy: 'open another, or wrap the descriptor where release() gave it to',
    },
    EINTR: {
      cause: 'a signal came first',
      remedy: 'the library calls again',
    },
    ENOMEM,
    ENOSYS: {
      cause: 'this kernel does not have the call, or a seccomp filter hides it',
      remedy: 'run a newer kernel; allow the call in the seccomp profile of the container',
    },
    ENOTTY: {
      cause: 'the descriptor is no userfaultfd',
      remedy: 'pass its fd to nobody who closes it: another file may have taken its number',
    },
    EPERM: {
      cause: 'a seccomp filter or a security module forbids the call',
      remedy: 'allow it in the profile of the container',
    },
  },
};
