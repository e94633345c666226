// The random order in which pages are touched: a permutation of 0 to count − 1 that needs no memory, whatever the
// count. Equal counts and seeds give equal orders.
//
// Each step below (adding a key, multiplying by an odd number, folding the high half down) can be undone within
// `bits` bits, so all of them together are a permutation of 0 to 2^bits − 1. A value beyond the count is mapped again
// until it is below: that makes a permutation of the smaller set.

const ROUNDS = 4;
/** Multiples of the golden ratio of 2^32 are well distributed. */
export const GOLDEN = 0x9e3779b9;

/** @param count 1 to 2^32 */
export function shuffledOrder(count: number, seed: number): (index: number) => number {
  const bits = count > 1 ? 32 - Math.clz32(count - 1) : 0;
  const mask = (2 ** bits - 1) >>> 0;
  const fold = Math.ceil(bits / 2) || 1;
  const keys = Array.from({ length: ROUNDS }, (_, round) => mix(seed + Math.imul(round + 1, GOLDEN)));
  const factors = keys.map((key) => mix(key) | 1);
  const step = (index: number): number => {
    let value = index;
    for (let round = 0; round < ROUNDS; round++) {
      value = (value + (keys[round] as number)) & mask;
      value = Math.imul(value, factors[round] as number) & mask;
      value ^= value >>> fold;
    }
    return value >>> 0;
  };
  return (index) => {
    let value = step(index);
    while (value >= count) value = step(value);
    return value;
  };
}

/** The end of murmur3: every bit of the input reaches every bit of the output. */
export function mix(input: number): number {
  let value = input | 0;
  value = Math.imul(value ^ (value >>> 16), 0x85ebca6b);
  value = Math.imul(value ^ (value >>> 13), 0xc2b2ae35);
  return value ^ (value >>> 16);
}
