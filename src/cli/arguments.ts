// Reads what users type. Only plain decimal digits are numbers: no signs, no exponents, no hexadecimal.

import { InvalidArgumentError, Option } from 'commander';
import type { Placement, Window } from '../index.js';

const PROCESSORS_MOST = 8192;

/** A parser for commander: an integer from `lowest` to `highest`. */
export function integer(lowest: number, highest: number): (text: string) => number {
  return (text) => {
    const value = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN;
    if (value >= lowest && value <= highest) return value;
    throw new InvalidArgumentError(`It must be an integer from ${lowest} to ${highest}.`);
  };
}

/** Ways of `--wait`. */
export const WAITS = ['poll', 'block', 'spin', 'adaptive'] as const;

const PLACEMENTS = ['auto', 'none', 'follow', 'awake'] as const;

/** What `--placement` means, for a help text. */
export const PLACEMENT_HELP = `\
  auto    whichever of the next three brings most faults a second; tried for a
          few hundred faults, and again when the pattern changes
  none    where the scheduler puts it
  follow  on the processor of the thread that faults
  awake   as none; and while faults come fast, no idle processor of this machine
          goes to sleep (needs to write to /dev/cpu_dma_latency)
  0,2-3   on these processors`;

export function placementOption(): Option {
  return new Option('--placement <where>', 'where the serving thread runs')
    .default('auto')
    .argParser(placement);
}

/** The parser of `--placement`: a way by name, or processors, like `0,2-3`. */
function placement(text: string): Placement {
  const named = PLACEMENTS.find((name) => name === text);
  if (named) return named;
  const cpus = text.split(',').flatMap((part) => {
    const [, first = '', last = first] = /^(\d{1,4})(?:-(\d{1,4}))?$/.exec(part) ?? [];
    const count = first === '' ? 0 : Number(last) - Number(first) + 1;
    return count > 0 ? Array.from({ length: count }, (_, index) => Number(first) + index) : [Number.NaN];
  });
  if (cpus.every((cpu) => cpu < PROCESSORS_MOST)) return cpus;
  throw new InvalidArgumentError(`It must be ${PLACEMENTS.join(', ')}, or processors, like 0,2-3.`);
}

/** Pages; 4 GiB of 4 KiB pages. */
export const WINDOW_MOST = 2 ** 20;

/** The parser of `--window`. */
export function window(text: string): Window {
  if (text === 'adaptive') return text;
  const value = /^\d{1,7}$/.test(text) ? Number(text) : 0;
  if (value >= 1 && value <= WINDOW_MOST) return value;
  throw new InvalidArgumentError(`It must be an integer from 1 to ${WINDOW_MOST}, or 'adaptive'.`);
}
