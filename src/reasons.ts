// Why a call fails, and the way out: the one table that every UffdError takes its words from. docs/errors.md
// shows the same rows; test/errors.test.ts holds the two together.
//
// Rules:
//  - A row is for one errno of one call, named as the error names it. Where the facts at hand tell causes of
//    the same errno apart, there is a row for each, and the first that applies is taken; the last applies always.
//  - Facts are what the caller knows already. One is asked for: what is mapped where a fill was refused as invalid,
//    because the kernel's answer is the same for an argument that is wrong and for memory that no fill can reach.
//  - `{page}` and the like stand for a fact; one that is not known is shown as an ellipsis.

import type { Mode } from './features.js';
import type { RegisteredRange } from './handler.js';
import { hex } from './names.js';
import { CALLS } from './reasons/calls.js';
import { IOCTLS } from './reasons/ioctls.js';

/** What is known where a call failed. */
export interface Facts {
  /** Where it stopped. */
  address?: bigint;
  /** Bytes from there on that it was tried on. */
  length?: number;
  /** Where the bytes for that address come from. */
  source?: bigint;
  /** What is registered at that address, as far as the object knows; null: nothing. */
  range?: RegisteredRange | null;
  /** The modes asked for. */
  modes?: ReadonlySet<Mode>;
  /** Whether the pages were to be write-protected. */
  writeProtect?: boolean;
  /** Bytes of a huge page, where memory in such was asked for. */
  pageSize?: number;
  /** The process it is about. */
  pid?: number;
  /** What is mapped at that address, where it is memory that can be watched and not filled. */
  unfillable?: string | undefined;
  /** Whether it is memory that a DirtyTracker has registered. */
  tracked?: boolean;
}

/** One row: what is behind an errno, and what to do. */
export interface Reason {
  /** Whether the facts say that it is this. None: it is this in any case. */
  readonly when?: (facts: Facts) => boolean;
  readonly cause: string;
  readonly remedy: string;
}

/** The rows of one call, by errno name. */
export type Reasons = Readonly<Record<string, Reason | readonly Reason[]>>;

/** What stands for all calls that have no row of their own. */
export const ANY_CALL = 'any call';

/** The whole table, by call. */
export const REASONS: Readonly<Record<string, Reasons>> = { ...IOCTLS, ...CALLS };

/** The row for a call's errno, as far as the facts tell. */
export function reasonFor(call: string, code: string, facts: Facts): Reason | undefined {
  const rows = rowsOf(call, code) ?? rowsOf(ANY_CALL, code);
  return rows?.find(({ when }) => !when || when(facts));
}

/** All rows for a call's errno. */
export function rowsOf(call: string, code: string): readonly Reason[] | undefined {
  const calls = Object.hasOwn(REASONS, call) ? (REASONS[call] as Reasons) : {};
  return Object.hasOwn(calls, code) ? ([calls[code]].flat() as readonly Reason[]) : undefined;
}

/** The facts that a text may name. */
const WORDS: Readonly<Record<string, (facts: Facts) => string | undefined>> = {
  page: ({ address }) => (address === undefined ? undefined : hex(address)),
  source: ({ source }) => (source === undefined ? undefined : hex(source)),
  bytes: ({ length }) => length?.toString(),
  pageSize: ({ range, pageSize }) => (range?.pageSize ?? pageSize)?.toString(),
  process: ({ pid }) => pid?.toString(),
  unfillable: ({ unfillable }) => unfillable,
};

/** A cause or remedy with the facts in it. */
export function worded(text: string, facts: Facts): string {
  return text.replace(/\{(\w+)\}/g, (_, name: string) => WORDS[name]?.(facts) ?? '…');
}
