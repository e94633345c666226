// Checks the options of `simulate` and `explore`. A run that tests nothing must not look like a run that found nothing
// wrong. So it is an error to pass no seeds, no threads, a probability above 1, or a misspelled option.

import {
  checkFunction,
  checkInteger,
  checkIterable,
  checkMethod,
  checkNames,
  checkOneOf,
  checkOptions,
  invalidValue,
  outOfRange,
  wrongType,
} from '../errors/arguments.js';
import { featureBits, type Mode, modeBits } from '../kernel/features.js';
import { INJECTIONS, type Inject, type Program } from '../sim/index.js';
import { WAITS } from '../uffd/event-loop.js';
import type { FaultHandler } from '../uffd/userfaultfd.js';

/** The highest seed: seeds have 32 bits. */
const SEED_MOST = 2 ** 32 - 1;
const COUNT_MOST = Number.MAX_SAFE_INTEGER;

type Check = (value: unknown, name: string) => void;

const integer =
  (lowest: number, highest = COUNT_MOST): Check =>
  (value, name) =>
    checkInteger(value, name, lowest, highest);
const oneOf =
  (choices: readonly unknown[]): Check =>
  (value, name) =>
    checkOneOf(value, name, choices);
/** For options that are not checked here. The simulated kernel checks some of them. */
const any: Check = () => {};

const chance: Check = (value, name) => {
  if (typeof value !== 'number') throw wrongType(name, 'a probability, a number', value);
  if (!(value >= 0 && value <= 1)) throw outOfRange(name, 'a probability from 0 to 1', value);
};

const millis: Check = (value, name) => {
  if (typeof value !== 'number') throw wrongType(name, 'a number of milliseconds', value);
  if (!(value > 0)) throw outOfRange(name, 'a number of milliseconds above 0', value);
};

/** Checks a list of opportunities, counted from 0. */
const script: Check = (value, name) => {
  if (!Array.isArray(value)) throw wrongType(name, 'a list of integers', value);
  value.forEach((one, index) => void checkInteger(one, `${name}[${index}]`, 0, COUNT_MOST));
};

const inject: Check = (value, name) => {
  checkOptions(value, name);
  for (const [what, rule] of Object.entries(value as Inject)) {
    if (!(INJECTIONS as readonly string[]).includes(what))
      throw invalidValue(`${name}: there is no '${what}'; there are ${INJECTIONS.join(', ')}`);
    (Array.isArray(rule) ? script : chance)(rule, `${name}.${what}`);
  }
};

const threads: Check = (value, name) => {
  if (typeof value === 'number') checkInteger(value, name, 1, COUNT_MOST);
  else if (typeof value !== 'function') throw wrongType(name, 'a number, or a function', value);
};

const features: Check = (value, name) => {
  // An iterator can be used only once, and the world has to use it.
  if (Array.isArray(value) || value instanceof Set) featureBits(value, name);
  else checkNames(value, name);
};

const seeds: Check = (value, name) => {
  if (typeof value === 'number') return checkInteger(value, name, 1, SEED_MOST);
  if (typeof value !== 'object' || value === null)
    throw wrongType(name, 'a number of seeds, or { from, count }', value);
  const { from, count } = value as { from?: unknown; count?: unknown };
  checkInteger(from, `${name}.from`, 0, SEED_MOST);
  checkInteger(count, `${name}.count`, 1, SEED_MOST - from + 1);
};

const writer: Check = (value, name) => checkMethod(value, name, 'start', 'a TraceWriter');

/** Checks by option name. Missing options are not checked. */
const WORLD: Readonly<Record<string, Check>> = {
  handler: checkFunction,
  threads,
  wait: oneOf(WAITS),
  steps: integer(1),
  mayClose: any,
  prepare: checkFunction,
  pages: integer(1),
  source: checkFunction,
  features,
  mode: (value) => void modeBits(value as Mode),
  watched: oneOf(['own', 'another']),
  version: any,
  pageSize: any,
  preemption: chance,
  descriptors: integer(0),
  inject,
  patienceMs: millis,
  memory: any,
  hugePages: any,
  objects: any,
  holes: any,
};
const SIMULATE = { ...WORLD, seed: integer(0, SEED_MOST), choices: script, schedule: any, record: writer };
const EXPLORE = { ...WORLD, seeds, shrinks: integer(0), schedule: any, print: checkFunction };

/** @throws TypeError, RangeError naming the option */
export const checkSimulate = (options: unknown): void => check(options, SIMULATE);

/** @throws TypeError, RangeError naming the option */
export const checkExplore = (options: unknown): void => check(options, EXPLORE);

function check(options: unknown, checks: Readonly<Record<string, Check>>): void {
  checkOptions(options, 'options');
  checkFunction((options as { handler?: unknown }).handler, 'handler');
  for (const [name, value] of Object.entries(options)) {
    const known = Object.hasOwn(checks, name) ? checks[name] : undefined;
    if (!known) {
      throw invalidValue(`options: there is no '${name}'; there are ${Object.keys(checks).join(', ')}`);
    }
    if (value !== undefined) known(value, name);
  }
}

/** Checks the result of the option `handler`. */
export function checkHandler(made: FaultHandler): FaultHandler {
  checkMethod(made, 'what handler(world) returns', 'pagefault', 'a handler with pagefault');
  return made;
}

/** Checks the result of the option `threads`: at least one thread, and each of them a generator of actions. */
export function checkPrograms(made: Iterable<Program>): Program[] {
  const name = 'what threads(world) returns';
  checkIterable(made, name, 'a list of generators');
  const programs = [...made];
  if (programs.length === 0) throw outOfRange(name, 'a list of at least one generator', '[]');
  for (const [index, program] of programs.entries()) {
    checkMethod(program, `${name}: [${index}]`, 'next', 'a generator that was called');
  }
  return programs;
}
