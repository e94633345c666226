// Checks of arguments, before the kernel is called. Each error names its argument, and says what was
// expected and what was passed. Codes are Node's: ERR_INVALID_ARG_TYPE, ERR_OUT_OF_RANGE.

import { hex } from './format.js';

/** User addresses end below this on all supported machines (5-level paging). */
const ADDRESS_END = 1n << 56n;

export function wrongType(argument: string, expected: string, value: unknown): TypeError {
  const got = value === null ? 'null' : typeof value;
  return Object.assign(new TypeError(`${argument} must be ${expected}; it is ${got}`), {
    code: 'ERR_INVALID_ARG_TYPE',
  });
}

/** For a value of the right type that is not among the allowed ones. */
export function invalidValue(message: string): TypeError {
  return Object.assign(new TypeError(message), { code: 'ERR_INVALID_ARG_VALUE' });
}

export function outOfRange(argument: string, expected: string, value: unknown): RangeError {
  const got = typeof value === 'bigint' ? hex(value) : String(value);
  return Object.assign(new RangeError(`${argument} must be ${expected}; it is ${got}`), {
    code: 'ERR_OUT_OF_RANGE',
  });
}

export function checkAddress(value: unknown, argument: string): asserts value is bigint {
  if (typeof value !== 'bigint') throw wrongType(argument, 'an address, a bigint', value);
  if (value < 0n || value >= ADDRESS_END) throw outOfRange(argument, 'an address of user memory', value);
}

/** Accepts an address on a page boundary. */
export function checkPageAddress(
  value: unknown,
  argument: string,
  pageSize: number,
): asserts value is bigint {
  checkAddress(value, argument);
  if (value & BigInt(pageSize - 1))
    throw outOfRange(argument, `a multiple of the page size, ${pageSize}`, value);
}

/** Accepts a number of bytes: whole pages, at least one. */
function checkLength(value: unknown, argument: string, pageSize: number): asserts value is number {
  if (typeof value !== 'number') throw wrongType(argument, 'a number of bytes', value);
  if (!Number.isSafeInteger(value) || value <= 0 || value % pageSize !== 0) {
    throw outOfRange(argument, `a positive multiple of the page size, ${pageSize}`, value);
  }
}

/** Accepts a page-aligned address and a length in whole pages, if the range lies in user memory. */
export function checkRange(start: unknown, length: unknown, pageSize: number, name = 'start'): void {
  checkPageAddress(start, name, pageSize);
  checkLength(length, 'length', pageSize);
  if (start + BigInt(length) > ADDRESS_END)
    throw outOfRange(`${name} + length`, 'an address of user memory', start);
}

/** Accepts an integer from `lowest` to `highest`. */
export function checkInteger(
  value: unknown,
  argument: string,
  lowest: number,
  highest: number,
): asserts value is number {
  if (typeof value !== 'number') throw wrongType(argument, 'a number', value);
  if (!Number.isInteger(value) || value < lowest || value > highest) {
    throw outOfRange(argument, `an integer from ${lowest} to ${highest}`, value);
  }
}

export function checkDescriptor(value: unknown, argument: string): asserts value is number {
  checkInteger(value, argument, 0, 0x7fffffff);
}

/** Accepts a list of names. A string is refused: it would be a list of letters. */
export function checkNames(value: unknown, argument: string): void {
  if (typeof value === 'string') throw wrongType(argument, 'a list of names', value);
  checkIterable(value, argument);
}

export function checkIterable(value: unknown, argument: string, expected = 'a list of names'): void {
  if (typeof (value as Iterable<unknown> | null)?.[Symbol.iterator] !== 'function') {
    throw wrongType(argument, expected, value);
  }
}

export function checkFunction(value: unknown, argument: string): void {
  if (typeof value !== 'function') throw wrongType(argument, 'a function', value);
}

/** Accepts an object of options. Without this check, a string or a number in its place would be ignored silently. */
export function checkOptions(value: unknown, argument: string): asserts value is object {
  if (typeof value !== 'object' || value === null) throw wrongType(argument, 'an object', value);
}

/** Accepts an object with a method of that name. */
export function checkMethod(value: unknown, argument: string, method: string, expected: string): void {
  if (typeof (value as Record<string, unknown> | null | undefined)?.[method] !== 'function')
    throw wrongType(argument, expected, value);
}

export function checkBoolean(value: unknown, argument: string): asserts value is boolean {
  if (typeof value !== 'boolean') throw wrongType(argument, 'true or false', value);
}

export function checkOneOf<T>(value: unknown, argument: string, choices: readonly T[]): asserts value is T {
  if (!choices.includes(value as T)) {
    throw invalidValue(`${argument} must be one of ${choices.join(', ')}; it is ${String(value)}`);
  }
}

export function checkView(value: unknown, argument: string): asserts value is ArrayBufferView {
  if (!ArrayBuffer.isView(value)) throw wrongType(argument, 'a Buffer, a typed array or an address', value);
}

/** For a call that an object cannot perform in its present state. */
export function invalidState(message: string): Error {
  return Object.assign(new Error(message), { code: 'ERR_INVALID_STATE' });
}
