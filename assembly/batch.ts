// Batches of faults that are answered from sources. The pages of a batch are installed while their waiters stay asleep.
// Then one WAKE wakes all of these waiters.
//
// Rules:
//  - If several faults are queued, no thread is woken before all of them are answered. A woken thread would compete
//    with this one for the processor, and waking one thread takes about as long as waking many. The queue is read again
//    before the WAKE, because threads that ran in the meantime may have faulted too.
//  - A batch is bounded by READS further reads of the queue and by HELD bytes. Copying HELD bytes takes far longer than
//    a wake-up.
//  - The WAKE covers the range from the lowest installed page to the highest. A thread that waits for another page in
//    this range is woken, too, and faults again.

import { shared } from './exchange';
import { Fault, KIND_MISSING } from './faults';
import { PAGE_PRESENT, pageState } from './pages';
import { transferCursor, transferStart } from './transfer';

/** How often the kernel's queue is read again before the sleeping threads are woken. */
const READS: u32 = 3;
/** Once a batch has installed this many bytes, the sleeping threads are woken. */
const HELD: u64 = 1 << 20;

/** The range in which fills have left threads asleep. If the end is 0, no thread was left asleep. */
let heldStart: u64 = 0;
let heldEnd: u64 = 0;
let heldBytes: u64 = 0;
let reads: u32 = 0;

/** Resets the counters. To call when the faults that were answered so far were reported. */
export function batchReported(): void {
  const it = shared();
  it.answered = 0;
  it.writes = 0;
  it.deferred = 0;
  it.answeredBytes = it.holeBytes = it.removedBytes = 0;
}

export function batchBegin(): void {
  batchReported();
  reads = 0;
}

/** Counts an answered fault. */
export function batchCount(write: bool): void {
  shared().answered++;
  if (write) shared().writes++;
}

export function batchHolds(): bool {
  return heldEnd != 0;
}

export function batchIsFull(): bool {
  return heldBytes >= HELD;
}

/** Whether to read the kernel's queue once more before the sleeping threads are woken. Counts that read. */
export function batchLooks(): bool {
  if (heldEnd == 0 || reads == READS) return false;
  reads++;
  return true;
}

/** Records that the last fill left threads asleep. */
export function batchHold(): void {
  const start = transferStart();
  const end = transferCursor();
  if (end == start) return;
  heldBytes += end - start;
  heldStart = heldEnd ? min(heldStart, start) : start;
  heldEnd = max(heldEnd, end);
}

/**
 * Whether this batch has installed the fault's page. If so, the WAKE of the batch also wakes the thread of this fault.
 */
export function batchHas(fault: Fault): bool {
  const page = fault.page;
  return page >= heldStart && page < heldEnd && fault.kind == KIND_MISSING && pageState(page) == PAGE_PRESENT;
}

/** Start of the range that the WAKE of the batch has to cover. */
export function batchStart(): u64 {
  return heldStart;
}

export function batchEnd(): u64 {
  return heldEnd;
}

export function batchWoken(): void {
  heldEnd = 0;
  heldBytes = 0;
}
