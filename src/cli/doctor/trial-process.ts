// The process in which trials are made, one after the other, so that a trial that hangs or kills can be
// ended and leaves nothing behind. Told what to try by trials.ts; ends with whoever started it.

import { UffdError } from '../../index.js';
import { FEATURE_TRIALS, OPERATION_TRIALS, systemCalls } from './feature-trials.js';
import type { AccessFindings, Trial } from './findings.js';
import { createScene, NotTried, Refused, type Scene } from './scene.js';

export const TRIALS = { ...FEATURE_TRIALS, ...OPERATION_TRIALS, 'system-calls': systemCalls };

export type TrialName = keyof typeof TRIALS;

/** What the process is told. */
export interface Task {
  names: readonly TrialName[];
  way: NonNullable<AccessFindings['way']>;
}

/** What it tells after each trial. */
export interface Tried {
  name: TrialName;
  trial: Trial;
}

async function attempt(name: TrialName, scene: Scene): Promise<Trial> {
  try {
    await TRIALS[name](scene);
    return { outcome: 'ok' };
  } catch (error) {
    if (error instanceof NotTried) return { outcome: 'not tried', detail: error.message };
    if (error instanceof Refused) return { outcome: 'refused', detail: error.message };
    if (error instanceof UffdError && error.code === 'EPERM' && error.syscall === 'UFFDIO_API') {
      return { outcome: 'refused', detail: 'it needs CAP_SYS_PTRACE' };
    }
    return { outcome: 'failed', detail: (error as Error).message };
  }
}

/** Runs in a process of its own. */
export function makeTrialsAsTold(): void {
  // A thread that sleeps in a fault would hold up an ordinary exit.
  process.on('disconnect', () => process.kill(process.pid, 'SIGKILL'));
  process.once('message', async ({ names, way }: Task) => {
    const scene = createScene(way);
    for (const name of names) {
      const trial = await attempt(name, scene);
      process.send?.({ name, trial } satisfies Tried);
    }
  });
}
