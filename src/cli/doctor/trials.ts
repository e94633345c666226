// Has the trials made, in a process of their own. A trial that does not end is ended, one that kills its
// process is told, and the others go on in a new process: every trial has an outcome, in bounded time.

import type { ChildProcess } from 'node:child_process';
import { startProcess } from '../../embed.js';
import { COMMAND } from '../command-file.js';
import type { Trial } from './findings.js';
import type { Task, TrialName, Tried } from './trial-process.js';

export interface TrialLimits {
  /** For one trial; for the first one the start of the process is part of it. */
  oneMs: number;
  /** For all of them. */
  allMs: number;
}

export const LIMITS: TrialLimits = { oneMs: 10_000, allMs: 60_000 };

/** What is kept of what a process writes to stderr. */
const COMPLAINT_CHARACTERS = 10_000;

/** @throws the signal's reason */
export async function makeTrials(
  names: readonly TrialName[],
  way: Task['way'],
  signal: AbortSignal,
  limits = LIMITS,
): Promise<ReadonlyMap<TrialName, Trial>> {
  const trials = new Map<TrialName, Trial>();
  const endMs = performance.now() + limits.allMs;
  for (;;) {
    signal.throwIfAborted();
    const left = names.filter((name) => !trials.has(name));
    const leftMs = endMs - performance.now();
    if (leftMs <= 0)
      for (const name of left) trials.set(name, { outcome: 'not tried', detail: 'no time was left' });
    if (left.length === 0 || leftMs <= 0) return trials;
    const took = (name: TrialName, trial: Trial): void => void trials.set(name, trial);
    const why = await runProcess({ names: left, way }, took, signal, Math.min(limits.oneMs, leftMs));
    // What it was at when it ended is what ended it.
    const culprit = left.find((name) => !trials.has(name));
    if (culprit !== undefined) trials.set(culprit, { outcome: 'failed', detail: why });
  }
}

/** Runs one process until it has made all trials or has ended; why it did. Never rejects. */
async function runProcess(
  task: Task,
  took: (name: TrialName, trial: Trial) => void,
  signal: AbortSignal,
  limitMs: number,
): Promise<string> {
  let child: ChildProcess;
  try {
    child = startProcess('trials', [], { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] }, COMMAND);
  } catch (error) {
    return (error as Error).message;
  }
  const kill = (): void => void child.kill('SIGKILL');
  signal.addEventListener('abort', kill);
  let timer: NodeJS.Timeout | undefined;
  try {
    return await new Promise<string>((resolve) => {
      const allow = (): void => {
        clearTimeout(timer);
        timer = setTimeout(() => {
          resolve(`no end after ${limitMs / 1000} s`);
          kill();
        }, limitMs);
      };
      let made = 0;
      child.on('message', ({ name, trial }: Tried) => {
        took(name, trial);
        allow();
        if (++made === task.names.length) kill();
      });
      let complaint = '';
      child.stderr?.setEncoding('utf8').on('data', (text: string) => {
        complaint = (complaint + text).slice(-COMPLAINT_CHARACTERS);
      });
      child.on('error', (error) => resolve(error.message));
      child.on('close', (code, killedBy) => {
        const [reason = ''] = /^\w*Error\b.*$/m.exec(complaint) ?? [];
        resolve(`its process ended with ${killedBy ?? `exit code ${code}`}${reason && `: ${reason}`}`);
      });
      // Where it cannot be told, it has ended, and that is heard.
      child.send(task, () => {});
      allow();
    });
  } finally {
    clearTimeout(timer);
    signal.removeEventListener('abort', kill);
    // One that cannot even be killed does not keep this process.
    child.unref();
    child.stderr?.destroy();
    if (child.connected) child.disconnect();
  }
}
