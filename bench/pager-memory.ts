// The memory of a pager, in a process of its own: what its memfd has beyond the limit while it is in use, and what private
// memory the process has more than without it. Prints JSON.
//
//   node pager-memory.js LIBRARY FILE RESIDENT BLOCK_SIZE

import { readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileSource, Pager } from '../src/pager/index.js';
import { loadPager } from './pager-native.js';

const PAGE = 4096;
const SAMPLE_MS = 2;
const SETTLE_MS = 500;

export interface PagerFootprint {
  readonly aboveLimit: number;
  readonly privateBytes: number;
}

function privateBytes(): number {
  globalThis.gc?.();
  return Number(/^RssAnon:\s+(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]) * 1024;
}

/** The path of the pager's memfd in /proc. */
function memfd(): string {
  for (const name of readdirSync('/proc/self/fd')) {
    const path = `/proc/self/fd/${name}`;
    try {
      if (readlinkSync(path).includes('userfaultfd-pager')) return path;
    } catch {
      // The descriptor of the listing itself.
    }
  }
  throw new Error('the pager has no memfd');
}

const [, , library = '', file = '', ...numbers] = process.argv;
const [resident = 0, blockSize = 0] = numbers.map(Number);
const native = loadPager(library);
const { size } = statSync(file);
const pages = size / PAGE;
// The thread of libuv's pool in which the touches run exists before the first measurement.
const own = new ArrayBuffer(PAGE);
new BigUint64Array(own)[0] = 1n;
await sleep(SETTLE_MS);
const before = privateBytes();
const pager = await Pager.open({ source: fileSource(file), resident, blockSize });
const path = memfd();
let most = 0;
const timer = setInterval(() => {
  most = Math.max(most, statSync(path).blocks * 512);
}, SAMPLE_MS);
for (let round = 1; round <= 3; round++) {
  await native.readMemory(pager.address, PAGE, pages, pages, 0, -1);
  await native.readMemory(pager.address, PAGE, pages, 30_000, round, -1);
}
clearInterval(timer);
await sleep(SETTLE_MS);
const after = privateBytes();
console.log(JSON.stringify({ aboveLimit: most - resident, privateBytes: after - before }));
await pager.close();
