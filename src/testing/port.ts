// The port of a simulated kernel, with somebody listening: what was read, what was resolved, and how it was answered.
// Nothing is changed on the way.

import type { KernelPort, LinearMemory } from '../kernel.js';
import { E, REQUEST } from '../sim/abi.js';

/** Hears what crosses the port. */
export interface Listener {
  /** read(2) brought messages. */
  read(fd: number, view: DataView, bytes: number): void;
  /** An ioctl was answered. */
  answered(fd: number, call: Call): void;
}

export interface Call {
  readonly name: string;
  readonly start: bigint;
  readonly length: bigint;
  /** ≥ 0, or −errno. */
  readonly result: number;
  /** Bytes that pages were installed in. */
  readonly installed: number;
  /** Bytes in which faults are resolved by it: pages were installed, or writes are let through. */
  readonly resolved: number;
}

/** By request: its name, where its length lies, and where its result; −1: it has none. */
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

/** Calls without a result field that resolve all of their range. A WAKE does not: whoever is woken asks again. */
const RESOLVING: readonly number[] = [REQUEST.WRITEPROTECT, REQUEST.UNREGISTER];

export function listened(inner: KernelPort, memory: LinearMemory, listener: Listener): KernelPort {
  return {
    userfaultfd: (flags) => inner.userfaultfd(flags),
    openDevice: () => inner.openDevice(),
    ioctl(fd, request, at) {
      const result = inner.ioctl(fd, request, at);
      const call = CALLS[request];
      if (call) listener.answered(fd, callOf(request, call, new DataView(memory.buffer, at), result));
      return result;
    },
    ioctlValue: (fd, request, value) => inner.ioctlValue(fd, request, value),
    read(fd, at, length) {
      const result = inner.read(fd, at, length);
      if (result > 0) listener.read(fd, new DataView(memory.buffer, at, result), result);
      return result;
    },
    poll: (at, count, timeoutMs) => inner.poll(at, count, timeoutMs),
    fcntl: (fd, command, argument) => inner.fcntl(fd, command, argument),
    close: (fd) => inner.close(fd),
    eventfd: () => inner.eventfd(),
    pidfd: (pid) => inner.pidfd(pid),
    openPagemap: (pid) => inner.openPagemap(pid),
    pageSizeAt: (pid, address) => inner.pageSizeAt(pid, address),
    now: () => inner.now(),
    addressOf: (view) => inner.addressOf(view),
    watch: (fd, ready) => inner.watch(fd, ready),
    after: (delayMs, due) => inner.after(delayMs, due),
    ...(inner.raise ? { raise: (error: unknown) => inner.raise?.(error) } : {}),
  };
}

function callOf(
  request: number,
  [name, lengthAt, resultAt]: readonly [string, number, number],
  view: DataView,
  result: number,
): Call {
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
