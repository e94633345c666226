// A monitor with a real guest: a virtual machine that resumes from a memory file, its code included. A page-fault
// handler serves the memory. The processors walk over every page, a balloon removes some pages, and the processors
// walk again.
//
//   node kvm-monitor.js SOCKET MEMORY CPUS [write]
//
// Exit code 0: every sum from the guest equals that of the file's pages, every page has the expected contents, and the
// guest's walks left no page absent; else 1. It prints one line of JSON.

import { once } from 'node:events';
import { readFileSync, readSync } from 'node:fs';
import { Worker } from 'node:worker_threads';
import * as memory from '../../shim/memory.js';
import { connectUnix, send } from '../../shim/socket.js';
import { Userfaultfd } from '../../src/index.js';
import { pagesOfSelf, type Read } from '../semantics/pagemap.js';
import { type Slot, Vm, type Walk } from './kvm.js';
import type { CpuOptions } from './kvm-cpu.js';

const PAGE = 4096;
/** The guest's addresses of its memory: below and above a hole. */
const LOW = 0;
const HIGH = 0x4000_0000;
/** The balloon takes BALLOON_PAGES of every BALLOON_STEP pages; the page of the code is not among them. */
const BALLOON_STEP = 32;
const BALLOON_PAGES = 5;
const LIMIT_MS = 50_000;

const [socket = '', file = '', cpuCount = '1', write] = process.argv.slice(2);

// Only SIGKILL ends a processor that waits for a page.
setTimeout(() => {
  console.error('it took too long');
  process.kill(process.pid, 'SIGKILL');
}, LIMIT_MS).unref();

/** The expected contents of the guest's memory. */
const expected = readFileSync(file);
const words = new Uint32Array(expected.buffer, expected.byteOffset, expected.length / 4);
const pages = expected.length / PAGE;

const low = Math.floor((pages * 5) / 8) | 1;
const slots: Slot[] = [
  { guest: LOW, start: map(low), length: low * PAGE },
  { guest: HIGH, start: map(pages - low), length: (pages - low) * PAGE },
];

/** The first page of each slot in the file. */
const firsts = [0, low];

function map(count: number): bigint {
  const flags = memory.MAP_PRIVATE | memory.MAP_ANONYMOUS | memory.MAP_NORESERVE;
  const start = memory.mmap(0n, count * PAGE, memory.PROT_READ | memory.PROT_WRITE, flags);
  if (start < 0n) throw new Error(`mmap: errno ${-start}`);
  return start;
}

/** The connection stays open, and so does this process's own descriptor. */
function handOver(): void {
  const uffd = Userfaultfd.open({ features: ['event-remove'], userModeOnly: false });
  for (const { start, length } of slots) uffd.register(start, length);
  const regions = slots.map(({ start, length }, index) => ({
    base_host_virt_addr: Number(start),
    size: length,
    offset: (firsts[index] as number) * PAGE,
    page_size: PAGE,
    page_size_kib: PAGE,
  }));
  const connection = connectUnix(socket);
  if (connection < 0) throw new Error(`connect: errno ${-connection}`);
  const text = Buffer.from(JSON.stringify(regions));
  const sent = send(connection, text, [uffd.release()]);
  if (sent !== text.length) throw new Error(`sendmsg: ${sent} of ${text.length} bytes`);
}

/** A processor's walk over a slot: processors with even numbers go up, those with odd numbers down. */
function walkOf(cpu: number, slot: Slot): Walk {
  const count = slot.length / PAGE;
  const down = cpu % 2 === 1;
  return {
    from: slot.guest + (down ? slot.length - PAGE : 0),
    pages: count,
    step: down ? -PAGE : PAGE,
    write: write === undefined ? 0 : 1 + cpu,
  };
}

/** The sum that a walk should return. Also applies the walk's writes to the expected contents. */
function expectedSum({ pages: count, step, write: word }: Walk, first: number): number {
  let sum = 0;
  for (let left = count; left > 0; left--) {
    const page = first + (step > 0 ? count - left : left - 1);
    const at = (page * PAGE) / 4;
    if (word > 0) words[at + word] = left;
    sum = (sum + (words[at] as number)) >>> 0;
    sum = ((sum << 1) | (sum >>> 31)) >>> 0;
  }
  return sum;
}

/** Lets all processors walk over all slots at the same time. Returns the number of wrong sums. */
async function walkAll(cpus: readonly Worker[]): Promise<number> {
  const wrong = await Promise.all(
    cpus.map(async (cpu, number) => {
      let found = 0;
      for (const [index, slot] of slots.entries()) {
        const walk = walkOf(number, slot);
        cpu.postMessage(walk);
        const [sum] = await once(cpu, 'message');
        if (sum !== expectedSum(walk, firsts[index] as number)) found++;
      }
      return found;
    }),
  );
  return wrong.reduce((sum, found) => sum + found, 0);
}

/** Removes pages of the guest, and returns their number. */
function inflate(): number {
  let removed = 0;
  for (const [index, { start, length }] of slots.entries()) {
    for (let page = BALLOON_STEP; (page + BALLOON_PAGES) * PAGE <= length; page += BALLOON_STEP) {
      const result = memory.madvise(start + BigInt(page * PAGE), BALLOON_PAGES * PAGE, memory.MADV_DONTNEED);
      if (result < 0) throw new Error(`madvise: errno ${-result}`);
      const at = ((firsts[index] as number) + page) * PAGE;
      expected.fill(0, at, at + BALLOON_PAGES * PAGE);
      removed += BALLOON_PAGES;
    }
  }
  return removed;
}

const readAt: Read = (file, buffer, length, from) => readSync(file, buffer, 0, length, from);

/** The number of pages that are not in memory, which the guest cannot have touched. */
function absentPages(): number {
  return slots
    .flatMap(({ start, length }) => pagesOfSelf(start, length / PAGE, readAt))
    .filter(({ present, swap }) => !present && !swap).length;
}

function wrongPages(): number {
  let wrong = 0;
  for (const [index, { start, length }] of slots.entries()) {
    const actual = Buffer.from(memory.view(start, length));
    for (let at = 0; at < length; at += PAGE) {
      const from = (firsts[index] as number) * PAGE + at;
      if (actual.compare(expected, from, from + PAGE, at, at + PAGE) !== 0) wrong++;
    }
  }
  return wrong;
}

handOver();
const vm = new Vm(slots);
const cpus = Array.from({ length: Number(cpuCount) }, (_, index) => {
  const workerData: CpuOptions = { vm: vm.fd, runBytes: vm.runBytes, index };
  return new Worker(new URL('./kvm-cpu.js', import.meta.url), { workerData });
});
let wrongSums = await walkAll(cpus);
const removed = inflate();
wrongSums += await walkAll(cpus);
const absent = absentPages();
const wrong = wrongPages();
console.log(JSON.stringify({ pages, cpus: cpus.length, removed, absent, wrong, wrongSums }));
await Promise.all(cpus.map((cpu) => cpu.terminate()));
process.exitCode = wrong + wrongSums + absent === 0 ? 0 : 1;
