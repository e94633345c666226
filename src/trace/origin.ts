// How a recorded object came to be, as its trace's description says it: in JSON, for `open` and `wrap` to do it again.

import { MODES, SNAPSHOT_BYTES } from '../core.js';
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
  /** What was known of their pages, in base64: see `snapshot` in assembly/pages.ts. */
  readonly pages?: readonly string[];
}

export function toldChunk(chunk: Uint8Array): string {
  return btoa(Array.from(chunk, (byte) => String.fromCharCode(byte)).join(''));
}

/** A chunk that a description tells; undefined: it is none. */
export function chunkTold(text: string): Uint8Array | undefined {
  try {
    const chunk = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
    return chunk.length === SNAPSHOT_BYTES ? chunk : undefined;
  } catch {
    return undefined;
  }
}

export function toldRange({ start, length, modes, operations, pageSize }: RegisteredRange): ToldRange {
  return { start: `${start}`, length, modes: [...modes], operations: [...operations], pageSize };
}

export function rangeTold(range: ToldRange): RegisteredRange {
  const { start, modes, operations } = range;
  return { ...range, start: BigInt(start), modes: new Set(modes), operations: new Set(operations) };
}

/** The origin that a trace's description tells; its reader has seen that it is one. Undefined: it tells of none. */
export function originOf(meta: Readonly<Record<string, unknown>>): Origin | undefined {
  return meta.origin as Origin | undefined;
}

/** Whether this can be understood as an origin. Names of features are left to who opens. */
export function isOrigin(told: unknown): boolean {
  const { how, fd, options, features, optional = [], ranges = [], pages = [] } = fieldsOf(told);
  return (
    (how === 'open' || (how === 'wrap' && isWhole(fd))) &&
    isFields(options) &&
    areTexts(features) &&
    areTexts(optional) &&
    areTexts(pages) &&
    pages.every((text) => chunkTold(text) !== undefined) &&
    Array.isArray(ranges) &&
    ranges.every(isToldRange)
  );
}

function isToldRange(told: unknown): boolean {
  const { start, length, modes, operations, pageSize } = fieldsOf(told);
  return (
    typeof start === 'string' &&
    /^[0-9]{1,20}$/.test(start) &&
    isWhole(length) &&
    areTexts(modes) &&
    modes.every((mode) => (MODES as readonly string[]).includes(mode)) &&
    areTexts(operations) &&
    isWhole(pageSize)
  );
}

function isFields(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function fieldsOf(value: unknown): Record<string, unknown> {
  return isFields(value) ? value : {};
}

function areTexts(value: unknown): value is string[] {
  return Array.isArray(value) && value.every((text) => typeof text === 'string');
}

function isWhole(value: unknown): boolean {
  return Number.isSafeInteger(value) && (value as number) >= 0;
}
