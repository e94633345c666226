// Watches descriptors on the event loop, until they are readable.
//
// Rule: libuv's poll is used on Node alone. Bun's functions of that name end the process (Bun 1.4). Deno's report a
// userfaultfd once or twice, and then never again (Deno 2.9). On Bun and Deno a timer calls poll(2) instead.

import type { Watch } from '../src/kernel/port.js';
import { libc, orErrno } from './libc.js';

/** Delay of the next poll after a poll that found nothing. */
const POLL_AGAIN_MS = 1;
/** struct pollfd: the descriptor, then events and revents in one word. */
const POLLFD_WORDS = 2;
const POLLIN = 1;

/**
 * Active watches. libuv polls only as long as JavaScript references the handle, and nothing else references a handle
 * that only waits.
 */
const watching = new Set<Watch>();
const onNode = hasPoll(process.versions);

/** Calls back on the event loop whenever a descriptor is readable. */
export function watchReadable(fd: number, ready: () => void): Watch {
  const handle = onNode ? pollByLibuv(fd, ready) : pollByTimer(fd, ready);
  const watch = {
    close() {
      if (watching.delete(watch)) handle.close();
    },
  };
  watching.add(watch);
  return watch;
}

/** Whether a runtime has a complete implementation of libuv's poll. */
export function hasPoll({ bun, deno }: NodeJS.ProcessVersions): boolean {
  return bun === undefined && deno === undefined;
}

function pollByLibuv(fd: number, ready: () => void): Watch {
  let open = true;
  // koffi passes libuv's status as the first argument, whatever its type declarations say.
  const polled: (...args: unknown[]) => void = (status) => {
    ready();
    // libuv stops on POLLERR, which poll(2) reports for a userfaultfd whose O_NONBLOCK was cleared by another process.
    if (typeof status === 'number' && status < 0 && open) handle.start({ readable: true }, polled);
  };
  const handle = libc().koffi.node.poll(fd, { readable: true }, polled);
  return {
    close() {
      open = false;
      handle.stop();
      handle.close();
    },
  };
}

// ---- without an event loop -------------------------------------------------------------------------------

const EFD_NONBLOCK_CLOEXEC = 0x80800;

/** An eventfd, non-blocking and close-on-exec; −errno. */
export function makeEventfd(): number {
  return orErrno(libc().eventfd(0, EFD_NONBLOCK_CLOEXEC));
}

/** Adds 1 to an eventfd's counter. */
export function signalEventfd(fd: number): number {
  return orErrno(libc().eventfd_write(fd, 1));
}

const counter = new BigUint64Array(1);

/** Sets an eventfd's counter to 0. */
export function drainEventfd(fd: number): void {
  const c = libc();
  c.read(fd, c.koffi.address(counter), 8);
}

/** Sleeps until one of the descriptors is readable, or the time is up (−1: no limit). Returns how many are readable. */
export function waitReadable(fds: readonly number[], timeoutMs: number): number {
  const c = libc();
  const polled = new Int32Array(fds.length * POLLFD_WORDS);
  for (const [index, fd] of fds.entries()) polled.set([fd, POLLIN], index * POLLFD_WORDS);
  return orErrno(c.poll(c.koffi.address(polled), fds.length, timeoutMs));
}

// ---- by a timer --------------------------------------------------------------------------------------------

interface PolledDescriptor {
  fd: number;
  ready: () => void;
}

/** The descriptors to poll, in the order of `pollfds`. */
const watched = new Set<PolledDescriptor>();
let timer: NodeJS.Timeout | undefined;
let pollfds = new Int32Array();

/** The timer keeps the process alive, as libuv's handle does. */
export function pollByTimer(fd: number, ready: () => void): Watch {
  const entry = { fd, ready };
  watched.add(entry);
  timer ??= setTimeout(pollAll, 0);
  return {
    close() {
      watched.delete(entry);
      if (watched.size > 0) return;
      clearTimeout(timer);
      timer = undefined;
    },
  };
}

/**
 * Polls all descriptors with one poll(2), which does not wait. Then calls back for those that are ready and still
 * watched.
 */
function pollAll(): void {
  const polled = [...watched];
  if (pollfds.length < polled.length * POLLFD_WORDS) pollfds = new Int32Array(polled.length * POLLFD_WORDS);
  for (const [index, { fd }] of polled.entries()) pollfds.set([fd, POLLIN], index * POLLFD_WORDS);
  const c = libc();
  const found = c.poll(Number(c.koffi.address(pollfds)), polled.length, 0);
  const ready = found > 0 ? polled.filter((_, index) => (pollfds[index * POLLFD_WORDS + 1] ?? 0) >>> 16) : [];
  timer = setTimeout(pollAll, found > 0 ? 0 : POLL_AGAIN_MS);
  for (const entry of ready) if (watched.has(entry)) entry.ready();
}
