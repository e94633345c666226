// Parsers of what users type. Only plain decimal digits are numbers: no signs, no exponents, no hexadecimal.

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

const UNITS: Readonly<Record<string, number>> = { '': 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30, T: 2 ** 40 };

/** A parser for commander: bytes, at least `lowest`, with a unit of 1024, like 256M. */
export function byteCount(lowest: number): (text: string) => number {
  return (text) => {
    const [, digits = '', unit = ''] = /^(\d{1,12})([KMGT]?)$/i.exec(text) ?? [];
    const value = digits === '' ? Number.NaN : Number(digits) * (UNITS[unit.toUpperCase()] as number);
    if (value >= lowest && Number.isSafeInteger(value)) return value;
    throw new InvalidArgumentError(`It must be a number of bytes, like 256M or 2G, and at least ${lowest}.`);
  };
}

/** The choices of `--wait`. */
export const WAITS = ['poll', 'block', 'spin', 'adaptive'] as const;

const PLACEMENTS = ['auto', 'none', 'follow', 'awake'] as const;

/** The choices of `--placement`, for a help text. */
export const PLACEMENT_HELP = `\
  none    where the scheduler puts it (the default)
  follow  on the processor of the thread that faults
  0,2-3   on these processors
  awake   as none, but while faults come fast, no idle processor of this machine
          goes to sleep (needs to write to /dev/cpu_dma_latency). This costs
          power, and slows other programs on a core's second hyperthread
  auto    whichever of none, follow and awake serves most faults a second; each
          is tried for a few hundred faults, and again when the pattern changes`;

export function placementOption(): Option {
  return new Option('--placement <where>', 'where the serving thread runs')
    .default('none')
    .argParser(placement);
}

/** The parser of `--placement`: the name of a placement, or processors, like `0,2-3`. */
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

/** The largest window, in pages: 4 GiB of 4 KiB pages. */
const WINDOW_MOST = 2 ** 20;

export function windowOption(): Option {
  return new Option('-w, --window <N>', `pages for each fault, 1 to ${WINDOW_MOST}, or 'adaptive'`)
    .default(1)
    .argParser(window);
}

function window(text: string): Window {
  if (text === 'adaptive') return text;
  const value = /^\d{1,7}$/.test(text) ? Number(text) : 0;
  if (value >= 1 && value <= WINDOW_MOST) return value;
  throw new InvalidArgumentError(`It must be an integer from 1 to ${WINDOW_MOST}, or 'adaptive'.`);
}
