// Closes descriptors that came from another process, without ever waiting for it.
//
// close(2) can block for as long as the sender likes: a TCP socket that lingers (SO_LINGER) for an hour, a file of a FUSE
// daemon that never answers its flush, or a unix socket in whose queue such descriptors lie. So each close runs in a thread
// that does nothing else: a plain pthread whose start routine is libc's close itself. No JavaScript runs there, the event
// loop and libuv's four threads stay free, and a thread that still blocks does not keep the process from ending.
//
// Rules:
//  - Every descriptor is closed, in order. If no thread can be made now (a limit of tasks), it is tried again.
//  - At most THREADS_MOST threads block. Behind them descriptors wait; they count against the process's limit, so a server
//    stops accepting before it runs out of them.

import { libc } from './libc.js';

const THREADS_MOST = 32;
/** How long until threads are looked after again, in milliseconds: first, and at most. */
const LOOK_MS = 1;
const LOOK_MOST_MS = 250;

/** Descriptors that no thread closes yet. */
const waiting: number[] = [];
/** Threads that were started and have not been joined. */
let threads: bigint[] = [];
let timer: NodeJS.Timeout | undefined;
let pauseMs = LOOK_MS;
let closeAddress: bigint | undefined;

/** Closes a descriptor soon, in a thread of its own. The number is no longer the caller's. */
export function discard(fd: number): void {
  waiting.push(fd);
  pauseMs = LOOK_MS;
  start();
  lookLater();
}

/** Descriptors that are being closed: those that wait for a thread, and those whose close(2) has not returned. */
export function discarding(): number {
  return waiting.length + threads.length;
}

function start(): void {
  const c = libc();
  closeAddress ??= BigInt(c.dlsym(0, 'close'));
  const thread = new BigUint64Array(1);
  while (waiting.length > 0 && threads.length < THREADS_MOST) {
    const fd = waiting[0] as number;
    // The number is passed as the pointer that a start routine gets; close takes its lower half.
    if (c.pthread_create(c.koffi.address(thread), 0, closeAddress, fd) !== 0) return;
    waiting.shift();
    threads.push(thread[0] as bigint);
  }
}

/** Joins what has ended, and starts what waits. */
function look(): void {
  const c = libc();
  const before = discarding();
  threads = threads.filter((thread) => c.pthread_tryjoin_np(thread, 0) !== 0);
  start();
  pauseMs = discarding() < before ? LOOK_MS : Math.min(pauseMs * 2, LOOK_MOST_MS);
  timer = undefined;
  lookLater();
}

function lookLater(): void {
  // Not a reason for the process to stay: its end closes everything.
  if (timer === undefined && discarding() > 0) timer = setTimeout(look, pauseMs).unref();
}
