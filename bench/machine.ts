// Describes the machine, and detects other work on it.

import { readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, loadavg, release } from 'node:os';

/** A load average, or a share of other work, of at least this value causes a warning. */
const BUSY_LOAD = 0.5;
const BUSY_SHARE = 0.05;

/** The machine in words, without its host name. */
export function machine(): string {
  const count = availableParallelism();
  const kind = text('/proc/cpuinfo').includes(' hypervisor') ? 'virtual machine' : 'machine';
  const model = cpus()[0]?.model.trim() ?? 'unknown processor';
  const system =
    process.platform === 'linux' ? `Linux ${release().replace(/^(\d+\.\d+).*/, '$1')}` : process.platform;
  const processors = count === 1 ? 'one-processor' : `${count}-processor`;
  return `${processors} ${kind} (${model}), ${system}, ${process.arch}, Node ${process.versions.node}`;
}

/** A warning if the load average says that the machine is busy. */
export function loadWarning(): string | undefined {
  const [load = 0] = loadavg();
  if (load < BUSY_LOAD) return undefined;
  return `the load average is ${load.toFixed(2)}: this machine is busy, and the figures will show it`;
}

/** Measures the processor time of other processes between two calls. */
export class OtherWork {
  readonly #begin = look();

  /** The share of all processors' time, 0 to 1, that other processes used; undefined if it is unknown. */
  share(): number | undefined {
    const begin = this.#begin;
    const end = look();
    if (!begin || !end || end.total === begin.total) return undefined;
    return Math.max(end.busy - begin.busy - (end.own - begin.own), 0) / (end.total - begin.total);
  }

  warning(): string | undefined {
    const share = this.share();
    if (share === undefined || share < BUSY_SHARE) return undefined;
    return `other work took ${(share * 100).toFixed(0)} % of the processors while this was measured`;
  }
}

/** The processors' time in the kernel's unit for user space (USER_HZ), hundredths of a second. */
function look(): { total: number; busy: number; own: number } | undefined {
  const [, ...fields] = (text('/proc/stat').split('\n')[0] ?? '').split(/\s+/);
  const [user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0, steal = 0] =
    fields.map(Number);
  const busy = user + nice + system + irq + softirq + steal;
  const total = busy + idle + iowait;
  if (!total) return undefined;
  return { total, busy, own: timeOf(process.pid) };
}

/** The processor time of a process and of its children, recursively. */
function timeOf(pid: number): number {
  const stat = text(`/proc/${pid}/stat`);
  const [, user = 0, system = 0, waitedUser = 0, waitedSystem = 0] =
    /^(?:\S+ ){11}(\d+) (\d+) (\d+) (\d+)/.exec(stat.slice(stat.lastIndexOf(')') + 2))?.map(Number) ?? [];
  const children = text(`/proc/${pid}/task/${pid}/children`).split(' ').filter(Boolean);
  return children.reduce(
    (sum, child) => sum + timeOf(Number(child)),
    user + system + waitedUser + waitedSystem,
  );
}

/** Changes a kernel setting until this process ends. Returns the old value. Throws if the kernel forbids the change. */
export function setUntilExit(path: string, next: (before: number) => number): number {
  const before = Number(readFileSync(path, 'utf8'));
  writeFileSync(path, `${next(before)}`);
  process.once('exit', () => writeFileSync(path, `${before}`));
  return before;
}

function text(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
