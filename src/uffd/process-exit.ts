// Ends a process whose threads sleep in page faults that will not be answered any more.
//
// A process that ends waits for its workers, and a worker that sleeps in a page fault ends only when the fault is
// answered or the userfaultfd is closed. Closing the userfaultfd would let that worker continue with pages of zeros
// while the process still runs. So this file ends the whole process at the moment at which Node would end it. No thread
// reads a page after that.
//
// Rules:
//  - This file does not end the process if the program handles the error with a listener of 'uncaughtException' or of a
//    worker's 'error'.
//  - The failing thread first prints its error itself, because any other thread may sleep in a page fault.
//  - While the main thread sleeps in a page fault, it receives no messages. If the only thread that serves its memory
//    ends with an error, this file ends the process.

import { readdirSync, readFileSync, readlinkSync, writeSync } from 'node:fs';
import { inspect } from 'node:util';
import { isMainThread } from 'node:worker_threads';
import { exitNow, killAfter, threadIds, waitsForUserfaultfd } from '../../shim/process.js';
import { anyOpen } from './open-uffds.js';

const STDERR = 2;
const FAILED = 1;
/**
 * After an error of the thread that serves it, the main thread must sleep in a page fault for this many milliseconds
 * before the process is ended.
 */
const LOST_MS = 1000;
const CHECK_MS = 5;
/**
 * A thread falls asleep at most this many milliseconds after the kernel has queued its fault, or after an error has
 * woken it.
 */
const FALLS_ASLEEP_MS = 500;
/**
 * An ending process with an open userfaultfd is killed after this many seconds, because a thread may fault after the
 * last check.
 */
const END_MOST_S = 3;

let installed = false;
/** The uncaught exception that ends the process. Node has not reported it yet. */
let uncaught: { error: unknown } | undefined;

/** Installs the exit handling of this thread, with its first userfaultfd or mapping. */
export function installExitHandling(): void {
  if (installed || typeof process?.on !== 'function') return;
  installed = true;
  process.on('uncaughtExceptionMonitor', (error) => {
    if (isHandled()) return;
    if (isMainThread) uncaught = { error };
    else workerFails(error);
  });
  if (isMainThread) process.on('exit', processEnds);
}

/** Whether the program continues after an uncaught exception. */
function isHandled(): boolean {
  return process.listenerCount('uncaughtException') > 0 || process.hasUncaughtExceptionCaptureCallback();
}

/** Called when a worker ends with an error. Does nothing if the worker has no open userfaultfd. */
function workerFails(error: unknown): void {
  if (!anyOpen()) return;
  printError(
    `userfaultfd: a thread that serves page faults ends, and they are not answered any more: ${inspect(error)}`,
  );
  let asleepMs = 0;
  for (let waited = 0; asleepMs < LOST_MS; waited += CHECK_MS) {
    if (waitsForUserfaultfd(process.pid)) asleepMs += CHECK_MS;
    else if (waited >= FALLS_ASLEEP_MS) return;
    else asleepMs = 0;
    pause();
  }
  printError(
    'userfaultfd: the main thread sleeps in a page fault that is not answered any more: the process ends',
  );
  exitNow(FAILED);
}

/** Called as an 'exit' listener. After the last of these listeners, Node would wait for all workers. */
function processEnds(code: number): void {
  if (!hasSleepingThread()) return;
  if (uncaught) printError(`Uncaught ${inspect(uncaught.error)}`);
  try {
    for (const listener of listenersAfter()) listener.call(process, code);
  } catch (error) {
    printError(`Uncaught ${inspect(error)}`);
  } finally {
    exitNow(Number(process.exitCode ?? code));
  }
}

/** Listeners of 'exit' that run after this one. */
function listenersAfter(): ((code: number) => void)[] {
  const all = process.listeners('exit') as ((code: number) => void)[];
  return all.slice(all.indexOf(processEnds) + 1);
}

/** Whether a thread of this process sleeps in a page fault, or is about to. */
function hasSleepingThread(): boolean {
  const open = userfaultfds();
  for (let waited = 0; ; waited += CHECK_MS) {
    if (threadIds().some(waitsForUserfaultfd)) return true;
    // A rejected promise has woken the faulting thread, which may be about to fault on the same page again.
    const mayCome = open.length > 0 && (uncaught !== undefined || open.some(hasWaiters));
    if (waited >= FALLS_ASLEEP_MS || !mayCome) break;
    pause();
  }
  if (open.length > 0) killAfter(END_MOST_S);
  return false;
}

function pause(): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, CHECK_MS);
}

/** The userfaultfds that are open in this process, on all threads. */
function userfaultfds(): string[] {
  const fds = readIfThere(() => readdirSync('/proc/self/fd')) ?? [];
  // The descriptor of this very listing is closed by now.
  return fds.filter((fd) =>
    readIfThere(() => readlinkSync(`/proc/self/fd/${fd}`))?.includes('[userfaultfd]'),
  );
}

/** Whether threads wait for a userfaultfd, in this process or another. */
function hasWaiters(fd: string): boolean {
  const info = readIfThere(() => readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'));
  return info !== undefined && /^total:\s*[1-9]/m.test(info);
}

function readIfThere<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}

function printError(text: string): void {
  try {
    writeSync(STDERR, `${text}\n`);
  } catch {
    // The output is closed: there is no place to report to.
  }
}
