// Requests to the source: runs of adjacent blocks that are read together, the urgent ones first. A request that failed
// is made again after a delay that doubles, with jitter.

/** What becomes of a request. */
export enum Phase {
  FREE,
  QUEUED,
  ACTIVE,
  /** Failed, and made again when it is due. */
  FAILED,
}

@unmanaged
export class Request {
  block: u32;
  count: u32;
  /** Blocks that have arrived, from the first one on. */
  done: u32;
  phase: u32;
  /** Whether a thread waits for one of its blocks. */
  urgent: u32;
  attempts: u32;
  /** Its place in the order of requests. */
  order: u32;
  /** Whether a thread or the program waits for one of its blocks. */
  awaited: u32;
  /** When a failed one is made again. */
  due: f64;
  /** When it was first made, or last had an answer that was no failure. */
  since: f64;
  /** When its time was found to be up; 0: it is not. */
  late: f64;
}
const REQUEST_BYTES: usize = 56;
export const REQUESTS: u32 = 64;
const requests: usize = memory.data(56 * 65, 8);
/** The highest number that a request has had so far. */
export let highestRequest: u32 = 0;
let orders: u32 = 0;
let random: u32 = 1;

/** Delays in milliseconds between two attempts: the first, and the longest. */
const DELAY_MS: f64 = 50;
const DELAY_MOST_MS: f64 = 10000;

export function requestsStart(seed: u32): void {
  random = seed | 1;
}

/** Requests are numbered from 1 on. */
export function request(id: u32): Request {
  return changetype<Request>(requests + <usize>id * REQUEST_BYTES);
}

/** Queues a request, and returns its number; 0: too many are there already. */
export function addRequest(block: u32, count: u32, urgent: bool): u32 {
  for (let id: u32 = 1; id <= REQUESTS; id++) {
    const one = request(id);
    if (one.phase != Phase.FREE) continue;
    memory.fill(changetype<usize>(one), 0, REQUEST_BYTES);
    one.block = block;
    one.count = count;
    one.phase = Phase.QUEUED;
    one.urgent = urgent ? 1 : 0;
    one.order = ++orders;
    highestRequest = max(highestRequest, id);
    return id;
  }
  return 0;
}

/** The queued request that no thread waits for, that ends before a block, and has room for it; 0: there is none. */
export function requestBefore(block: u32, most: u32): u32 {
  for (let id: u32 = 1; id <= highestRequest; id++) {
    const one = request(id);
    if (one.phase != Phase.QUEUED || one.urgent != 0 || one.done != 0) continue;
    if (one.block + one.count == block && one.count < most) return id;
  }
  return 0;
}

/** How many requests are neither queued nor free. */
export function activeRequests(): u32 {
  let found: u32 = 0;
  for (let id: u32 = 1; id <= highestRequest; id++) if (request(id).phase == Phase.ACTIVE) found++;
  return found;
}

/** The queued request to make next, the urgent ones first, then in order; 0: none. `urgent`: none but urgent ones. */
export function nextRequest(urgent: bool): u32 {
  let best: u32 = 0;
  for (let id: u32 = 1; id <= highestRequest; id++) {
    const one = request(id);
    if (one.phase != Phase.QUEUED || (urgent && one.urgent == 0)) continue;
    if (best == 0 || one.urgent > request(best).urgent) best = id;
    else if (one.urgent == request(best).urgent && one.order < request(best).order) best = id;
  }
  return best;
}

/** The request that no thread waits for and that was added last; 0: none. */
export function leastRequest(): u32 {
  let best: u32 = 0;
  for (let id: u32 = 1; id <= highestRequest; id++) {
    const one = request(id);
    if ((one.phase != Phase.QUEUED && one.phase != Phase.ACTIVE) || one.urgent != 0) continue;
    if (best == 0 || one.order > request(best).order) best = id;
  }
  return best;
}

/** Sets when a request that has failed is made again. */
export function delayRequest(one: Request, now: f64): void {
  const most = min(DELAY_MS * <f64>((<u32>1) << min(one.attempts, 16)), DELAY_MOST_MS);
  one.attempts++;
  one.phase = Phase.FAILED;
  one.due = now + most / 2 + (most / 2) * jitter();
}

/** A number from 0 up to 1 (xorshift). */
function jitter(): f64 {
  random ^= random << 13;
  random ^= random >> 17;
  random ^= random << 5;
  return <f64>random / 4294967296;
}
