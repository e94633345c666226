// Reads what users type. Only plain decimal digits are numbers: no signs, no exponents, no hexadecimal.

import { InvalidArgumentError } from 'commander';

/** A parser for commander: an integer from `lowest` to `highest`. */
export function integer(lowest: number, highest: number): (text: string) => number {
  return (text) => {
    const value = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN;
    if (value >= lowest && value <= highest) return value;
    throw new InvalidArgumentError(`It must be an integer from ${lowest} to ${highest}.`);
  };
}
