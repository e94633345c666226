// Figures of ours beside those of others, as rows of a table.
//
// Rules:
//  - Two entrants alternate, and every other round has the reverse order. A ratio compares the two of one round. One
//    round of each does not count.

import { type Spread, spread } from './statistics.js';

/** One row of the table. */
export interface ComparedRow {
  readonly figure: string;
  readonly where: string;
  readonly unit: string;
  readonly ours: Spread;
  readonly theirs: Spread | undefined;
  /** What it is compared with. */
  readonly to: string;
  /** Ours divided by theirs, or ours alone. */
  readonly value: Spread;
  /** Undefined: the figure is only reported. */
  readonly aim: number | undefined;
  readonly atMost: boolean;
}

export interface About {
  readonly figure: string;
  readonly where: string;
  readonly unit: string;
  readonly to: string;
  readonly aim?: number;
  readonly atMost?: true;
}

/** Returns one round's figure. */
export type Round = () => Promise<number>;

export class Comparison {
  readonly rows: ComparedRow[] = [];
  readonly rounds: number;

  constructor(rounds: number) {
    this.rounds = rounds;
  }

  async compare(about: About, ours: Round, theirs: Round): Promise<void> {
    const our: number[] = [];
    const their: number[] = [];
    for (let round = -1; round < this.rounds; round++) {
      const turns = [async () => our.push(await ours()), async () => their.push(await theirs())];
      if (round % 2 === 0) turns.reverse();
      for (const turn of turns) await turn();
    }
    this.add(about, our.slice(1), their.slice(1));
  }

  add({ aim, atMost, ...about }: About, ours: number[], theirs?: number[]): void {
    const value = theirs ? ours.map((one, i) => one / (theirs[i] ?? Number.NaN)) : ours;
    this.rows.push({
      ...about,
      ...{
        aim,
        atMost: atMost === true,
        ours: spread(ours),
        theirs: theirs && spread(theirs),
        value: spread(value),
      },
    });
  }
}
