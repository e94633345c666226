// Seeing descriptors become readable, on the event loop.
//
// Rule: libuv's poll is used on Node alone. Bun has functions of that name which end the process (1.4), and Deno's tell
// of a userfaultfd once or twice and never again (2.9); there poll(2) is called by a timer.

import type { Watch } from '../src/kernel.js';
import { libc } from './libc.js';

/** When to look again behind a look that found nothing. */
const LOOK_AGAIN_MS = 1;
/** struct pollfd: the descriptor, then events and revents in one word. */
const POLLFD_WORDS = 2;
const POLLIN = 1;

/**
 * libuv polls only as long as the handle is referenced, and a handle that is only waiting is referenced by
 * nothing else: whoever watches is kept here.
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

/** Whether a runtime has libuv's poll, and all of it. */
export function hasPoll({ bun, deno }: NodeJS.ProcessVersions): boolean {
  return bun === undefined && deno === undefined;
}

function pollByLibuv(fd: number, ready: () => void): Watch {
  let open = true;
  // koffi passes libuv's status first, whatever its types say.
  const heard: (...args: unknown[]) => void = (status) => {
    ready();
    // libuv stops where poll(2) says POLLERR, as it does of a userfaultfd whose O_NONBLOCK somebody has cleared.
    if (typeof status === 'number' && status < 0 && open) handle.start({ readable: true }, heard);
  };
  const handle = libc().koffi.node.poll(fd, { readable: true }, heard);
  return {
    close() {
      open = false;
      handle.stop();
      handle.close();
    },
  };
}

// ---- by a timer --------------------------------------------------------------------------------------------

interface Look {
  fd: number;
  ready: () => void;
}

/** What is looked at, in this order. */
const looks = new Set<Look>();
let timer: NodeJS.Timeout | undefined;
let pollfds = new Int32Array();

/** The timer keeps the process alive, as libuv's handle does. */
export function pollByTimer(fd: number, ready: () => void): Watch {
  const look = { fd, ready };
  looks.add(look);
  timer ??= setTimeout(lookAtAll, 0);
  return {
    close() {
      looks.delete(look);
      if (looks.size > 0) return;
      clearTimeout(timer);
      timer = undefined;
    },
  };
}

/** One poll(2) for all, which does not wait; whoever is ready and still watched is told. */
function lookAtAll(): void {
  const asked = [...looks];
  if (pollfds.length < asked.length * POLLFD_WORDS) pollfds = new Int32Array(asked.length * POLLFD_WORDS);
  for (const [index, { fd }] of asked.entries()) pollfds.set([fd, POLLIN], index * POLLFD_WORDS);
  const c = libc();
  const found = c.poll(Number(c.koffi.address(pollfds)), asked.length, 0);
  const ready = found > 0 ? asked.filter((_, index) => (pollfds[index * POLLFD_WORDS + 1] ?? 0) >>> 16) : [];
  timer = setTimeout(lookAtAll, found > 0 ? 0 : LOOK_AGAIN_MS);
  for (const look of ready) if (looks.has(look)) look.ready();
}
