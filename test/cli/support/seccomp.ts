// A module that the command under test preloads: forbids userfaultfd, by system call and by device, with a seccomp
// filter as container runtimes do. The kernel itself refuses: with EPERM, or with the errno number in
// UFFD_SECCOMP_ERRNO. UFFD_SECCOMP_KILL (process, thread) makes it kill instead.

import { isMainThread } from 'node:worker_threads';
import koffi from 'koffi';

const NUMBERS: Record<string, { userfaultfd: number; ioctl: number }> = {
  x64: { userfaultfd: 323, ioctl: 16 },
  arm64: { userfaultfd: 282, ioctl: 29 },
};
const USERFAULTFD_IOC_NEW = 0xaa00;
const PR_SET_SECCOMP = 22;
const PR_SET_NO_NEW_PRIVS = 38;
const SECCOMP_MODE_FILTER = 2;
/** Offsets in struct seccomp_data: the call's number, and the low half of its second argument. */
const NUMBER = 0;
const SECOND = 24;
const LOAD = 0x20;
const JUMP_IF_EQUAL = 0x15;
const RETURN = 0x06;
const ALLOW = 0x7fff0000;
const REFUSE = 0x00050000;
const EPERM = 1;
const KILL: Readonly<Record<string, number>> = { process: 0x80000000, thread: 0 };

/** [code, instructions to skip if true, instructions to skip if false, operand] */
type Instruction = [number, number, number, number];

if (isMainThread) forbid(NUMBERS[process.arch] as (typeof NUMBERS)[string]);

/** The filter's return value for a forbidden call. */
function refusal(): number {
  const { UFFD_SECCOMP_KILL: kill, UFFD_SECCOMP_ERRNO: errno = EPERM } = process.env;
  return KILL[kill ?? ''] ?? REFUSE | Number(errno);
}

function forbid(numbers: { userfaultfd: number; ioctl: number }): void {
  const program: Instruction[] = [
    [LOAD, 0, 0, NUMBER],
    [JUMP_IF_EQUAL, 4, 0, numbers.userfaultfd],
    [JUMP_IF_EQUAL, 0, 2, numbers.ioctl],
    [LOAD, 0, 0, SECOND],
    [JUMP_IF_EQUAL, 1, 0, USERFAULTFD_IOC_NEW],
    [RETURN, 0, 0, ALLOW],
    [RETURN, 0, 0, refusal()],
  ];
  const filter = Buffer.alloc(program.length * 8);
  for (const [i, [code, yes, no, operand]] of program.entries()) {
    filter.writeUInt16LE(code, i * 8);
    filter.writeUInt8(yes, i * 8 + 2);
    filter.writeUInt8(no, i * 8 + 3);
    filter.writeUInt32LE(operand, i * 8 + 4);
  }
  const header = Buffer.alloc(16);
  header.writeUInt16LE(program.length, 0);
  header.writeBigUInt64LE(koffi.address(filter), 8);
  const prctl = koffi.load(null).func('prctl', 'int', ['int', 'ulong', 'uintptr_t', 'ulong', 'ulong']);
  const failed =
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, koffi.address(header), 0, 0);
  if (failed) throw new Error(`prctl: errno ${koffi.errno()}`);
}
