// Totals of all sessions, for --stats-json and for metrics.

import {
  type Count,
  LATENCY_BOUNDS,
  type Server,
  type Session,
  type StorageCounts,
  type Tally,
} from '../../serve/index.js';
import { percentileUs } from '../latency.js';
import { rounded } from '../text.js';

/** The sum of several sessions' counters. */
export class Totals {
  readonly counts: Record<Count, number>;
  readonly latencies: { counts: number[]; sum: number };

  constructor(from?: Totals) {
    this.counts = { ...from?.counts } as Record<Count, number>;
    const counts = from?.latencies.counts ?? new Array<number>(LATENCY_BOUNDS.length + 1).fill(0);
    this.latencies = { counts: [...counts], sum: from?.latencies.sum ?? 0 };
  }

  add(tally: Tally): void {
    for (const [name, much] of Object.entries(tally.toJSON()) as [Count, number][]) {
      this.counts[name] = (this.counts[name] ?? 0) + much;
    }
    for (const [index, much] of tally.latencies.counts.entries()) {
      this.latencies.counts[index] = (this.latencies.counts[index] as number) + much;
    }
    this.latencies.sum += tally.latencies.sum;
  }
}

export class ServedTotals {
  /** Guests that could not be served: failed sessions, and refused hand-offs of userfaultfds. */
  failures = 0;
  /** Connections that were turned away, refused hand-offs included. */
  refused = 0;
  killed = 0;
  readonly #sessions: object[] = [];
  readonly #killed = new Set<number>();
  readonly #refusals: string[] = [];
  /**
   * The sum of the sessions that have ended, so that neither memory nor the time of a query grows with their number.
   */
  readonly #past = new Totals();

  /** `each`: keep the report of each session that has ended, for `report`. */
  follow(server: Server, each: boolean): void {
    server.on('refused', (error, _peer, _vm, guest) => {
      this.refused++;
      if (guest) this.failures++;
      if (guest?.killed) this.killed++;
      // Keep only the last reasons: a client can send any number of invalid hand-offs.
      this.#refusals.push(error.message);
      if (this.#refusals.length > REFUSALS_KEPT) this.#refusals.shift();
    });
    server.on('killed', ({ id }) => {
      this.killed++;
      if (each) this.#killed.add(id);
    });
    server.on('ended', (session, end, { socket, memory }) => {
      if (end.how === 'failed') this.failures++;
      this.#past.add(session.tally);
      if (!each) return;
      this.#sessions.push({
        ...{ id: session.id, socket, memory, ...session.peer, bytes: session.bytes },
        regions: session.regions.length,
        residentBytes: session.resident,
        durationMs: rounded((session.endedMs ?? session.begunMs) - session.begunMs),
        settledMs: session.settledMs === undefined ? null : rounded(session.settledMs - session.begunMs),
        end: end.how,
        error: end.how === 'failed' ? end.error.message : null,
        killed: this.#killed.has(session.id),
        counts: session.tally.toJSON(),
        latencyP50Us: rounded(percentileUs(session.latency, 50)),
        latencyP99Us: rounded(percentileUs(session.latency, 99)),
      });
    });
  }

  /** The totals so far: of sessions that have ended, and of current ones. */
  totals(living: Iterable<Session>): Totals {
    const sum = new Totals(this.#past);
    for (const { tally } of living) sum.add(tally);
    return sum;
  }

  /**
   * The totals, and the kept reports, as JSON for --stats-json.
   *
   * @param storage what was loaded from the cache and the store
   */
  report(storage: StorageCounts | undefined): string {
    const { refused, killed } = this;
    const facts = {
      ...{ sessions: this.#sessions, refused, refusals: this.#refusals, killed },
      ...(storage && { storage }),
    };
    return `${JSON.stringify(facts, null, 2)}\n`;
  }
}

const REFUSALS_KEPT = 100;
