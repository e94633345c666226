// Makes a run that breaks an invariant small. A run is a list of choices, and 0 is the plainest.
//
// How: first the threads get less to do. Parts are left out of what was chosen before the first step, and several
// schedules are tried behind it, the plainest one first. Then the schedule is made plain: parts of the list are left
// out or made 0, and single numbers smaller. What breaks the same invariant and is simpler is kept.

import { type Chooser, Random } from '../sim/random.js';
import { attempt, type SimulateOptions, type Tried } from './simulate.js';

/** A run that breaks the invariant. */
type Found = Pick<Tried, 'choices' | 'planned' | 'steps' | 'injected'>;

/** Choices that all of it may take: who is busy in vain takes thousands in each run. */
const CHOICES_MOST = 1_000_000;
/** Parts up to this size are tried at every place, larger ones side by side. */
const SMALL_PART = 6;
/** Schedules that are tried for a part that is left out, and for what is left in the end. */
const SCHEDULES = 12;
const LAST_SCHEDULES = 100;
/** By how many places what follows a smaller number may move. */
const SHIFTS = [0, 1, -1, 2, -2];

/** The choices of the simplest run that was found, in so many runs at most. */
export async function shrink(
  options: SimulateOptions,
  tried: Tried,
  runs: number,
): Promise<readonly number[]> {
  return new Shrinking(options, tried, runs).shrink();
}

class Shrinking {
  readonly #options: SimulateOptions;
  readonly #invariant: string | undefined;
  #best: Found;
  #left: number;
  #choices = 0;

  constructor(options: SimulateOptions, { failure, choices, ...found }: Tried, runs: number) {
    this.#options = options;
    this.#invariant = failure?.invariant;
    this.#best = { ...found, choices: trimmed(choices) };
    this.#left = runs;
  }

  async shrink(): Promise<readonly number[]> {
    await this.#try(this.#best.choices.slice(0, this.#best.planned));
    await this.#untilStable(() => this.#plan());
    await this.#schedules(this.#best, LAST_SCHEDULES);
    await this.#untilStable(async () => {
      await this.#parts(() => []);
      await this.#parts((part) => part.map(() => 0));
      await this.#lower();
    });
    return this.#best.choices;
  }

  /** What is wrong is that it goes on for ever. */
  get #endless(): boolean {
    return this.#invariant === 'livelock';
  }

  /** No more runs: what there is must do. */
  get #spent(): boolean {
    return this.#left <= 0 || this.#choices >= CHOICES_MOST;
  }

  /** The parts of a list, large ones first, from its end. */
  *#places(length: number): Generator<{ at: number; size: number }> {
    for (let size = length; size >= 1; size -= Math.ceil(size / 4)) {
      const stride = size <= SMALL_PART ? 1 : size;
      for (let at = length - size; at >= 0 && !this.#spent; at -= stride) yield { at, size };
    }
  }

  /** Does something again as long as it helps. */
  async #untilStable(pass: () => Promise<void>): Promise<void> {
    for (let before: Found | undefined; before !== this.#best; ) {
      before = this.#best;
      await pass();
    }
  }

  /** Gives the threads less to do. */
  async #plan(): Promise<void> {
    for (const { at, size } of this.#places(this.#best.planned)) {
      const { choices, planned } = this.#best;
      if (at + size > planned) continue;
      const less = [...choices.slice(0, at), ...choices.slice(at + size)];
      await this.#try(less);
      await this.#schedules({ choices: less, planned: planned - size }, SCHEDULES);
    }
  }

  /** Looks for another schedule of what the threads have to do. */
  async #schedules({ choices, planned }: Pick<Found, 'choices' | 'planned'>, count: number): Promise<void> {
    // The plainest one goes on for ever as well.
    if (this.#endless) return;
    const plan = choices.slice(0, planned);
    for (let schedule = 0; schedule < count; schedule++) await this.#try(plan, new Random(schedule));
  }

  /** Puts something simpler in place of parts. */
  async #parts(simpler: (part: readonly number[]) => number[]): Promise<void> {
    for (const { at, size } of this.#places(this.#best.choices.length)) {
      const { choices } = this.#best;
      const part = choices.slice(at, at + size);
      if (part.length > 0)
        await this.#try([...choices.slice(0, at), ...simpler(part), ...choices.slice(at + size)]);
    }
  }

  /** Makes single numbers smaller: what asks for fewer choices then, or for more, has them left out or put in. */
  async #lower(): Promise<void> {
    for (let at = this.#best.choices.length - 1; at >= 0 && !this.#spent; at--) {
      const value = this.#best.choices[at] ?? 0;
      for (const lower of new Set([0, Math.floor(value / 2), value - 1])) {
        if (lower >= value) continue;
        for (const shift of SHIFTS) {
          const { choices } = this.#best;
          const behind = choices.slice(at + 1 + Math.max(-shift, 0));
          const plain = Array.from({ length: Math.max(shift, 0) }, () => 0);
          await this.#try([...choices.slice(0, at), lower, ...plain, ...behind]);
        }
      }
    }
  }

  /** Keeps a list that is simpler, if the same invariant is broken. `behind` decides what is not in the list. */
  async #try(choices: readonly number[], behind?: Chooser): Promise<void> {
    if (this.#spent) return;
    this.#left--;
    const {
      failure,
      choices: made,
      ...found
    } = await attempt({ ...this.#options, ...this.#limit(), choices }, behind);
    this.#choices += made.length;
    if (failure?.invariant !== this.#invariant) return;
    // What was really asked for: a list may be longer than the run.
    const simpler = { ...found, choices: trimmed(made) };
    if (isSimpler(simpler, this.#best, this.#endless)) this.#best = simpler;
  }

  /** A run of far more steps is not simpler: no need to see its end. */
  #limit(): Partial<SimulateOptions> {
    return this.#endless ? {} : { steps: 2 * this.#best.steps };
  }
}

/** Without plain choices at the end, which are understood. */
function trimmed(choices: readonly number[]): readonly number[] {
  return choices.slice(0, choices.findLastIndex((choice) => choice !== 0) + 1);
}

/**
 * Less that was injected first, then less to do, and fewer steps; then fewer choices that are not plain; then a shorter
 * list, and a smaller one. Where it goes on for ever, the number of steps says nothing.
 */
function isSimpler(a: Found, b: Found, endless: boolean): boolean {
  const measures = ({ injected, planned, steps, choices }: Found): number[] => [
    [...injected.values()].reduce((sum, count) => sum + count, 0),
    planned,
    endless ? 0 : steps,
    choices.filter((choice) => choice !== 0).length,
    choices.length,
    choices.reduce((sum, choice) => sum + choice, 0),
  ];
  const [mine, other] = [measures(a), measures(b)];
  const at = mine.findIndex((measure, index) => measure !== other[index]);
  return at >= 0 && (mine[at] as number) < (other[at] as number);
}
