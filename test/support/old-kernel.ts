// The real kernel, made to answer like an older one: it hides later features, and refuses them as the old kernel would.
// It imitates only what the library asks for; memory behaves as on the real kernel.
//
// Rules: an unknown feature, mode, flag or request returns EINVAL, and a refused feature zeroes the struct. The device
// returns ENOENT, and pidfd_open ENOSYS. While a mapping change is under way, kernels before 6.15 leave the result
// field of a fill unchanged (docs/kernel.md).

import { readFileSync } from 'node:fs';
import { pageSizeAt } from '../../shim/memory.js';
import type { Kernel } from '../../src/index.js';
import { kernelWith, P } from './real-kernel.js';

export const VERSIONS = ['4.14', '5.7', '5.13', '6.1'] as const;
export type Version = (typeof VERSIONS)[number];

interface Knowledge {
  /** A bit per feature. */
  features: bigint;
  /** Bits of REGISTER's mode. */
  modes: bigint;
  /** A bit per operation, by number. */
  operations: bigint;
  /** Bits of the mode of COPY. */
  copyModes: bigint;
  userModeOnly: boolean;
  device: boolean;
  pidfd: boolean;
  /** Write-protect mode for shared memory and huge pages; minor mode for shared memory in small pages. */
  everywhere: boolean;
}

const BASE = 0x800000000000001fn;
const KNOWLEDGE: Record<Version, Knowledge> = {
  '4.14': {
    features: 0x1fen,
    modes: 1n,
    operations: BASE,
    copyModes: 1n,
    userModeOnly: false,
    device: false,
    pidfd: false,
    everywhere: false,
  },
  '5.7': {
    features: 0x1ffn,
    modes: 3n,
    operations: BASE | (1n << 6n),
    copyModes: 3n,
    userModeOnly: false,
    device: false,
    pidfd: true,
    everywhere: false,
  },
  '5.13': {
    features: 0x3ffn,
    modes: 7n,
    operations: BASE | (3n << 6n),
    copyModes: 3n,
    userModeOnly: true,
    device: false,
    pidfd: true,
    everywhere: false,
  },
  '6.1': {
    features: 0x1fffn,
    modes: 7n,
    operations: BASE | (3n << 6n),
    copyModes: 3n,
    userModeOnly: true,
    device: true,
    pidfd: true,
    everywhere: true,
  },
};

const EINVAL = -22;
const EAGAIN = -11;
const API = 0xc018aa3f;
const REGISTER = 0xc020aa00;
/** Offsets of a fill's mode and result in its struct, by request number. */
const FILLS: Record<number, { mode: number; result: number }> = {
  3: { mode: 24, result: 32 },
  4: { mode: 16, result: 24 },
  7: { mode: 16, result: 24 },
};

export function featuresOf(version: Version): bigint {
  return KNOWLEDGE[version].features;
}

/** The real kernel, imitating this version. */
export function oldKernel(version: Version): Kernel {
  const known = KNOWLEDGE[version];
  return kernelWith((real, memory) => {
    const { userfaultfd, openDevice, pidfd, ioctl } = bound(real);
    return {
      userfaultfd: (flags) => (flags & 1 && !known.userModeOnly ? EINVAL : userfaultfd(flags)),
      openDevice: () => (known.device ? openDevice() : -2),
      pidfd: (pid) => (known.pidfd ? pidfd(pid) : -38),
      ioctl(fd, request, at) {
        const struct = new DataView(memory.buffer, at, 40);
        const word = (offset: number): bigint => struct.getBigUint64(offset, true);
        const put = (offset: number, value: bigint): void => struct.setBigUint64(offset, value, true);
        if (request === API) {
          if (word(8) & ~known.features) {
            for (const offset of [0, 8, 16]) put(offset, 0n);
            return EINVAL;
          }
          const result = ioctl(fd, request, at);
          put(8, word(8) & known.features);
          return result;
        }
        if (request === REGISTER) {
          if (!mayWatch(known, word(0), word(16))) return EINVAL;
          const result = ioctl(fd, request, at);
          put(24, word(24) & known.operations);
          return result;
        }
        const number = request & 0xff;
        if (!((known.operations >> BigInt(number)) & 1n)) return EINVAL;
        const fill = FILLS[number];
        if (!fill) return ioctl(fd, request, at);
        if (word(fill.mode) & ~(number === 3 ? known.copyModes : 1n)) return EINVAL;
        const before = word(fill.result);
        const result = ioctl(fd, request, at);
        if (result === EAGAIN && struct.getBigInt64(fill.result, true) < 0n) put(fill.result, before);
        return result;
      },
    };
  });
}

type Port = Parameters<Parameters<typeof kernelWith>[0]>[0];

function bound(port: Port): Pick<Port, 'userfaultfd' | 'openDevice' | 'pidfd' | 'ioctl'> {
  return {
    userfaultfd: port.userfaultfd.bind(port),
    openDevice: port.openDevice.bind(port),
    pidfd: port.pidfd.bind(port),
    ioctl: port.ioctl.bind(port),
  };
}

function mayWatch(known: Knowledge, start: bigint, modes: bigint): boolean {
  if (modes & ~known.modes) return false;
  if (known.everywhere) return true;
  const huge = pageSizeAt(0, start) > P;
  const anonymous = !huge && isAnonymous(start);
  return (!(modes & 2n) || anonymous) && (!(modes & 4n) || huge);
}

/** Whether the mapping at an address has no file. */
function isAnonymous(address: bigint): boolean {
  for (const [, start, end, inode] of readFileSync('/proc/self/maps', 'latin1').matchAll(
    /^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)/gm,
  )) {
    if (address >= BigInt(`0x${start}`) && address < BigInt(`0x${end}`)) return inode === '0';
  }
  return false;
}
