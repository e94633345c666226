// Tries every way to open a userfaultfd, each by itself: which is open, and what the kernel says where it is
// not.

import { type Feature, UffdError, Userfaultfd } from '../../index.js';
import type { AccessFindings, Door } from './findings.js';

/** In the order in which the library tries them. A device that opens serves all faults, so it has one way only. */
const DOORS = [
  { via: 'syscall', userModeOnly: false },
  { via: 'device', userModeOnly: false },
  { via: 'syscall', userModeOnly: true },
] as const;

export interface Tried extends Pick<AccessFindings, 'doors' | 'way' | 'obstacle'> {
  /** What the kernel offers; empty where no door is open. */
  features: ReadonlySet<Feature>;
  /** Bytes of a page; null where no door is open. */
  pageSize: number | null;
}

export function tryDoors(): Tried {
  const tried: Tried = { doors: [], way: null, obstacle: null, features: new Set(), pageSize: null };
  for (const door of DOORS) {
    try {
      const { features, pageSize } = Userfaultfd.probe(door);
      tried.doors.push({ ...door, result: 'ok' });
      if (!tried.way) Object.assign(tried, { way: door, features, pageSize });
    } catch (error) {
      if (!(error instanceof UffdError)) {
        // This machine lacks what every door needs.
        tried.obstacle = (error as Error).message;
        break;
      }
      tried.doors.push({ ...door, result: error.code } satisfies Door);
    }
  }
  return tried;
}
