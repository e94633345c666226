// Messages between a session and its thread. All of them can be posted.

import type { RecordableHistogram } from 'node:perf_hooks';
import type { Placement } from '../scheduling/affinity.js';
import type { Wait } from '../uffd/event-loop.js';
import type { Window } from '../uffd/options.js';
import type { SharedRanges } from './extents.js';
import type { Region } from './handoff-protocol.js';
import type { MappedImage } from './image-source.js';
import type { MappedFile } from './memory-file.js';
import type { ProtectedFile } from './record-file.js';
import type { SharedMemory } from './shared-pages.js';

/** An error in a form that keeps its code when it is posted, which an Error does not. */
export type PostableError = Pick<NodeJS.ErrnoException, 'message' | 'code' | 'stack'>;

/** Where a session is recorded to, and the notes in its trace. */
export interface SessionRecord {
  readonly file: string;
  readonly about: Record<string, unknown>;
  /** Files that must not be written to. */
  readonly protectedFiles: readonly ProtectedFile[];
}

export interface SessionTask {
  readonly id: number;
  /** The thread's copy of the userfaultfd; the `GuestSession` closes it if the thread does not. */
  readonly fd: number;
  /** The monitor's PID; 0: it is not visible from here. */
  readonly pid: number;
  readonly regions: readonly Region[];
  /** The memory file, or the image that its chunks are put into; or why it cannot be used. */
  readonly memory: MappedFile | MappedImage | PostableError;
  /** The memory that guests share, if this one maps it. */
  readonly shared: SharedMemory | undefined;
  readonly window: Window;
  readonly wait: Wait;
  readonly placement: Placement;
  readonly prefetch: SharedRanges;
  readonly eager: boolean;
  readonly onStarved: 'wait' | 'kill';
  /** Milliseconds for which a guest waits for a chunk; undefined: for ever. */
  readonly deadlineMs: number | undefined;
  readonly record: SessionRecord | undefined;
  readonly tally: SharedArrayBuffer;
  /** Latencies in nanoseconds; the server and the thread share the counts. */
  readonly latency: RecordableHistogram;
  /** One word, which is not 0 once the session must stop. */
  readonly stopped: SharedArrayBuffer;
  /** News about chunks: see `NEWS`. */
  readonly news: SharedArrayBuffer;
}

/** The words of a session's news about chunks. */
export const NEWS = {
  /** Counts the times that chunks have come. */
  count: 0,
  /** Whether the thread sleeps, and for what: one of `SLEEP`. */
  sleep: 1,
} as const;

/** What wakes a session's thread, besides faults. */
export const SLEEP = {
  /** Nothing: it does not sleep, and looks at the count before it does. */
  awake: 0,
  /** The chunks that it has asked for. */
  asked: 1,
  /** Any chunk: it installs pages in the background. */
  any: 2,
} as const;

/** How a recording ended. */
export interface Recorded {
  readonly records: number;
  readonly bytes: number;
  /** Why it ended early. */
  readonly failure: string | null;
}

/** What a thread is given when a pool takes it. */
export interface ThreadData extends Pick<SessionTask, 'window' | 'wait'> {
  /** One word, which is not 0 once the thread is wanted: for a guest, or to end. */
  readonly wanted: Int32Array;
}

/** Messages to a thread. */
export type SessionCommand =
  /** The first one: the thread gets ready. */
  | { readonly is: 'begin'; readonly data: ThreadData }
  /** Maps ranges of the memory file ahead, until the thread is wanted. It then reports 'mapped'. */
  | { readonly is: 'map'; readonly file: MappedFile; readonly ranges: SharedRanges }
  | { readonly is: 'task'; readonly task: SessionTask }
  /** Ends a session that waits on the event loop. */
  | { readonly is: 'stop'; readonly id: number }
  /** Resumes a session that waits on the event loop. */
  | { readonly is: 'resume'; readonly id: number };

export type SessionReport =
  /** The first message, once: the thread can take a task. It warms up until it is wanted. */
  | { readonly is: 'ready' }
  /** The thread warms up. The handle interrupts the warm-up. */
  | { readonly is: 'warming'; readonly stopHandle: SharedArrayBuffer }
  /** Nothing of the file at this address is mapped ahead any more. */
  | { readonly is: 'mapped'; readonly address: bigint }
  /** The thread has warmed up, and can be ended. */
  | { readonly is: 'idle' }
  | { readonly is: 'serving'; readonly stopHandle: SharedArrayBuffer }
  /** Nothing is left to install in the background. */
  | { readonly is: 'settled' }
  /** A notice for the operator that harms no guest. */
  | { readonly is: 'warned'; readonly reason: string }
  /** There is no memory for the background work: resume it later. */
  | { readonly is: 'paused' }
  /** Threads of the guest wait for these chunks. */
  | { readonly is: 'wanted'; readonly chunks: readonly number[] }
  /** There is no memory for pages that threads wait for. Without a reason: there is memory again. */
  | { readonly is: 'short'; readonly reason: string | undefined }
  /** The last message. `open`: whether the descriptor is still open, and the `GuestSession` must close it. */
  | {
      readonly is: 'ended';
      readonly how: 'exited' | 'closed' | 'stopped' | 'failed';
      readonly error?: PostableError;
      readonly open: boolean;
      readonly recorded: Recorded | undefined;
    };

export function postableError(error: unknown): PostableError {
  const { message, code, stack } = error as NodeJS.ErrnoException;
  return { message, ...(code ? { code } : {}), ...(stack ? { stack } : {}) };
}
