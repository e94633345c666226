// What the figures were taken on, and whether the machine was busy with something else meanwhile.

import { readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, loadavg, release } from 'node:os';

/** Load averages from here on, and shares of other work, are worth a warning. */
const BUSY_LOAD = 0.5;
const BUSY_SHARE = 0.05;

/** The machine in words, without its name. */
export function machine(): string {
  const count = availableParallelism();
  const kind = text('/proc/cpuinfo').includes(' hypervisor') ? 'virtual machine' : 'machine';
  const model = cpus()[0]?.model.trim() ?? 'unknown processor';
  const system =
    process.platform === 'linux' ? `Linux ${release().replace(/^(\d+\.\d+).*/, '$1')}` : process.platform;
  const processors = count === 1 ? 'one-processor' : `${count}-processor`;
  return `${processors} ${kind} (${model}), ${system}, ${process.arch}, Node ${process.versions.node}`;
}

/** A warning where the load average says that somebody else is at work. */
export function loadWarning(): string | undefined {
  const [load = 0] = loadavg();
  if (load < BUSY_LOAD) return undefined;
  return `the load average is ${load.toFixed(2)}: this machine is busy, and the figures will show it`;
}

/** What the processors did besides this process and those that it has started, between two looks. */
export class OtherWork {
  readonly #begin = look();

  /** The share of all processors' time, 0 to 1, that went to others; undefined where that cannot be known. */
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

/** The processors' time in hundredths of a second, as the kernel counts it for user space. */
function look(): { total: number; busy: number; own: number } | undefined {
  const [, ...fields] = (text('/proc/stat').split('\n')[0] ?? '').split(/\s+/);
  const [user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0, steal = 0] =
    fields.map(Number);
  const busy = user + nice + system + irq + softirq + steal;
  const total = busy + idle + iowait;
  if (!total) return undefined;
  return { total, busy, own: timeOf(process.pid) };
}

/** What a process, those that it has started and those that it has waited for have had. */
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

/** Gives a setting of the kernel's another value until this process ends. What it was. Throws where that is not allowed. */
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
