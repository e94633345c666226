// How a recorded object was opened or wrapped, as JSON in the description of its trace, so that a replay can repeat
// it.

import { SNAPSHOT_BYTES } from '../bindings/core.js';
import { type Feature, MODES, type Mode, type Operation } from '../kernel/features.js';
import type { RegisteredRange } from '../uffd/registered-range.js';

/** A registered range, with its address as text. */
export interface RecordedRange {
  readonly start: string;
  readonly length: number;
  readonly modes: readonly Mode[];
  readonly operations: readonly Operation[];
  readonly pageSize: number;
}

export interface OpenParameters {
  /** `handler`: the calls are those of a handler in another program, which `recordHandler` has recorded. */
  readonly how: 'open' | 'wrap' | 'handler';
  /** Only for `wrap`. */
  readonly fd?: number;
  readonly options: {
    readonly via?: 'auto' | 'syscall' | 'device';
    readonly userModeOnly?: boolean | 'auto';
    readonly pid?: number;
  };
  readonly features: readonly Feature[];
  readonly optional?: readonly Feature[];
  readonly ranges?: readonly RecordedRange[];
  /** The page states, in base64: see `snapshot` in assembly/pages.ts. */
  readonly pages?: readonly string[];
}

export function encodeChunk(chunk: Uint8Array): string {
  return btoa(Array.from(chunk, (byte) => String.fromCharCode(byte)).join(''));
}

/** A chunk of page states in a description; undefined if it is invalid. */
export function decodeChunk(text: string): Uint8Array | undefined {
  try {
    const chunk = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
    return chunk.length === SNAPSHOT_BYTES ? chunk : undefined;
  } catch {
    return undefined;
  }
}

export function encodeRange({ start, length, modes, operations, pageSize }: RegisteredRange): RecordedRange {
  return { start: `${start}`, length, modes: [...modes], operations: [...operations], pageSize };
}

export function decodeRange(range: RecordedRange): RegisteredRange {
  const { start, modes, operations } = range;
  return { ...range, start: BigInt(start), modes: new Set(modes), operations: new Set(operations) };
}

/** The open parameters in a trace's description, which its reader has checked. Undefined if there are none. */
export function openParametersOf(meta: Readonly<Record<string, unknown>>): OpenParameters | undefined {
  return meta.origin as OpenParameters | undefined;
}

/** Whether these are valid open parameters. Names of features are checked when the userfaultfd is opened. */
export function areOpenParameters(value: unknown): boolean {
  const { how, fd, options, features, optional = [], ranges = [], pages = [] } = fieldsOf(value);
  return (
    (how === 'open' || how === 'handler' || (how === 'wrap' && isWhole(fd))) &&
    isFields(options) &&
    areTexts(features) &&
    areTexts(optional) &&
    areTexts(pages) &&
    pages.every((text) => decodeChunk(text) !== undefined) &&
    Array.isArray(ranges) &&
    ranges.every(isRecordedRange)
  );
}

function isRecordedRange(value: unknown): boolean {
  const { start, length, modes, operations, pageSize } = fieldsOf(value);
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
