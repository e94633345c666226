// Sorts numbers in memory that is larger than what may be resident: the rest is in a swap file, compressed, which is
// gone when the process ends. Runs that fit are sorted in place, and then merged: sequential access makes few faults.
// Usage: node sort-larger-than-memory.js [MEBIBYTES OF NUMBERS] [MEBIBYTES RESIDENT]
import { Pager } from 'userfaultfd/pager';

const [data = 8, resident = 4] = process.argv.slice(2).map(Number);
const count = (data * 2 ** 20) / 4;
const run = (resident * 2 ** 20) / 4 / 4;
await using pager = await Pager.anonymous(2 * count * 4, { resident: resident * 2 ** 20 });
const part = (first: number, length: number) => new Uint32Array(pager.view(first * 4, length * 4).buffer);
for (let first = 0, seed = 1; first < count; first += run) {
  const numbers = part(first, Math.min(run, count - first));
  for (let index = 0; index < numbers.length; index++) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    numbers[index] = seed;
  }
  numbers.sort();
}

// The second half of the memory gets the result.
const runs = Array.from({ length: Math.ceil(count / run) }, (_, index) =>
  part(index * run, Math.min(run, count - index * run)),
);
const next = runs.map(() => 0);
const sorted = part(count, count);
for (let place = 0; place < count; place++) {
  let least = -1;
  let value = Number.POSITIVE_INFINITY;
  for (const [index, numbers] of runs.entries()) {
    const head = numbers[next[index] as number] ?? Number.POSITIVE_INFINITY;
    if (head < value) [least, value] = [index, head];
  }
  sorted[place] = value;
  next[least] = (next[least] as number) + 1;
}

let isSorted = true;
for (let place = 1; place < count; place++)
  isSorted &&= (sorted[place - 1] as number) <= (sorted[place] as number);
const { evictedBytes } = pager.stats;
console.log(`${count} numbers are ${isSorted ? 'sorted' : 'NOT SORTED'}`);
console.log(`more than all of them was evicted: ${evictedBytes > count * 4}`);
