// The system calls that are trapped, with their numbers, and the seccomp filter that traps them.
//
// The numbers are from Linux 6.18: arch/x86/entry/syscalls/syscall_64.tbl, and scripts/syscall.tbl for arm64 (which has
// no poll, select and epoll_wait). The filter's instructions are those of include/uapi/linux/bpf_common.h, and its
// results those of include/uapi/linux/seccomp.h.

import { type Instruction, packProgram } from '../../shim/seccomp.js';

/** What a trapped call is. */
export type CallName = keyof typeof X64;

const X64 = {
  read: 0,
  readv: 19,
  preadv2: 327,
  poll: 7,
  ppoll: 271,
  select: 23,
  pselect6: 270,
  epoll_wait: 232,
  epoll_pwait: 281,
  epoll_pwait2: 441,
  ioctl: 16,
  fcntl: 72,
  close: 3,
  close_range: 436,
  dup2: 33,
  dup3: 292,
  execve: 59,
  execveat: 322,
  recvmsg: 47,
  listen: 50,
  readlink: 89,
  readlinkat: 267,
  nanosleep: 35,
  clock_nanosleep: 230,
  getrandom: 318,
  kill: 62,
  pidfd_send_signal: 424,
  userfaultfd: 323,
} as const;

const ARM64: Partial<Record<CallName, number>> = {
  read: 63,
  readv: 65,
  preadv2: 286,
  ppoll: 73,
  pselect6: 72,
  epoll_pwait: 22,
  epoll_pwait2: 441,
  ioctl: 29,
  fcntl: 25,
  close: 57,
  close_range: 436,
  dup3: 24,
  execve: 221,
  execveat: 281,
  recvmsg: 212,
  listen: 201,
  readlinkat: 78,
  nanosleep: 101,
  clock_nanosleep: 115,
  getrandom: 278,
  kill: 129,
  pidfd_send_signal: 424,
  userfaultfd: 282,
};

/** What is trapped of handlers that a simulated kernel serves. */
const SIMULATED: readonly CallName[] = [
  ...(['read', 'readv', 'preadv2', 'poll', 'ppoll', 'select', 'pselect6', 'epoll_wait'] as const),
  ...(['epoll_pwait', 'epoll_pwait2', 'ioctl', 'listen', 'readlink', 'readlinkat', 'nanosleep'] as const),
  ...(['clock_nanosleep', 'getrandom', 'kill', 'pidfd_send_signal', 'userfaultfd'] as const),
];

/** What is trapped of handlers that are recorded. Their waits are not: the kernel carries them out. */
const RECORDED: readonly CallName[] = [
  ...(['read', 'readv', 'preadv2', 'ioctl', 'fcntl', 'recvmsg'] as const),
  ...(['close', 'close_range', 'dup2', 'dup3', 'execve', 'execveat'] as const),
];

/** Which calls are trapped. */
export const CALLS = { simulated: SIMULATED, recorded: RECORDED } as const;

/** AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64 (include/uapi/linux/audit.h). */
const ARCHITECTURES: Readonly<Record<string, { audit: number; numbers: Partial<Record<CallName, number>> }>> =
  {
    x64: { audit: 0xc000003e, numbers: X64 },
    arm64: { audit: 0xc00000b7, numbers: ARM64 },
  };

/** The type of a userfaultfd's requests: the second byte of the request number. */
export const UFFD_TYPE = 0xaa;

const architecture = ARCHITECTURES[process.arch];

/** Whether the calls of this architecture are known. */
export const knowsArchitecture = architecture !== undefined;

/** The names of trapped calls, by number. */
export const callNames: ReadonlyMap<number, CallName> = new Map(
  Object.entries(architecture?.numbers ?? {}).map(([name, number]) => [number as number, name as CallName]),
);

/** Offsets in struct seccomp_data: the number, the architecture, the low half of the second argument. */
const NUMBER_AT = 0;
const ARCHITECTURE_AT = 4;
const SECOND_AT = 24;
/** BPF_LD | BPF_W | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_ALU | BPF_AND | BPF_K, BPF_RET | BPF_K. */
const LOAD = 0x20;
const IF_EQUAL = 0x15;
const AND = 0x54;
const RETURN = 0x06;
const ALLOW = 0x7fff0000;
const NOTIFY = 0x7fc00000;

/** The command of fcntl that sets O_NONBLOCK. */
export const F_SETFL = 4;

/** The filter: traps these calls; of ioctl only the requests of a userfaultfd, and of fcntl only F_SETFL. */
export function filterProgram(calls: readonly CallName[]): Uint8Array {
  if (!architecture) throw new RangeError(`the system calls of ${process.arch} are not known`);
  const { audit, numbers } = architecture;
  const trapped = calls.filter((name) => numbers[name] !== undefined);
  // The jumps count instructions from the next one. After the comparisons: allow; notify; the checks of the second
  // argument of ioctl and of fcntl.
  const count = trapped.length;
  const target = (name: CallName): number => count + (name === 'ioctl' ? 2 : name === 'fcntl' ? 6 : 1);
  return packProgram([
    [LOAD, 0, 0, ARCHITECTURE_AT],
    [IF_EQUAL, 0, count + 1, audit],
    [LOAD, 0, 0, NUMBER_AT],
    ...trapped.map(
      (name, index): Instruction => [IF_EQUAL, target(name) - index - 1, 0, numbers[name] as number],
    ),
    [RETURN, 0, 0, ALLOW],
    [RETURN, 0, 0, NOTIFY],
    [LOAD, 0, 0, SECOND_AT],
    [AND, 0, 0, 0xff00],
    [IF_EQUAL, 0, 3, UFFD_TYPE << 8],
    [RETURN, 0, 0, NOTIFY],
    [LOAD, 0, 0, SECOND_AT],
    [IF_EQUAL, 1, 0, F_SETFL],
    [RETURN, 0, 0, ALLOW],
    [RETURN, 0, 0, NOTIFY],
  ]);
}
