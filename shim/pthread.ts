// Plain pthreads whose start routine is a function of libc. They run no JavaScript, so the event loop and libuv's four
// threads stay free while one of them blocks (in `close`), or sleeps in a page fault (in `strlen`, which reads memory
// until the first zero byte). A thread that still blocks does not keep the process from ending.

import { libc } from './libc.js';

type Routine = 'close' | 'strlen';

/** Addresses of start routines. */
const routines = new Map<Routine, bigint>();

/** Starts a thread that calls a function with one argument. Undefined: no thread can be made now (a limit of tasks). */
export function startPthread(routine: Routine, argument: number | bigint): bigint | undefined {
  const c = libc();
  const address = routines.get(routine) ?? BigInt(c.dlsym(0, routine));
  routines.set(routine, address);
  const thread = new BigUint64Array(1);
  return c.pthread_create(c.koffi.address(thread), 0, address, argument) === 0 ? thread[0] : undefined;
}

/** Whether a thread has ended. If so, it is released, and must not be asked for again. */
export function hasEnded(thread: bigint): boolean {
  return libc().pthread_tryjoin_np(thread, 0) === 0;
}
