// How a serving thread is started: by the pool, or by a program that will need one and has other code to load first.

import { ENTRY } from '../workers/entry-file.js';
import type { EarlyThread } from '../workers/launcher.js';

/**
 * Most MiB of V8's young generation in a serving thread. A loop makes some bytes of garbage for each fault. With V8's
 * own maximum of 48 MiB, memory seems to grow for a million faults before it is collected.
 */
const YOUNG_MB = 2;

export const SESSION_THREAD: EarlyThread = {
  name: 'session',
  options: { name: 'vm', resourceLimits: { maxYoungGenerationSizeMb: YOUNG_MB } },
  own: ENTRY,
};
