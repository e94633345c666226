// A control group whose memory a test limits, for one program.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { leaveOut, skip } from './harness.js';

const ROOT = '/sys/fs/cgroup';

export interface MemoryGroup {
  /**
   * Makes a call without memory fail with ENOMEM, where the kernel would kill a process of the group. Returns the start of
   * a command line that runs the rest in the group. Skips the test if that cannot be had.
   */
  refusing(): readonly string[];
  /** The start of a command line that runs the rest in the group. */
  readonly under: readonly string[];
  /** Bytes that the group uses. */
  usage(): number;
  limit(bytes: number): void;
}

/** The folder of groups in which another one can be made, and the names of its files. */
function place(): { folder: string; usage: string; limit: string; control?: string } {
  const own = readFileSync('/proc/self/cgroup', 'latin1');
  const [, first] = /^\d+:memory:(.*)$/m.exec(own) ?? [];
  if (first !== undefined)
    return {
      folder: join(ROOT, 'memory', first),
      usage: 'memory.usage_in_bytes',
      limit: 'memory.limit_in_bytes',
      control: 'memory.oom_control',
    };
  const [, unified = '/'] = /^0::(.*)$/m.exec(own) ?? [];
  // A group with processes has no children with a limit of their own, so the nearest one above it that has.
  for (let folder = join(ROOT, unified); folder.startsWith(ROOT); folder = dirname(folder)) {
    const file = join(folder, 'cgroup.subtree_control');
    if (existsSync(file) && /\bmemory\b/.test(readFileSync(file, 'latin1')))
      return { folder, usage: 'memory.current', limit: 'memory.max' };
  }
  return leaveOut('no control group limits memory here');
}

/** Calls `body` with a new group, whose programs must have ended when it returns. Skips the test if none can be made. */
export async function withMemoryGroup(body: (group: MemoryGroup) => Promise<void>): Promise<void> {
  if (process.getuid?.() !== 0) skip('only root can make a control group');
  const { folder, usage, limit, control } = place();
  const group = join(folder, `uffd-test-${process.pid}`);
  try {
    mkdirSync(group);
  } catch (error) {
    leaveOut(`no control group can be made here: ${(error as Error).message}`);
  }
  try {
    const under = ['sh', '-c', 'echo $$ > "$1" && shift && exec "$@"', 'sh', join(group, 'cgroup.procs')];
    await body({
      under,
      refusing() {
        if (control !== undefined) {
          writeFileSync(join(group, control), '1');
          return under;
        }
        const unkillable = ['choom', '-n', '-1000', '--'];
        const tried = spawnSync('choom', [...unkillable.slice(1), 'true'], { encoding: 'utf8' });
        if (tried.status !== 0)
          leaveOut(`no process can be kept from being killed: ${tried.stderr || tried.error}`);
        return [...under, ...unkillable];
      },
      usage: () => Number(readFileSync(join(group, usage), 'latin1')),
      limit: (bytes) => writeFileSync(join(group, limit), String(bytes)),
    });
  } finally {
    await removed(group);
  }
}

/** A process that has ended leaves its group a moment later. */
async function removed(group: string): Promise<void> {
  for (let tries = 0; ; tries++) {
    try {
      rmdirSync(group);
      return;
    } catch (error) {
      if (tries === 200) throw error;
      await sleep(10);
    }
  }
}
