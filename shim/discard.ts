// Closes descriptors that came from another process, without ever waiting for that process.
//
// close(2) can block for as long as the sender likes. Examples are a TCP socket that lingers (SO_LINGER) for an hour, a
// file of a FUSE daemon that never answers its flush, and a unix socket whose queue holds such descriptors. So each
// close runs in a thread of its own, whose start routine is libc's close itself (pthread.ts).
//
// Rules:
//  - Every descriptor is closed, in order. If no thread can be started now (because of a limit of tasks), this is tried
//    again later.
//  - At most THREADS_MOST threads block. Further descriptors wait for a thread. They count against the process's limit
//    of open descriptors, so a server stops accepting connections before no descriptor is left.

import { hasEnded, startPthread } from './pthread.js';

const THREADS_MOST = 32;
/** Delay until the threads are checked again, in milliseconds: the first one, and the longest. */
const LOOK_MS = 1;
const LOOK_MOST_MS = 250;

/** Descriptors that wait for a thread. */
const waiting: number[] = [];
/** Threads that were started and not joined yet. */
let threads: bigint[] = [];
let timer: NodeJS.Timeout | undefined;
let pauseMs = LOOK_MS;

/** Closes a descriptor soon, in a thread of its own. The caller no longer owns the number. */
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
  while (waiting.length > 0 && threads.length < THREADS_MOST) {
    // The descriptor is passed in place of the start routine's pointer argument; close uses its lower half.
    const thread = startPthread('close', waiting[0] as number);
    if (thread === undefined) return;
    waiting.shift();
    threads.push(thread);
  }
}

/** Joins threads that have ended, and starts threads for waiting descriptors. */
function look(): void {
  const before = discarding();
  threads = threads.filter((thread) => !hasEnded(thread));
  start();
  pauseMs = discarding() < before ? LOOK_MS : Math.min(pauseMs * 2, LOOK_MOST_MS);
  timer = undefined;
  lookLater();
}

function lookLater(): void {
  // The timer does not keep the process alive: the end of the process closes everything.
  if (timer === undefined && discarding() > 0) timer = setTimeout(look, pauseMs).unref();
}
