// How long a loop spins before it sleeps: longer while that brings something, and hardly ever where it is in vain.

import * as assert from 'uvu/assert';
import { Spin } from '../src/spin.js';
import { suite } from './harness.js';

const test = suite('spin');

/** A look takes so many milliseconds, when nothing interrupts. */
const LOOK_MS = 0.001;

/** A loop that waits for messages; each comes so long after the wait for it began. */
class Waiting {
  readonly spin = new Spin();
  time = 0;

  /** Milliseconds that were spun before it came, and whether it slept; something else runs after so long. */
  message(afterMs: number, interruptedAfterMs = Number.POSITIVE_INFINITY): { spun: number; slept: boolean } {
    const begun = this.time;
    for (;;) {
      const spun = this.time - begun;
      this.spin.looks(this.time);
      if (spun >= afterMs) {
        this.spin.came();
        this.time += LOOK_MS;
        return { spun, slept: false };
      }
      if (!this.spin.goesOn) {
        this.time = begun + Math.max(afterMs, spun);
        this.spin.slept();
        this.spin.looks(this.time);
        this.spin.came();
        this.time += LOOK_MS;
        return { spun, slept: true };
      }
      this.time += spun >= interruptedAfterMs ? 0.02 : LOOK_MS;
    }
  }
}

/** What became of so many messages. */
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
  // It waits longer for the next one then.
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
  // When it pays again, it goes on with it.
  messages(waiting, 200, 0.02);
  assert.not(messages(waiting, 100, 0.02).some(({ slept }) => slept));
});

test('who is interrupted leaves it, even where a message came of that', () => {
  const waiting = new Waiting();
  const all = messages(waiting, 1000, 0.03, 0.01);
  const spun = all.reduce((sum, one) => sum + one.spun, 0);
  assert.ok(spun < 1000 * 0.03 * 0.1, `${spun} ms were spun`);
});

test.run();
