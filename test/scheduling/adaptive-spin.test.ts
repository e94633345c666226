// How long a loop spins before it sleeps: longer while spinning finds messages, and hardly at all otherwise.

import * as assert from 'uvu/assert';
import { AdaptiveSpin } from '../../src/scheduling/adaptive-spin.js';
import { suite } from '../support/harness.js';

const test = suite('scheduling/adaptive-spin');

/** Milliseconds that one poll takes if nothing interrupts it. */
const LOOK_MS = 0.001;

/** A loop that waits for messages. Each message comes a given time after the loop began to wait for it. */
class Waiting {
  readonly spin = new AdaptiveSpin();
  time = 0;

  /**
   * Waits for one message. Returns the milliseconds spun, and whether the loop slept. From `interruptedAfterMs` on,
   * polls take longer, as if other threads ran.
   */
  message(afterMs: number, interruptedAfterMs = Number.POSITIVE_INFINITY): { spun: number; slept: boolean } {
    const begun = this.time;
    for (;;) {
      const spun = this.time - begun;
      this.spin.polledAt(this.time);
      if (spun >= afterMs) {
        this.spin.messageArrived();
        this.time += LOOK_MS;
        return { spun, slept: false };
      }
      if (!this.spin.shouldContinue) {
        this.time = begun + Math.max(afterMs, spun);
        this.spin.slept();
        this.spin.polledAt(this.time);
        this.spin.messageArrived();
        this.time += LOOK_MS;
        return { spun, slept: true };
      }
      this.time += spun >= interruptedAfterMs ? 0.02 : LOOK_MS;
    }
  }
}

/** Waits for `count` messages, and returns the results. */
function messages(
  waiting: Waiting,
  count: number,
  ...of: Parameters<Waiting['message']>
): ReturnType<Waiting['message']>[] {
  return Array.from({ length: count }, () => waiting.message(...of));
}

test('where messages come soon it spins, and never sleeps', () => {
  const waiting = new Waiting();
  assert.not(messages(waiting, 100, 0.02).some(({ slept }) => slept));
  // Then it also spins longer for the next message.
  assert.not(waiting.message(0.15).slept);
});

test('where they come late it is left, and tried again and again', () => {
  const waiting = new Waiting();
  const all = messages(waiting, 1000, 1);
  assert.ok(all.every(({ slept }) => slept));
  assert.ok(all.filter(({ spun }) => spun > 0).length < 100, 'seldom');
  assert.ok(
    all.slice(-100).some(({ spun }) => spun > 0),
    'but it is',
  );
  // When spinning pays again, the loop keeps spinning.
  messages(waiting, 200, 0.02);
  assert.not(messages(waiting, 100, 0.02).some(({ slept }) => slept));
});

test('an interrupt ends the spin, even if a message arrived with it', () => {
  const waiting = new Waiting();
  const all = messages(waiting, 1000, 0.03, 0.01);
  const spun = all.reduce((sum, one) => sum + one.spun, 0);
  assert.ok(spun < 1000 * 0.03 * 0.1, `${spun} ms were spun`);
});

test.run();
