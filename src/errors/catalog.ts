// The error catalog: why a call fails, and what to do. Every UffdError takes its text from this table. The build makes
// the table from docs/errors.md.
//
// Rules:
//  - A row is for one errno of one call, which has the name that the error shows. If the known facts can distinguish
//    several causes of the errno, there is a row for each cause. The first row that applies is used. The last row
//    always applies.
//  - The caller already knows the facts, except one: what is mapped at the address of a fill that was refused with
//    EINVAL. It asks the system for that, because the kernel's answer is the same for a wrong argument and for memory
//    that no fill can reach.
//  - `{page}` and similar words in a text stand for a fact. An unknown fact is shown as an ellipsis.

import { type Fact, REASONS, type Reason } from '../bindings/errors.js';
import { CONDITIONS, type ErrorContext } from './conditions.js';
import { hex } from './format.js';

/** The key of the rows for all calls that have no rows of their own. */
export const ANY_CALL = 'any call';

/** The row for a call's errno and the known facts. */
export function reasonFor(call: string, code: string, facts: ErrorContext): Reason | undefined {
  const rows = rowsOf(call, code) ?? rowsOf(ANY_CALL, code);
  return rows?.find(({ when }) => !when || CONDITIONS[when](facts));
}

/** All rows for a call's errno. */
export function rowsOf(call: string, code: string): readonly Reason[] | undefined {
  const codes = Object.hasOwn(REASONS, call) ? REASONS[call] : undefined;
  return codes && Object.hasOwn(codes, code) ? codes[code] : undefined;
}

/** The facts that a text may name. */
const WORDS: Readonly<Record<Fact, (facts: ErrorContext) => string | undefined>> = {
  page: ({ address }) => (address === undefined ? undefined : hex(address)),
  source: ({ source }) => (source === undefined ? undefined : hex(source)),
  bytes: ({ length }) => length?.toString(),
  pageSize: ({ range, pageSize }) => (range?.pageSize ?? pageSize)?.toString(),
  process: ({ pid }) => pid?.toString(),
  memory: ({ unfillable }) => unfillable,
};

/** A cause or remedy with the facts in it. */
export function formatted(text: string, facts: ErrorContext): string {
  return text.replace(/\{(\w+)\}/g, (_, name: string) => WORDS[name as Fact]?.(facts) ?? '…');
}
