// A program for a test: it forbids itself what Docker's default seccomp profile forbids, and userfaultfd, and then tests
// a handler in the simulated kernel. It prints the report as JSON. Its argument, in JSON: the command and the options.

import { libc, seccompNumber } from '../../../shim/libc.js';
import { forgoPrivileges } from '../../../shim/seccomp.js';
import { type CheckSimulatedOptions, checkSimulated } from '../../../src/supervisor/check-simulated.js';

/** userfaultfd, pidfd_getfd, kcmp, personality: their numbers by Node's name of the architecture. */
const REFUSED: Readonly<Record<string, readonly number[]>> = {
  x64: [323, 438, 312, 135],
  arm64: [282, 438, 272, 92],
};
const SET_MODE_FILTER = 1;
const ERRNO_EPERM = 0x00050001;
const ALLOW = 0x7fff0000;

function forbid(numbers: readonly number[]): void {
  const jumps = numbers.map((number, index) => [0x15, numbers.length - index, 0, number]);
  const instructions = [[0x20, 0, 0, 0], ...jumps, [0x06, 0, 0, ALLOW], [0x06, 0, 0, ERRNO_EPERM]];
  const program = new DataView(new ArrayBuffer(8 * instructions.length));
  for (const [index, [code = 0, yes = 0, no = 0, value = 0]] of instructions.entries()) {
    program.setUint16(8 * index, code, true);
    program.setUint8(8 * index + 2, yes);
    program.setUint8(8 * index + 3, no);
    program.setUint32(8 * index + 4, value, true);
  }
  const { koffi, seccomp } = libc();
  const prog = new DataView(new ArrayBuffer(16));
  prog.setUint16(0, instructions.length, true);
  prog.setBigUint64(8, koffi.address(new Uint8Array(program.buffer)), true);
  if (forgoPrivileges() < 0 || seccomp(seccompNumber, SET_MODE_FILTER, 0, new Uint8Array(prog.buffer)) < 0)
    throw new Error('the filter cannot be set');
}

const { command, options } = JSON.parse(process.argv[2] ?? '') as {
  command: string[];
  options: CheckSimulatedOptions;
};
forbid(REFUSED[process.arch] ?? []);
const report = await checkSimulated(command, options);
process.stdout.write(JSON.stringify({ uid: process.getuid?.(), report }));
