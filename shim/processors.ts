// Processors: where the calling thread may run, where others ran last and how often they faulted (proc(5)).

import { readdirSync, readFileSync } from 'node:fs';
import type { Processors, ThreadSeen } from '../src/kernel.js';
import { libc } from './libc.js';

/** Of a mask: room for 8,192 processors, as many as Linux can be built for. */
const MASK_BYTES = 8192 / 8;
/** Fields of /proc/PID/task/TID/stat behind the name, counted from the state, which is field 3. */
const MINOR_FAULTS = 10 - 3;
const MAJOR_FAULTS = 12 - 3;
const PROCESSOR = 39 - 3;

/** Written for each call, so one serves all. */
const mask = new Uint8Array(MASK_BYTES);

export const linuxProcessors: Processors = {
  allowed() {
    mask.fill(0);
    if (libc().sched_getaffinity(0, MASK_BYTES, mask) < 0) return [];
    return Array.from({ length: MASK_BYTES * 8 }, (_, cpu) => cpu).filter(
      (cpu) => (mask[cpu >> 3] as number) & (1 << (cpu & 7)),
    );
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
  now: () => performance.now(),
};

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
