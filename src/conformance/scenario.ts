// What a scenario is. Its `play` runs in the guest's process, and everything else in the process that supervises it.

import type { Guest } from './guest.js';
import type { MemoryPlan } from './guest-protocol.js';

export interface Scenario extends MemoryPlan {
  readonly name: string;
  /** Why it matters, in one sentence. */
  readonly why: string;
  /** Whether the file's zero pages are holes; default false. */
  readonly sparse?: boolean;
  /** Whether `play` hands the memory over itself; default false: it has been handed over when `play` begins. */
  readonly handsOver?: boolean;
  /**
   * What the handler may do besides serving the guest. Default: nothing.
   *
   * - `refuse`: exit, close the connection or kill the monitor, because the hand-off is wrong. If it goes on, it must serve
   *   the next monitor.
   * - `give up`: exit or kill the monitor, because the guest cannot be served. It must not go on while the guest hangs.
   * - `outlive`: the guest has ended. It may exit with status 0, or go on and serve the next monitor.
   */
  readonly handlerMay?: 'refuse' | 'give up' | 'outlive';
  /** Why the scenario cannot be asked for on this machine. */
  readonly inapplicable?: () => string | undefined;
  play(guest: Guest): void | Promise<void>;
}
