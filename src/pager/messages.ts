// The messages between a program and the thread of its pager.

import type { PagerBudget } from './budget.js';
import type { ChunkSource } from './chunk-description.js';
import type { FileSource } from './file-description.js';
import type { HttpSource } from './http-description.js';
import type { ModuleSource } from './module-description.js';

/** A source of the program, which is asked by message. */
export interface ProgramSource {
  readonly kind: 'program';
  readonly size: number;
  readonly parallel: number;
  readonly identity: string | undefined;
}

/** Where changes go: to the source itself, to an overlay, or to a sink of the program. */
export type TargetPlan =
  | { readonly kind: 'source' }
  | { readonly kind: 'overlay'; readonly path: string }
  | { readonly kind: 'program' };

export interface WritablePlan {
  readonly to: TargetPlan;
  readonly durability: 'process' | 'power';
  readonly flushMs: number;
  /** Path of the journal; undefined: beside the file. */
  readonly journal: string | undefined;
}

/** Memory that is zero at first; what does not fit goes to a swap file in this folder. */
export interface SwapSource {
  readonly kind: 'swap';
  readonly size: number;
  readonly folder: string;
  readonly compress: 'auto' | 'zstd' | 'none';
  readonly encrypt: boolean;
}

export type SourcePlan = FileSource | HttpSource | ChunkSource | ModuleSource | ProgramSource | SwapSource;

/** An error to post: posting an Error itself loses its code, and its class. */
export interface PostedError {
  readonly name: string;
  readonly message: string;
  readonly code: string | undefined;
  readonly stack: string | undefined;
}

export function postedError(error: unknown): PostedError {
  const { name = 'Error', message = String(error), code, stack } = error as Partial<NodeJS.ErrnoException>;
  return { name, message, code, stack };
}

/** Values of the word that a pager shares with its thread. */
export enum Ending {
  NONE,
  /** The process ends: the thread must not sleep any more. */
  PROCESS,
  /** The thread has closed the pager. */
  CLOSED,
}

/** What the thread needs to begin. */
export interface PagerPlan {
  readonly source: SourcePlan;
  readonly blockSize: number;
  /** Bytes. */
  readonly resident: number;
  /** The limit that it shares with other pagers. */
  readonly budget: PagerBudget | undefined;
  readonly readAhead: number;
  readonly deadlineMs: number;
  /** Whether a block that cannot be read is poisoned at once. */
  readonly poisonsAtOnce: boolean;
  /** Whether the program decides about a block that cannot be read. */
  readonly asks: boolean;
  /** How changes are written; undefined: the program only reads. */
  readonly writable: WritablePlan | undefined;
  readonly userModeOnly: boolean | 'auto';
  /** File of the recording. */
  readonly record: string | undefined;
  /** Wakes the thread. The program closes it when the thread has ended. */
  readonly eventfd: number;
  /** One word, an `Ending`. */
  readonly ending: SharedArrayBuffer;
  /** Where the thread puts the counts. */
  readonly counts: SharedArrayBuffer;
}

/** What the program sends. */
export type PagerCommand =
  | { readonly is: 'open'; readonly plan: PagerPlan }
  | {
      readonly is: 'ask';
      readonly id: number;
      readonly offset: number;
      readonly length: number;
      readonly pin: boolean;
      readonly write: boolean;
    }
  | { readonly is: 'unpin'; readonly offset: number; readonly length: number }
  | { readonly is: 'evict'; readonly id: number; readonly offset: number; readonly length: number }
  | { readonly is: 'flush'; readonly id: number }
  | { readonly is: 'close'; readonly id: number }
  /** The answer to 'failing'. */
  | { readonly is: 'decided'; readonly offset: number; readonly length: number; readonly poison: boolean }
  /** The answer to 'read', 'write' and 'sync'. */
  | {
      readonly is: 'answer';
      readonly id: number;
      readonly bytes?: Uint8Array;
      readonly error?: {
        readonly message: string;
        readonly permanent: boolean;
        readonly code: string | undefined;
      };
    };

/** What the thread sends. */
export type PagerReport =
  | {
      readonly is: 'opened';
      readonly address: bigint;
      readonly size: number;
      readonly length: number;
      readonly userModeOnly: boolean;
      /** Whether the swap file is compressed. */
      readonly compression: 'zstd' | 'none';
    }
  | { readonly is: 'refused'; readonly error: PostedError }
  | { readonly is: 'done'; readonly id: number; readonly error?: PostedError }
  /** A block cannot be read. */
  | { readonly is: 'failing'; readonly offset: number; readonly length: number; readonly message: string }
  /** Calls of the program's source and sink. */
  | { readonly is: 'read'; readonly id: number; readonly offset: number; readonly length: number }
  | { readonly is: 'write'; readonly id: number; readonly offset: number; readonly bytes: Uint8Array }
  | { readonly is: 'sync'; readonly id: number }
  | { readonly is: 'cancel'; readonly id: number }
  /** The thread has failed: nothing is answered any more. */
  | { readonly is: 'broken'; readonly error: PostedError };
