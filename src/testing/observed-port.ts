// Observes the port of a simulated kernel: what was read, what was resolved, and how calls were answered. It changes no
// call.

import type { KernelPort, LinearMemory } from '../kernel/port.js';
import { E, REQUEST } from '../sim/abi.js';

/** Observer of the calls of a port. */
export interface PortObserver {
  /** Called when read(2) has returned messages. */
  read(fd: number, view: DataView, bytes: number): void;
  /** Called when an ioctl was answered. */
  answered(fd: number, call: ObservedCall): void;
}

export interface ObservedCall {
  readonly name: string;
  readonly start: bigint;
  readonly length: bigint;
  /** The result of the call: ≥ 0, or −errno. */
  readonly result: number;
  /** Bytes in which pages were installed. */
  readonly installed: number;
  /** Bytes in which the call resolved faults: pages were installed, or writes are allowed again. */
  readonly resolved: number;
}

/** By request: the name of the call, and the offsets of its length and its result; −1: it has none. */
const CALLS: Readonly<Record<number, readonly [name: string, length: number, result: number]>> = {
  [REQUEST.REGISTER]: ['REGISTER', 8, -1],
  [REQUEST.UNREGISTER]: ['UNREGISTER', 8, -1],
  [REQUEST.WAKE]: ['WAKE', 8, -1],
  [REQUEST.COPY]: ['COPY', 16, 32],
  [REQUEST.ZEROPAGE]: ['ZEROPAGE', 8, 24],
  [REQUEST.MOVE]: ['MOVE', 16, 32],
  [REQUEST.WRITEPROTECT]: ['WRITEPROTECT', 8, -1],
  [REQUEST.CONTINUE]: ['CONTINUE', 8, 24],
  [REQUEST.POISON]: ['POISON', 8, 24],
};

/** Calls without a result field that resolve all of their range. A WAKE does not: the woken threads fault again. */
const RESOLVING: readonly number[] = [REQUEST.WRITEPROTECT, REQUEST.UNREGISTER];

/** Observes a port. Its methods `ioctl` and `read` are replaced. */
export function observedPort(port: KernelPort, memory: LinearMemory, listener: PortObserver): KernelPort {
  const { ioctl, read } = port;
  return Object.assign(port, {
    ioctl(fd, request, at) {
      const result = ioctl.call(port, fd, request, at);
      const call = CALLS[request];
      if (call) listener.answered(fd, callOf(request, call, new DataView(memory.buffer, at), result));
      return result;
    },
    read(fd, at, length) {
      const result = read.call(port, fd, at, length);
      if (result > 0) listener.read(fd, new DataView(memory.buffer, at, result), result);
      return result;
    },
  } satisfies Pick<KernelPort, 'ioctl' | 'read'>);
}

function callOf(
  request: number,
  [name, lengthAt, resultAt]: readonly [string, number, number],
  view: DataView,
  result: number,
): ObservedCall {
  const start = view.getBigUint64(0, true);
  const length = view.getBigUint64(lengthAt, true);
  const whole = Number(length);
  let installed = 0;
  if (resultAt >= 0) {
    const out = Number(view.getBigInt64(resultAt, true));
    installed = result >= 0 ? whole : result === E.AGAIN && out > 0 ? out : 0;
  }
  let resolved = installed;
  if (RESOLVING.includes(request) && result >= 0) resolved = whole;
  return { name, start, length, result, installed, resolved };
}
