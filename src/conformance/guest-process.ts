// The guest's process: plays one scenario, and reports each step and the result.

import '../kernel/linux.js';
import { writeSync } from 'node:fs';
import { ConnectionClosed, Guest, GuestFailure, NotApplicable } from './guest.js';
import type { GuestLine, GuestOptions, Request } from './guest-protocol.js';
import { scenarioNamed } from './scenarios/index.js';

/** The descriptor that lines are written to. */
export const LINES_FD = 4;

function write(line: GuestLine): void {
  writeSync(LINES_FD, `${JSON.stringify(line)}\n`);
}

/** Asks the supervisor, over Node's channel, and waits for its answer. */
function ask(what: Request): Promise<unknown> {
  return new Promise((resolve) => {
    process.once('message', resolve);
    process.send?.(what);
  });
}

/** The main function of the guest's process. */
export async function runGuest(): Promise<void> {
  // If the supervisor is gone, there is nothing left to do.
  process.on('disconnect', () => process.kill(process.pid, 'SIGKILL'));
  // Ctrl-C is handled by the supervisor.
  process.on('SIGINT', () => {});
  const options = JSON.parse(process.argv[2] ?? '') as GuestOptions;
  try {
    const scenario = scenarioNamed(options.scenario);
    const guest = new Guest(scenario, options, (text) => write({ is: 'step', text }), ask);
    if (!scenario.handsOver) await guest.handOver();
    await scenario.play(guest);
    write({ is: 'passed' });
  } catch (error) {
    write(asLine(error));
  }
}

function asLine(error: unknown): GuestLine {
  if (error instanceof NotApplicable) return { is: 'not applicable', reason: error.message };
  if (!(error instanceof GuestFailure)) return { is: 'failed', reason: `${(error as Error).stack ?? error}` };
  const { message: reason, page } = error;
  const closed = error instanceof ConnectionClosed;
  return { is: 'failed', reason, closed, page: page && { ...page, address: String(page.address) } };
}
