// `recordProgram`: records a handler on the real kernel, in a thread of its own.

import { once } from 'node:events';
import { closeDescriptor } from '../../shim/descriptors.js';
import { eventfdSignal } from '../../shim/linux.js';
import { makeEventfd } from '../../shim/watch.js';
import { UffdError, UnsupportedError } from '../errors/errors.js';
import { checkRecord } from '../serve/record-file.js';
import { ENTRY } from '../workers/entry-file.js';
import { startThread } from '../workers/launcher.js';
import type { RecordedTrace, RecordMessage, RecordOrder } from './record-run.js';
import { knowsArchitecture } from './system-calls.js';

export interface RecordOptions {
  readonly command: readonly string[];
  readonly trace: string;
  readonly signal?: AbortSignal | undefined;
  readonly onWarning?: ((text: string) => void) | undefined;
  readonly syncWakeUp?: boolean | undefined;
}

/** A handler that was recorded. */
export interface HandlerRecording {
  /** Its exit status, as a shell has it: 128 and the signal, if a signal has ended it; 127: there is no such program. */
  readonly status: number;
  /** One for each userfaultfd that it has used, in order. */
  readonly traces: readonly RecordedTrace[];
}

/** @throws RecordError; UnsupportedError, UffdError if system calls of other processes cannot be trapped here */
export async function recordProgram({
  command,
  trace,
  signal,
  onWarning,
  syncWakeUp = true,
}: RecordOptions): Promise<HandlerRecording> {
  if (!knowsArchitecture)
    throw new UnsupportedError(
      `the system calls of ${process.arch} are not known, only those of x64 and arm64`,
    );
  signal?.throwIfAborted();
  checkRecord(trace, []);
  const stop = new Int32Array(new SharedArrayBuffer(4));
  const wake = makeEventfd();
  const order: RecordOrder = { command, trace, wake, stop, syncWakeUp };
  const worker = startThread('handler-recorder', { workerData: order }, ENTRY);
  const abort = (): void => {
    Atomics.store(stop, 0, 1);
    eventfdSignal()(wake);
  };
  signal?.addEventListener('abort', abort, { once: true });
  let last: RecordMessage | undefined;
  let group = 0;
  // The handler may have been stopped together with this process.
  const resume = (): void => resumeGroup(group);
  process.on('SIGCONT', resume);
  worker.on('message', (message: RecordMessage) => {
    if ('warning' in message) onWarning?.(message.warning);
    else if ('group' in message) group = message.group;
    else last = message;
  });
  try {
    await once(worker, 'exit');
  } finally {
    signal?.removeEventListener('abort', abort);
    process.off('SIGCONT', resume);
    closeDescriptor(wake);
  }
  if (last && 'refused' in last) {
    const { errno, syscall, message } = last.refused;
    throw errno === undefined || syscall === undefined
      ? new UnsupportedError(message)
      : new UffdError(errno, syscall);
  }
  if (!last || !('result' in last)) throw new Error('the thread that records has ended');
  return last.result;
}

/** Lets a process group go on that was stopped. */
function resumeGroup(group: number): void {
  try {
    if (group > 0) process.kill(-group, 'SIGCONT');
  } catch {
    // It has ended.
  }
}
