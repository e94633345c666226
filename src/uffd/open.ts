// Opens descriptors: by system call or device, for all faults or for faults of user mode only;
// and performs the handshake, which fixes the features for good.

import { Errno, UffdError, UnsupportedError } from '../errors/errors.js';
import { featureBits, missingFeatures } from '../kernel/features.js';
import type { KernelPort } from '../kernel/port.js';
import type { Core } from './core.js';
import { Session } from './session.js';

/** How a descriptor was opened. */
export interface OpenMethod {
  readonly via: 'syscall' | 'device';
  readonly userModeOnly: boolean;
}

/** The methods to try, in order: descriptors that serve all faults first, the system call first. */
export function openMethods(
  via: 'auto' | 'syscall' | 'device',
  userModeOnly: boolean | 'auto',
): OpenMethod[] {
  const vias: OpenMethod['via'][] = via === 'auto' ? ['syscall', 'device'] : [via];
  const kinds = userModeOnly === 'auto' ? [false, true] : [userModeOnly];
  return kinds.flatMap((kind) => vias.map((via) => ({ via, userModeOnly: kind })));
}

/** Opens a descriptor by the first method that works. */
export function openDescriptor(
  core: Core,
  port: KernelPort,
  methods: readonly OpenMethod[],
): { fd: number; method: OpenMethod } {
  let first: UffdError | UnsupportedError | undefined;
  for (const method of methods) {
    const fd = tryToOpen(core, port, method);
    if (typeof fd === 'number') return { fd, method };
    first ??= fd;
    // Try the next method only if the kernel refuses this method or does not have it.
    if (!['EPERM', 'ENOSYS', 'ENOENT', 'EACCES'].includes(fd.code)) break;
  }
  throw first;
}

function userModeUnknown(): UnsupportedError {
  return new UnsupportedError(
    'userModeOnly needs Linux 5.11, and this kernel does not know it; open with userModeOnly: false',
  );
}

function tryToOpen(core: Core, port: KernelPort, method: OpenMethod): number | UffdError | UnsupportedError {
  const flags = core.exports.openFlags(method.userModeOnly);
  if (method.via === 'syscall') {
    const fd = port.userfaultfd(flags);
    // This is the only flag passed here that a kernel may not know.
    if (fd === -(Errno.EINVAL as number) && method.userModeOnly) return userModeUnknown();
    return fd < 0 ? new UffdError(fd, 'userfaultfd') : fd;
  }
  const device = port.openDevice();
  if (device < 0) return new UffdError(device, '/dev/userfaultfd');
  const fd = port.ioctlValue(device, core.exports.openRequest(), flags);
  port.close(device);
  return fd < 0 ? new UffdError(fd, '/dev/userfaultfd') : fd;
}

/**
 * The handshake: turns features on, once for the life of the descriptor. Optional features are left out if the kernel
 * lacks or refuses them. Returns the bits of the features that are on.
 *
 * @throws UnsupportedError if the kernel lacks a feature. The message names it, and the version that brings it
 */
export function handshake(session: Session, method: OpenMethod, required: bigint, optional: bigint): bigint {
  const offers = (): bigint => probe(session.core, session.port, [method]).features;
  const offered = optional & ~required ? offers() : undefined;
  let requested = required | (optional & (offered ?? 0n));
  let result = api(session, requested);
  const fork = featureBits(['event-fork'], 'optional');
  if (result === -(Errno.EPERM as number) && requested & fork & ~required) {
    requested &= ~fork;
    result = api(session, requested);
  }
  if (result < 0) {
    const missing = required & ~(offered ?? offers());
    throw missing ? missingFeatures(required, required & ~missing) : new UffdError(result, 'UFFDIO_API');
  }
  // With 'wp-async' the kernel also turns 'wp-unpopulated' on.
  const async = featureBits(['wp-async'], 'features');
  return requested & async ? requested | featureBits(['wp-unpopulated'], 'features') : requested;
}

function api(session: Session, features: bigint): number {
  return session.ioctl(session.core.arguments(0n, 0, features).requestApi());
}

/**
 * What this kernel offers. Each descriptor allows one handshake, so this opens a descriptor of its own, by the first
 * method that works.
 */
export function probe(
  core: Core,
  port: KernelPort,
  methods: readonly OpenMethod[],
): { method: OpenMethod; features: bigint; operations: bigint } {
  const { fd, method } = openDescriptor(core, port, methods);
  const session = new Session(core, port, fd, 0);
  const result = api(session, 0n);
  port.close(fd);
  if (result < 0) throw new UffdError(result, 'UFFDIO_API');
  core.exports.apiGranted();
  return { method, features: core.start, operations: core.end };
}
