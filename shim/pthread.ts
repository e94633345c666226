// Plain pthreads whose start routine is a function of libc. They run no JavaScript, so the event loop and libuv's four
// threads stay free while one of them blocks (in `close`), or sleeps in a page fault (in `strlen`, which reads memory
// until the first zero byte). A thread that still blocks does not keep the process from ending.

import { libc } from './libc.js';

/** `atol` reads digits, `sem_post` adds 1 to the word at an address, in one step. */
type Routine = 'close' | 'strlen' | 'atol' | 'sem_post';

/** Bytes of pthread_attr_t, on any C library and architecture. */
const ATTRIBUTES_BYTES = 128;

/** Addresses of start routines. */
const routines = new Map<Routine, bigint>();

/**
 * Starts a thread that calls a function with one argument. Undefined: no thread can be made now (a limit of tasks).
 * `stackBytes`: for many threads; default: the system's, which is megabytes.
 */
export function startPthread(
  routine: Routine,
  argument: number | bigint,
  stackBytes?: number,
): bigint | undefined {
  const c = libc();
  const address = routines.get(routine) ?? BigInt(c.dlsym(0, routine));
  routines.set(routine, address);
  const thread = new BigUint64Array(1);
  const attributes = stackBytes === undefined ? undefined : new Uint8Array(ATTRIBUTES_BYTES);
  const where = attributes === undefined ? 0n : c.koffi.address(attributes);
  if (stackBytes !== undefined) {
    c.pthread_attr_init(where);
    c.pthread_attr_setstacksize(where, stackBytes);
  }
  const made = c.pthread_create(c.koffi.address(thread), where, address, argument) === 0;
  if (stackBytes !== undefined) c.pthread_attr_destroy(where);
  return made ? thread[0] : undefined;
}

/** Whether a thread has ended. If so, it is released, and must not be asked for again. */
export function hasEnded(thread: bigint): boolean {
  return libc().pthread_tryjoin_np(thread, 0) === 0;
}

/** The result of a thread's function, if the thread has ended; it is released then. */
export function resultOf(thread: bigint): bigint | undefined {
  const c = libc();
  const result = new BigUint64Array(1);
  return c.pthread_tryjoin_np(thread, c.koffi.address(result)) === 0 ? result[0] : undefined;
}
