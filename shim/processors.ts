// Processors: where the calling thread may run, where other threads ran last and how often they faulted (proc(5)), and the
// wake-up latency of idle processors (Linux's Documentation/power/pm_qos_interface.rst).

import { closeSync, openSync, readdirSync, readFileSync, writeSync } from 'node:fs';
import type { Processors, ThreadSeen, Watch } from '../src/kernel/port.js';
import { now } from './clock.js';
import { libc, orErrno } from './libc.js';

/** Bytes of a mask: room for 8,192 processors, the most that Linux can be built for. */
const MASK_BYTES = 8192 / 8;
/** Indices of fields of /proc/PID/task/TID/stat after the name, counted from the state, which is field 3. */
const MINOR_FAULTS = 10 - 3;
const MAJOR_FAULTS = 12 - 3;
const PROCESSOR = 39 - 3;

/**
 * While a process has this file open and has written a number of µs to it, no processor enters a sleep state that takes
 * longer to leave.
 */
const WAKE_LATENCY = '/dev/cpu_dma_latency';

/** Each call rewrites this buffer, so one buffer is enough for all calls. */
const mask = new Uint8Array(MASK_BYTES);

export const linuxProcessors: Processors = {
  allowed() {
    mask.fill(0);
    const cpus: number[] = [];
    if (libc().sched_getaffinity(0, MASK_BYTES, mask) < 0) return cpus;
    for (const [at, byte] of mask.entries()) {
      for (let bit = 0; byte >> bit > 0; bit++) if ((byte >> bit) & 1) cpus.push(at * 8 + bit);
    }
    return cpus;
  },
  place(cpus) {
    mask.fill(0);
    for (const cpu of cpus) {
      if (cpu < MASK_BYTES * 8) mask[cpu >> 3] = (mask[cpu >> 3] as number) | (1 << (cpu & 7));
    }
    return orErrno(libc().sched_setaffinity(0, MASK_BYTES, mask));
  },
  thread: (pid, tid) => seen(pid || process.pid, tid),
  threads(pid) {
    try {
      return readdirSync(`/proc/${pid || process.pid}/task`).flatMap((tid) => {
        return seen(pid || process.pid, Number(tid)) ?? [];
      });
    } catch {
      return [];
    }
  },
  yield: () => void libc().sched_yield(),
  keepAwake,
  now,
  after(delayMs, due) {
    const timer = setTimeout(due, delayMs);
    return { close: () => clearTimeout(timer) };
  },
};

function keepAwake(): Watch | undefined {
  let fd = -1;
  try {
    // Node opens the file, because Node closes files that a terminated worker has left open.
    fd = openSync(WAKE_LATENCY, 'r+');
    writeSync(fd, Int32Array.of(0));
    return { close: () => closeSync(fd) };
  } catch {
    if (fd >= 0) closeSync(fd);
    return undefined;
  }
}

/** A thread as /proc shows it. Undefined: the thread has ended, or /proc cannot be read. */
function seen(pid: number, tid: number): ThreadSeen | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/task/${tid}/stat`, 'latin1');
    // The name may contain anything, so the last bracket ends it.
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
    return {
      tid,
      processor: Number(fields[PROCESSOR]),
      // A fault that waited for a userfaultfd counts as a major one.
      faults: Number(fields[MINOR_FAULTS]) + Number(fields[MAJOR_FAULTS]),
    };
  } catch {
    return undefined;
  }
}
