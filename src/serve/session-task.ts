// What a session's thread is started with, and what it answers. All of it can be posted.

import type { RecordableHistogram } from 'node:perf_hooks';
import type { Wait } from '../loop.js';
import type { Window } from '../options.js';
import type { Placement } from '../placement.js';
import type { Region } from './handoff.js';
import type { MappedFile, SharedRuns } from './memory-file.js';
import type { KeptFile } from './record-file.js';

/** An Error loses its code when it is posted. */
export type ToldError = Pick<NodeJS.ErrnoException, 'message' | 'code' | 'stack'>;

/** Where a session is recorded to, and what its trace says of it. */
export interface SessionRecord {
  readonly file: string;
  readonly about: Record<string, unknown>;
  /** What must not be written to. */
  readonly kept: readonly KeptFile[];
}

export interface SessionTask {
  readonly id: number;
  /** A userfaultfd, lent: whoever started the thread takes it back when the thread has ended. */
  readonly fd: number;
  /** The monitor; 0: it cannot be seen from here. */
  readonly pid: number;
  readonly regions: readonly Region[];
  /** The memory file, or why it cannot be had. */
  readonly memory: MappedFile | ToldError;
  readonly window: Window;
  readonly wait: Wait;
  readonly placement: Placement;
  readonly prefetch: SharedRuns;
  readonly eager: boolean;
  readonly onStarved: 'wait' | 'kill';
  readonly record: SessionRecord | undefined;
  readonly tally: SharedArrayBuffer;
  /** Nanoseconds; its counts are shared between threads. */
  readonly latency: RecordableHistogram;
  /** A word that is not 0 once the session is to stop. */
  readonly stopped: SharedArrayBuffer;
}

/** What became of a recording. */
export interface Recorded {
  readonly records: number;
  readonly bytes: number;
  /** Why it ended before its time. */
  readonly failure: string | null;
}

/** What a thread is told. */
export type SessionOrder =
  | { readonly is: 'task'; readonly task: SessionTask }
  /** A session that waits on the event loop is to end. */
  | { readonly is: 'stop'; readonly id: number }
  /** One whose background pauses is to go on with it. */
  | { readonly is: 'resume'; readonly id: number };

export type SessionReport =
  /** The first, once: it can be given a task, and it can be ended. */
  | { readonly is: 'ready' }
  | { readonly is: 'serving'; readonly stopHandle: SharedArrayBuffer }
  /** Nothing is left to be installed in the background. */
  | { readonly is: 'settled' }
  /** What the operator should hear of, and the guest does not suffer from. */
  | { readonly is: 'warned'; readonly reason: string }
  /** There is no memory for what is installed in the background: to be resumed in a while. */
  | { readonly is: 'paused' }
  /** There is no memory for pages that are waited for; undefined: there is again. */
  | { readonly is: 'short'; readonly reason: string | undefined }
  /** The last: whether the descriptor is still open, and its owner's to close. */
  | {
      readonly is: 'ended';
      readonly how: 'exited' | 'closed' | 'stopped' | 'failed';
      readonly error?: ToldError;
      readonly open: boolean;
      readonly recorded: Recorded | undefined;
    };

export function toldError(error: unknown): ToldError {
  const { message, code, stack } = error as NodeJS.ErrnoException;
  return { message, ...(code ? { code } : {}), ...(stack ? { stack } : {}) };
}
