// Processors: where the calling thread may run, where others ran last and how often they faulted (proc(5)), and how soon
// idle ones have to be back (Linux's Documentation/power/pm_qos_interface.rst).

import { closeSync, openSync, readdirSync, readFileSync, writeSync } from 'node:fs';
import type { Processors, ThreadSeen, Watch } from '../src/kernel.js';
import { now } from './clock.js';
import { libc } from './libc.js';

/** Of a mask: room for 8,192 processors, as many as Linux can be built for. */
const MASK_BYTES = 8192 / 8;
/** Fields of /proc/PID/task/TID/stat behind the name, counted from the state, which is field 3. */
const MINOR_FAULTS = 10 - 3;
const MAJOR_FAULTS = 12 - 3;
const PROCESSOR = 39 - 3;

/** As long as a number is written to it and it is open, no processor sleeps deeper than it takes so many µs to wake up. */
const WAKE_LATENCY = '/dev/cpu_dma_latency';

/** Written for each call, so one serves all. */
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
    const c = libc();
    mask.fill(0);
    for (const cpu of cpus) {
      if (cpu < MASK_BYTES * 8) mask[cpu >> 3] = (mask[cpu >> 3] as number) | (1 << (cpu & 7));
    }
    return c.sched_setaffinity(0, MASK_BYTES, mask) < 0 ? -c.errno() : 0;
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
    // By Node, which closes what a thread that is terminated has left open.
    fd = openSync(WAKE_LATENCY, 'r+');
    writeSync(fd, Int32Array.of(0));
    return { close: () => closeSync(fd) };
  } catch {
    if (fd >= 0) closeSync(fd);
    return undefined;
  }
}

/** Undefined: it has ended, or cannot be seen. */
function seen(pid: number, tid: number): ThreadSeen | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/task/${tid}/stat`, 'latin1');
    // The name may hold anything, so the last bracket ends it.
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
    return {
      tid,
      processor: Number(fields[PROCESSOR]),
      // A fault that was waited for counts as a major one.
      faults: Number(fields[MINOR_FAULTS]) + Number(fields[MAJOR_FAULTS]),
    };
  } catch {
    return undefined;
  }
}
