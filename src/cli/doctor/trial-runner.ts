// Runs trials one after the other in a separate process. If a trial kills its process or hangs, that is its answer, and
// a new process continues with the next trial. So every trial has an answer in bounded time.

import type { ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { startProcess } from '../../embed.js';
import { COMMAND } from '../command-file.js';
import type { TrialTask } from './trials.js';

export interface TrialLimits {
  /** Time limit of one trial; for the first trial it includes the start of the process. */
  oneMs: number;
  /** Time limit of all trials together. */
  allMs: number;
}

export const LIMITS: TrialLimits = { oneMs: 10_000, allMs: 60_000 };
/** Characters kept of what a process writes to stderr. */
const STDERR_MOST = 10_000;
/**
 * Milliseconds between two reads of the process's state: a filter may kill only the first thread, and the process then
 * does not end.
 */
const CHECK_MS = 100;

/** How a process ended. */
export interface ProcessEnd {
  readonly why: string;
  /** The signal that killed it, or its first thread. */
  readonly signal?: string | undefined;
}

/**
 * Returns the answers in the order of the steps. There are fewer answers than steps if the time runs out.
 *
 * @param ended the answer to a step whose process ended before it answered
 * @throws the signal's reason
 */
export async function runSteps<Answer>(
  task: TrialTask,
  ended: (end: ProcessEnd) => Answer,
  signal: AbortSignal,
  { oneMs, allMs } = LIMITS,
): Promise<Answer[]> {
  const answers: Answer[] = [];
  const endMs = performance.now() + allMs;
  for (;;) {
    signal.throwIfAborted();
    const steps = task.steps.slice(answers.length);
    const leftMs = endMs - performance.now();
    if (steps.length === 0 || leftMs <= 0) return answers;
    const before = answers.length;
    const add = (answer: Answer): boolean => answers.push(answer) - before === steps.length;
    const end = await runProcess({ ...task, steps }, add, signal, Math.min(oneMs, leftMs));
    if (answers.length < task.steps.length) answers.push(ended(end));
  }
}

/** Runs one process until it ends, `onReply` says that it is done, or it is silent for too long. Never rejects. */
async function runProcess<Answer>(
  task: TrialTask,
  onReply: (answer: Answer) => boolean,
  signal: AbortSignal,
  limitMs: number,
): Promise<ProcessEnd> {
  let child: ChildProcess;
  try {
    child = startProcess('trials', [], { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] }, COMMAND);
  } catch (error) {
    return { why: (error as Error).message };
  }
  const kill = (): void => void child.kill('SIGKILL');
  signal.addEventListener('abort', kill);
  let look: NodeJS.Timeout | undefined;
  let limit: NodeJS.Timeout | undefined;
  try {
    return await new Promise<ProcessEnd>((resolve) => {
      limit = setTimeout(() => {
        resolve({ why: `no end after ${limitMs / 1000} s` });
        kill();
      }, limitMs);
      let headless = false;
      look = setInterval(() => {
        headless ||= isHeadless(child);
        if (headless) kill();
      }, CHECK_MS);
      let complaint = '';
      child.stderr?.setEncoding('utf8').on('data', (text: string) => {
        complaint = (complaint + text).slice(-STDERR_MOST);
      });
      child.on('message', (answer: Answer) => {
        limit?.refresh();
        if (onReply(answer)) kill();
      });
      child.on('error', ({ message }) => resolve({ why: message }));
      child.on('close', (code, by) => {
        // A process that a signal ends is headless for a moment too, and keeps that signal. Otherwise it was a filter:
        // nothing else kills one thread of a process.
        if (headless && by === 'SIGKILL') {
          resolve({ why: 'its first thread was killed (SIGSYS)', signal: 'SIGSYS' });
        }
        const [reason = ''] = /^\w*Error\b.*$/m.exec(complaint) ?? [];
        const why = `its process ended with ${by ?? `exit code ${code}`}${reason && `: ${reason}`}`;
        resolve({ why, signal: by ?? undefined });
      });
      // If sending fails the process has ended, and 'close' follows.
      child.send(task, () => {});
    });
  } finally {
    clearTimeout(limit);
    clearInterval(look);
    signal.removeEventListener('abort', kill);
    // A process that cannot be killed must not keep this process alive.
    child.unref();
    child.stderr?.destroy();
    if (child.connected) child.disconnect();
  }
}

/** Whether its first thread has ended, and others have not. */
function isHeadless({ pid, exitCode, signalCode }: ChildProcess): boolean {
  if (pid === undefined || exitCode !== null || signalCode !== null) return false;
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'latin1');
    return /^State:\tZ/m.test(status) && !/^Threads:\t1$/m.test(status);
  } catch {
    return false;
  }
}
