// Forbids system calls to the process that calls this, and to its children, with a seccomp filter as containers have.
// The numbers are those of syscall_64.tbl and of scripts/syscall.tbl for arm64, in Linux 6.18.

import { libc, seccompNumber } from '../../shim/libc.js';
import { forgoPrivileges, packProgram } from '../../shim/seccomp.js';

const X64 = 0;
const ARM64 = 1;
const NUMBERS = {
  add_key: [248, 217],
  bpf: [321, 280],
  clone3: [435, 435],
  io_uring_enter: [426, 426],
  io_uring_register: [427, 427],
  io_uring_setup: [425, 425],
  kcmp: [312, 272],
  keyctl: [250, 219],
  mount: [165, 40],
  perf_event_open: [298, 241],
  personality: [135, 92],
  pidfd_getfd: [438, 438],
  request_key: [249, 218],
  seccomp: [317, 277],
  setns: [308, 268],
  umount2: [166, 39],
  unshare: [272, 97],
  userfaultfd: [323, 282],
} as const;
type CallName = keyof typeof NUMBERS;

/** What Docker's default profile (moby, profiles/seccomp/default.json) refuses and what handlers and Node may call. */
export const DOCKER: readonly CallName[] = [
  ...(['add_key', 'bpf', 'clone3', 'io_uring_enter', 'io_uring_register', 'io_uring_setup', 'kcmp'] as const),
  ...(['keyctl', 'mount', 'perf_event_open', 'personality', 'pidfd_getfd', 'request_key', 'setns'] as const),
  ...(['umount2', 'unshare', 'userfaultfd'] as const),
];

/** Personalities that Docker's default profile allows; the last one asks which one there is. */
const PERSONALITIES = [0, 8, 0x20000, 0x20008, 0xffffffff];
const SET_MODE_FILTER = 1;
/** Offsets in struct seccomp_data: the call's number, and the low half of its first argument. */
const NUMBER = 0;
const FIRST = 16;
const LOAD = 0x20;
const IF_EQUAL = 0x15;
const RETURN = 0x06;
const ALLOW = 0x7fff0000;
const ERRNO_EPERM = 0x00050001;
/** What clone3 gets, so that the C library falls back to clone. */
const ERRNO_ENOSYS = 0x00050026;

/** @throws Error if the filter cannot be set */
export function forbidCalls(names: readonly CallName[]): void {
  const column = process.arch === 'arm64' ? ARM64 : X64;
  const plain = names.filter((name) => name !== 'personality' && name !== 'clone3');
  const numberOf = (name: CallName): number => NUMBERS[name][column];
  const unused = 0xffffffff;
  const special = (name: CallName): number => (names.includes(name) ? numberOf(name) : unused);
  // Jumps count instructions from the next one. After the comparisons of numbers come: allow, refuse, hide, and the
  // comparisons of the personality.
  const instructions: [code: number, yes: number, no: number, value: number][] = [
    [LOAD, 0, 0, NUMBER],
    ...plain.map((name, index): [number, number, number, number] => [
      IF_EQUAL,
      plain.length - index + 2,
      0,
      numberOf(name),
    ]),
    [IF_EQUAL, 3, 0, special('clone3')],
    [IF_EQUAL, 3, 0, special('personality')],
    [RETURN, 0, 0, ALLOW],
    [RETURN, 0, 0, ERRNO_EPERM],
    [RETURN, 0, 0, ERRNO_ENOSYS],
    [LOAD, 0, 0, FIRST],
    ...PERSONALITIES.map((personality, index): [number, number, number, number] => [
      IF_EQUAL,
      PERSONALITIES.length - index,
      0,
      personality,
    ]),
    [RETURN, 0, 0, ERRNO_EPERM],
    [RETURN, 0, 0, ALLOW],
  ];
  const program = packProgram(instructions);
  const { koffi, seccomp } = libc();
  const header = new DataView(new ArrayBuffer(16));
  header.setUint16(0, instructions.length, true);
  header.setBigUint64(8, koffi.address(program), true);
  if (forgoPrivileges() < 0 || seccomp(seccompNumber, SET_MODE_FILTER, 0, new Uint8Array(header.buffer)) < 0)
    throw new Error('the filter cannot be set');
}
