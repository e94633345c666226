// All scenarios, in the order in which they run.

import type { Scenario } from '../scenario.js';
import { ENDS } from './ends.js';
import { FAULTS } from './faults.js';
import { HAND_OFFS } from './hand-offs.js';
import { LAYOUTS } from './layouts.js';
import { REMOVALS } from './removals.js';

/** Played by the monitor that comes after one that has ended, or was refused. It is in no list. */
export const NEXT_MONITOR: Scenario = {
  name: 'next-monitor',
  why: '',
  play(guest) {
    for (const page of [0, 1, guest.pages - 1]) guest.expect(page);
  },
};

export const SCENARIOS: readonly Scenario[] = [...FAULTS, ...REMOVALS, ...LAYOUTS, ...HAND_OFFS, ...ENDS];

export function scenarioNamed(name: string): Scenario {
  const found = [...SCENARIOS, NEXT_MONITOR].find((scenario) => scenario.name === name);
  if (!found) throw new RangeError(`there is no scenario '${name}'`);
  return found;
}
