// The monitor of a simulated guest, which has the userfaultfd, too: it fills pages for which threads wait, and does not
// wake them. That is how a fill of the handler finds a page present while its thread sleeps.

import { hex } from '../errors/format.js';
import { BIT, REQUEST } from '../sim/abi.js';
import type { Chooser } from '../sim/chooser.js';
import type { Action, Program } from '../sim/index.js';
import type { Context } from '../sim/memory.js';
import { resolve } from '../sim/resolve.js';

/** What the monitor knows of its guest. */
interface MonitoredGuest {
  readonly context: Context;
  readonly chooser: Chooser;
  readonly pageSize: number;
  /** The bytes that a missing page must get; undefined: it is present, or is not to be filled. */
  missing(start: number): Uint8Array | undefined;
  othersAreDone(): boolean;
}

/** Fills so many pages, each when a thread waits. */
export function* monitorFills(fills: number, guest: MonitoredGuest): Program {
  for (let fill = 0; fill < fills; fill++) yield fillOne(guest);
}

function fillOne(guest: MonitoredGuest): Action {
  const { context, chooser, pageSize } = guest;
  const { space } = context;
  let filled = 'nothing';
  return {
    get text() {
      return `the monitor fills ${filled}`;
    },
    *steps() {
      const asleep = (): number[] =>
        [...context.pending, ...context.reading].map(({ address }) => space.startOf(address));
      yield { place: 'read', over: () => asleep().length > 0 || guest.othersAreDone() };
      const waiting = asleep();
      const start = waiting[chooser.below(waiting.length)];
      const bytes = start === undefined ? undefined : guest.missing(start);
      if (start === undefined || !bytes) return 0;
      filled = `${hex(BigInt(start))}, without a wake`;
      const fill = { request: REQUEST.COPY, start, source: start, length: pageSize, mode: BIT.DONTWAKE };
      const page = (address: number, length: number): Uint8Array =>
        bytes.subarray(address - start, address - start + length);
      return resolve(context, { space, read: page }, fill).result === 0 ? 1 : 0;
    },
  };
}
