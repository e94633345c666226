// Operations and their answers, by the names that tables of tests use: the words that each operation takes, and the
// value that it leaves in its output field.

import { Errno } from '../../src/errors/errors.js';
import { type Answer, MISSING, PATTERN, type Request, type Uffd } from './calls.js';
import { P } from './support.js';

/** The answer of a call that processed one page. */
export const DONE: Answer = ['ok', P];

const refused = (name: string): Answer => [name, -(Errno[name] as number)];
export const EAGAIN = refused('EAGAIN');
export const EBUSY = refused('EBUSY');
export const EEXIST = refused('EEXIST');
export const EFAULT = refused('EFAULT');
export const EINVAL = refused('EINVAL');
export const ENOENT = refused('ENOENT');
export const ENOMEM = refused('ENOMEM');

/** The words of a call with valid arguments: all but the output field. */
export function words(request: Request, start: bigint, length: bigint, from: bigint, mode = 0n): bigint[] {
  switch (request) {
    case 'copy':
    case 'move':
      return [start, from, length, mode];
    case 'unregister':
    case 'wake':
      return [start, length];
    case 'register':
      return [start, length, mode || MISSING];
    default:
      return [start, length, mode];
  }
}

/** Operations whose struct ends with an output field. */
const OUTPUT: readonly Request[] = ['register', 'copy', 'zeropage', 'continue', 'poison', 'move'];

/** Issues a call. Returns its result and its output field: the pattern if the kernel did not write the field. */
export function issue(uffd: Uffd, request: Request, given: bigint[], at = 0): readonly [string, bigint] {
  const output = OUTPUT.includes(request);
  const result = uffd.raw(request, output ? [...given, PATTERN] : given, at);
  return [result, output ? uffd.word(given.length, at) : PATTERN];
}
