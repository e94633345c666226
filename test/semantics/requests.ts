// Operations and their answers as rows of a table name them: which words each takes, and what it leaves in its
// output field.

import { Errno } from '../../src/errors.js';
import { type Answer, MISSING, PATTERN, type Request, type Uffd } from './calls.js';
import { P } from './support.js';

/** A page was done. */
export const DONE: Answer = ['ok', P];

const refused = (name: string): Answer => [name, -(Errno[name] as number)];
export const EAGAIN = refused('EAGAIN');
export const EBUSY = refused('EBUSY');
export const EEXIST = refused('EEXIST');
export const EFAULT = refused('EFAULT');
export const EINVAL = refused('EINVAL');
export const ENOENT = refused('ENOENT');
export const ENOMEM = refused('ENOMEM');

/** The words of a call whose arguments are in order: everything but the output field. */
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

/** Whether the struct ends with an output field. */
const OUTPUT: readonly Request[] = ['register', 'copy', 'zeropage', 'continue', 'poison', 'move'];

/** Issues a call; what it answers, and its output field: the pattern where it was left alone. */
export function issue(uffd: Uffd, request: Request, given: bigint[], at = 0): readonly [string, bigint] {
  const output = OUTPUT.includes(request);
  const result = uffd.raw(request, output ? [...given, PATTERN] : given, at);
  return [result, output ? uffd.word(given.length, at) : PATTERN];
}
