// A process in which the doctor tries something, so that what hangs, or is killed, takes nothing else with it.

import type { ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { startProcess } from '../../embed.js';
import { COMMAND } from '../command-file.js';

/** What is kept of what a process writes to stderr. */
const COMPLAINT_CHARACTERS = 10_000;
/** How often it is looked whether its first thread is there: a filter may kill that alone, and then nothing ends. */
const LOOK_MS = 100;

/** How it ended. */
export interface HelperEnd {
  /** In words. */
  readonly why: string;
  /** The signal that killed it, or its first thread. */
  readonly signal: string | undefined;
}

/**
 * Runs a part in a process of its own, until that has answered so many times or has ended. Never rejects.
 *
 * @param limitMs between two answers
 */
export async function runHelper<Answer>(
  part: string,
  task: { readonly answers: number; readonly message: object },
  heard: (answer: Answer) => void,
  signal: AbortSignal,
  limitMs: number,
): Promise<HelperEnd> {
  let child: ChildProcess;
  try {
    child = startProcess(part, [], { stdio: ['ignore', 'ignore', 'pipe', 'ipc'] }, COMMAND);
  } catch (error) {
    return { why: (error as Error).message, signal: undefined };
  }
  const kill = (): void => void child.kill('SIGKILL');
  signal.addEventListener('abort', kill);
  let timer: NodeJS.Timeout | undefined;
  let look: NodeJS.Timeout | undefined;
  try {
    return await new Promise<HelperEnd>((resolve) => {
      const allow = (): void => {
        clearTimeout(timer);
        timer = setTimeout(() => {
          resolve({ why: `no end after ${limitMs / 1000} s`, signal: undefined });
          kill();
        }, limitMs);
      };
      let answers = 0;
      child.on('message', (answer: Answer) => {
        heard(answer);
        allow();
        if (++answers === task.answers) kill();
      });
      let complaint = '';
      child.stderr?.setEncoding('utf8').on('data', (text: string) => {
        complaint = (complaint + text).slice(-COMPLAINT_CHARACTERS);
      });
      child.on('error', (error) => resolve({ why: error.message, signal: undefined }));
      child.on('close', (code, killedBy) => {
        const [reason = ''] = /^\w*Error\b.*$/m.exec(complaint) ?? [];
        resolve({
          why: `its process ended with ${killedBy ?? `exit code ${code}`}${reason && `: ${reason}`}`,
          signal: killedBy ?? undefined,
        });
      });
      look = setInterval(() => {
        if (!isHeadless(child)) return;
        // Nothing but a filter kills one thread of a process.
        resolve({ why: 'its first thread was killed (SIGSYS)', signal: 'SIGSYS' });
        kill();
      }, LOOK_MS);
      // Where it cannot be told, it has ended, and that is heard.
      child.send(task.message, () => {});
      allow();
    });
  } finally {
    clearTimeout(timer);
    clearInterval(look);
    signal.removeEventListener('abort', kill);
    // One that cannot even be killed does not keep this process.
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
