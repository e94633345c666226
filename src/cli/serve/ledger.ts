// What was served, from the first monitor to the last: for --stats-json and for metrics.

import {
  type Count,
  LATENCY_BOUNDS,
  type Server,
  type Session,
  type SessionEnd,
  type Tally,
} from '../../serve/index.js';
import { percentileUs } from '../latency.js';
import { rounded } from '../text.js';

/** Counts of several sessions, added up. */
export interface Totals {
  readonly counts: Readonly<Record<Count, number>>;
  readonly latencies: { readonly counts: readonly number[]; readonly sum: number };
}

interface SessionStats {
  id: number;
  socket: string;
  memory: string;
  pid: number;
  uid: number;
  gid: number;
  bytes: number;
  regions: number;
  residentBytes: number;
  durationMs: number;
  settledMs: number | null;
  end: SessionEnd['how'];
  error: string | null;
  killed: boolean;
  counts: Record<Count, number>;
  latencyP50Us: number;
  latencyP99Us: number;
}

class Sum implements Totals {
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

export class Ledger {
  /** Guests that could not be served: sessions that failed, and hand-offs of userfaultfds that were refused. */
  failures = 0;
  /** Connections that were turned away, those among them. */
  refused = 0;
  killed = 0;
  readonly #sessions: SessionStats[] = [];
  readonly #killed = new Set<number>();
  readonly #refusals: string[] = [];
  /** Of those that have ended. Added up, so that neither memory nor the time of a look grows with them. */
  readonly #past = new Sum();

  /** `each`: what is known of each session that has ended is kept, for `report`. */
  follow(server: Server, each: boolean): void {
    server.on('refused', (error, _peer, _vm, guest) => {
      this.refused++;
      if (guest) this.failures++;
      if (guest?.killed) this.killed++;
      // The last ones will do: whoever sends nonsense can send much of it.
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

  /** Everything until now: those that have ended, and those that are served. */
  totals(living: Iterable<Session>): Totals {
    const sum = new Sum(this.#past);
    for (const { tally } of living) sum.add(tally);
    return sum;
  }

  /** All of it as JSON, for --stats-json. */
  report(): string {
    const { refused, killed } = this;
    const facts = { sessions: this.#sessions, refused, refusals: this.#refusals, killed };
    return `${JSON.stringify(facts, null, 2)}\n`;
  }
}

const REFUSALS_KEPT = 100;
