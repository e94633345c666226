// How a descriptor comes into being: by system call or device, for faults of both modes or of user mode only,
// and the handshake that fixes its features for good.

import { Channel } from './channel.js';
import type { Core } from './core.js';
import { Errno, UffdError, UnsupportedError } from './errors.js';
import { featureBits, missingFeatures } from './features.js';
import type { KernelPort } from './kernel.js';

/** How a descriptor was opened. */
export interface Way {
  readonly via: 'syscall' | 'device';
  readonly userModeOnly: boolean;
}

/** The ways to try, in order: the kind that serves all faults first, the system call first. */
export function waysToOpen(via: 'auto' | 'syscall' | 'device', userModeOnly: boolean | 'auto'): Way[] {
  const doors: Way['via'][] = via === 'auto' ? ['syscall', 'device'] : [via];
  const kinds = userModeOnly === 'auto' ? [false, true] : [userModeOnly];
  return kinds.flatMap((kind) => doors.map((door) => ({ via: door, userModeOnly: kind })));
}

/** Opens a descriptor in the first way that works. */
export function openDescriptor(core: Core, port: KernelPort, ways: readonly Way[]): { fd: number; way: Way } {
  let first: UffdError | UnsupportedError | undefined;
  for (const way of ways) {
    const fd = tryToOpen(core, port, way);
    if (typeof fd === 'number') return { fd, way };
    first ??= fd;
    // Only a door that is shut is a reason to try the next one.
    if (!['EPERM', 'ENOSYS', 'ENOENT', 'EACCES'].includes(fd.code)) break;
  }
  throw first;
}

function userModeUnknown(): UnsupportedError {
  return new UnsupportedError(
    'userModeOnly needs Linux 5.11, and this kernel does not know it; open with userModeOnly: false',
  );
}

function tryToOpen(core: Core, port: KernelPort, way: Way): number | UffdError | UnsupportedError {
  const flags = core.exports.openFlags(way.userModeOnly ? 1 : 0);
  if (way.via === 'syscall') {
    const fd = port.userfaultfd(flags);
    // The only flag of ours that a kernel may not know.
    if (fd === -(Errno.EINVAL as number) && way.userModeOnly) return userModeUnknown();
    return fd < 0 ? new UffdError(fd, 'userfaultfd') : fd;
  }
  const device = port.openDevice();
  if (device < 0) return new UffdError(device, '/dev/userfaultfd');
  const fd = port.ioctlValue(device, core.exports.openRequest(), flags);
  port.close(device);
  return fd < 0 ? new UffdError(fd, '/dev/userfaultfd') : fd;
}

/**
 * The handshake: turns features on, once for the life of the descriptor. Those that are only wished for are left
 * out where the kernel lacks them or refuses them. The bits of the features that are on.
 *
 * @throws UnsupportedError for a feature that the kernel lacks: which, and the version that brings it
 */
export function handshake(channel: Channel, way: Way, wanted: bigint, wished: bigint): bigint {
  const offers = (): bigint => probe(channel.core, channel.port, [way]).features;
  const offered = wished & ~wanted ? offers() : undefined;
  let asked = wanted | (wished & (offered ?? 0n));
  let result = api(channel, asked);
  const fork = featureBits(['event-fork'], 'optional');
  if (result === -(Errno.EPERM as number) && asked & fork & ~wanted) {
    asked &= ~fork;
    result = api(channel, asked);
  }
  if (result < 0) {
    const lacks = wanted & ~(offered ?? offers());
    throw lacks ? missingFeatures(wanted, wanted & ~lacks) : new UffdError(result, 'UFFDIO_API');
  }
  // The kernel turns the second on with the first.
  const async = featureBits(['wp-async'], 'features');
  return asked & async ? asked | featureBits(['wp-unpopulated'], 'features') : asked;
}

function api(channel: Channel, features: bigint): number {
  return channel.ioctl(channel.core.exports.requestApi(features));
}

/**
 * What this kernel offers. The handshake can be done once, so a descriptor is used up for the question; the first
 * way that works says so.
 */
export function probe(
  core: Core,
  port: KernelPort,
  ways: readonly Way[],
): { way: Way; features: bigint; operations: bigint } {
  const { fd, way } = openDescriptor(core, port, ways);
  const channel = new Channel(core, port, fd, 0);
  const result = api(channel, 0n);
  port.close(fd);
  if (result < 0) throw new UffdError(result, 'UFFDIO_API');
  const { exports } = core;
  return {
    way,
    features: BigInt.asUintN(64, exports.apiFeatures()),
    operations: BigInt.asUintN(64, exports.apiOperations()),
  };
}
