// How a recorded object came to be, as its trace's description says it: in JSON, for `open` and `wrap` to do it again.

import type { Feature, Mode, Operation } from '../features.js';
import type { RegisteredRange } from '../handler.js';

/** A range, its address as text. */
export interface ToldRange {
  readonly start: string;
  readonly length: number;
  readonly modes: readonly Mode[];
  readonly operations: readonly Operation[];
  readonly pageSize: number;
}

export interface Origin {
  readonly how: 'open' | 'wrap';
  /** Of `wrap`. */
  readonly fd?: number;
  readonly options: {
    readonly via?: 'auto' | 'syscall' | 'device';
    readonly userModeOnly?: boolean | 'auto';
    readonly pid?: number;
  };
  readonly features: readonly Feature[];
  readonly optional?: readonly Feature[];
  readonly ranges?: readonly ToldRange[];
}

export function toldRange({ start, length, modes, operations, pageSize }: RegisteredRange): ToldRange {
  return { start: `${start}`, length, modes: [...modes], operations: [...operations], pageSize };
}

export function rangeTold(range: ToldRange): RegisteredRange {
  const { start, modes, operations } = range;
  return { ...range, start: BigInt(start), modes: new Set(modes), operations: new Set(operations) };
}
