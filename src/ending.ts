// The end of a process whose threads sleep in page faults that nobody answers any more.
//
// A process that ends waits for its workers, and a worker that sleeps in a page fault ends only when the fault is answered
// or the userfaultfd is closed. Closed, it would let that worker go on with pages of zeros, in a process that still
// runs. So the process is ended as a whole instead, at the moment at which it ends anyway: no thread reads anything then.
//
// Rules:
//  - A process that goes on is left alone: a listener of 'uncaughtException' or of a worker's 'error' has the say.
//  - The error is told first, by the thread that has it, without the help of another: that one may be asleep.
//  - The main thread cannot be told anything while it sleeps in a page fault. If the only thread that serves it dies of an
//    error, the process ends.

import { readdirSync, readFileSync, readlinkSync, writeSync } from 'node:fs';
import { inspect } from 'node:util';
import { isMainThread } from 'node:worker_threads';
import { exitNow, killAfter, threadIds, waitsForUserfaultfd } from '../shim/process.js';
import { anyOpen } from './registry.js';

const STDERR = 2;
const FAILED = 1;
/** How long the main thread has to sleep in a page fault, behind the death of a thread that served it, to count as lost. */
const LOST_MS = 1000;
const LOOK_MS = 5;
/** A thread that has told the kernel of its fault is asleep a moment later. */
const FALLS_ASLEEP_MS = 500;
/** A thread may fault behind the last look. A process with an open userfaultfd that has not ended after so long is killed. */
const END_MOST_S = 3;

let seen = false;
/** What ends the process, before Node has told it. */
let uncaught: { error: unknown } | undefined;

/** Sees to the end of this thread, from its first userfaultfd or mapping on. */
export function seeToEnd(): void {
  if (seen || typeof process?.on !== 'function') return;
  seen = true;
  process.on('uncaughtExceptionMonitor', (error) => {
    if (isHandled()) return;
    if (isMainThread) uncaught = { error };
    else workerDies(error);
  });
  if (isMainThread) process.on('exit', processEnds);
}

/** Whether the program goes on behind an uncaught exception. */
function isHandled(): boolean {
  return process.listenerCount('uncaughtException') > 0 || process.hasUncaughtExceptionCaptureCallback();
}

/** A thread with userfaultfds that are open ends with an error. */
function workerDies(error: unknown): void {
  if (!anyOpen()) return;
  say(
    `userfaultfd: a thread ends that serves page faults, and nobody serves them any more: ${inspect(error)}`,
  );
  for (let waited = 0; waited < LOST_MS; waited += LOOK_MS) {
    if (!waitsForUserfaultfd(process.pid)) return;
    pause();
  }
  say('userfaultfd: the main thread sleeps in a page fault that is not answered any more: the process ends');
  exitNow(FAILED);
}

/** Behind the last listener Node waits for all workers: see above. */
function processEnds(code: number): void {
  if (!aThreadSleeps()) return;
  if (uncaught) say(`Uncaught ${inspect(uncaught.error)}`);
  try {
    for (const listener of listenersBehind()) listener.call(process, code);
  } catch (error) {
    say(`Uncaught ${inspect(error)}`);
  } finally {
    exitNow(Number(process.exitCode ?? code));
  }
}

/** Listeners of 'exit' that come later than this one. */
function listenersBehind(): ((code: number) => void)[] {
  const all = process.listeners('exit') as ((code: number) => void)[];
  return all.slice(all.indexOf(processEnds) + 1);
}

/** Whether a thread of this process sleeps in a page fault, or is about to. */
function aThreadSleeps(): boolean {
  const open = userfaultfds();
  for (let waited = 0; ; waited += LOOK_MS) {
    if (threadIds().some(waitsForUserfaultfd)) return true;
    // A rejection has woken its thread, so that it asks again: it may be on its way into the same fault.
    const mayCome = open.length > 0 && (uncaught !== undefined || open.some(hasWaiters));
    if (waited >= FALLS_ASLEEP_MS || !mayCome) break;
    pause();
  }
  if (open.length > 0) killAfter(END_MOST_S);
  return false;
}

function pause(): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, LOOK_MS);
}

/** The userfaultfds that are open in this process, on whatever thread. */
function userfaultfds(): string[] {
  return entriesOf('/proc/self/fd').filter((fd) => linkOf(fd).includes('[userfaultfd]'));
}

function linkOf(fd: string): string {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    // The one that lists them.
    return '';
  }
}

/** Whether threads wait for it, of this process or another. */
function hasWaiters(fd: string): boolean {
  try {
    return /^total:\s*[1-9]/m.test(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'));
  } catch {
    return false;
  }
}

function entriesOf(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

function say(text: string): void {
  try {
    writeSync(STDERR, `${text}\n`);
  } catch {
    // There is nobody to tell.
  }
}
