// Metrics for Prometheus, liveness and readiness, over HTTP.

import { Counter, Gauge, type MetricObjectWithValues, type MetricValue, Registry } from 'prom-client';
import {
  type Count,
  LATENCY_BOUNDS,
  type Server,
  type SharingCounts,
  type StorageCounts,
} from '../../serve/index.js';
import { printable } from '../text.js';
import { type HttpAnswer, serveHttp } from './http.js';
import type { ServedTotals } from './totals.js';

/** The results of faults, and the counter of each. */
const RESULTS: readonly (readonly [result: string, count: Count])[] = [
  ['answered', 'faults'],
  ['present', 'present'],
  ['deferred', 'deferred'],
];
const CLASSES: readonly Count[] = ['copied', 'hole', 'removed', 'prefetched', 'eager'];

/** Begins to answer. @throws Refusal if the address cannot be used */
export async function serveMetrics(
  address: { host: string; port: number },
  server: Server,
  ledger: ServedTotals,
): Promise<{ close(): void }> {
  const registry = createRegistry(server, ledger);
  return serveHttp(address, {
    '/metrics': async () => ({ status: 200, text: await registry.metrics(), type: registry.contentType }),
    // Reports only that the process answers, because a restart for a problem would hang every healthy guest.
    '/healthz': () => ({ status: 200, text: 'ok\n' }),
    '/readyz': () => readiness(server.problems),
  });
}

/** The answer of /readyz: a line for each problem; 'ok' if there is none. */
function readiness(problems: ReadonlyMap<string, string>): HttpAnswer {
  if (problems.size === 0) return { status: 200, text: 'ok\n' };
  const lines = [...problems].map(([key, reason]) => `${printable(key)}: ${printable(reason)}\n`);
  return { status: 503, text: lines.join('') };
}

function createRegistry(server: Server, ledger: ServedTotals): Registry {
  const registry = new Registry();
  const registers = [registry];
  const totals = () => ledger.totals(server.sessions);
  const gauge = (name: string, help: string, value: () => number) =>
    new Gauge({
      ...{ name, help, registers },
      collect() {
        this.set(value());
      },
    });
  /** A counter, whose label has one of several values. */
  const labelled = (name: string, help: string, label: string, values: () => (readonly [string, number])[]) =>
    new Counter({
      ...{ name, help, registers, labelNames: [label] },
      collect() {
        this.reset();
        for (const [text, value] of values()) this.inc({ [label]: text }, value);
      },
    });
  const counter = (name: string, help: string, value: () => number) =>
    new Counter({
      ...{ name, help, registers },
      collect() {
        this.reset();
        this.inc(value());
      },
    });
  const counted = (name: string, help: string, count: Count) =>
    counter(name, help, () => totals().counts[count] ?? 0);
  gauge('uffd_guests', 'Guests that are served now', () => server.sessions.size);
  gauge('uffd_problems', 'Problems now: /readyz has their reasons; 0: ready', () => server.problems.size);
  counter('uffd_guests_total', 'Guests that were served', () => server.served);
  counter('uffd_refused_total', 'Monitors that were turned away', () => ledger.refused);
  counter('uffd_killed_total', 'Monitors that were killed', () => ledger.killed);
  counter('uffd_failed_total', 'Guests that could not be served', () => ledger.failures);
  counted('uffd_left_out_bytes_total', 'Bytes that could not be installed in the background', 'leftOut');
  counted('uffd_pauses_total', 'Times that installing in the background paused for want of memory', 'paused');
  counted('uffd_taken_bytes_total', 'Bytes that monitors took away', 'taken');
  counted('uffd_retried_reads_total', 'Reads of memory files that failed and were tried again', 'retried');
  labelled('uffd_faults_total', 'Page faults by result', 'result', () => {
    const { counts } = totals();
    return RESULTS.map(([result, count]) => [result, counts[count] ?? 0]);
  });
  labelled('uffd_installed_bytes_total', 'Bytes that were installed, by why', 'class', () => {
    const { counts } = totals();
    return CLASSES.map((count) => [count, counts[count] ?? 0]);
  });
  gauge('uffd_resident_bytes', "Bytes in guests' memory, as far as it is known", () =>
    [...server.sessions].reduce((sum, { resident }) => sum + resident, 0),
  );
  registry.registerMetric(
    new LatencyMetric('uffd_fault_latency_seconds', 'From the news of a fault until it was answered', () => [
      { labels: {}, ...totals().latencies },
    ]) as never,
  );
  // Without shared pages, and if all memory is in local files, these would only be zeros.
  if (server.sharing) addSharing();
  if (server.storage) addStorage();
  return registry;

  function addSharing(): void {
    const sharing = (): SharingCounts => server.sharing as SharingCounts;
    gauge('uffd_sharing_guests', 'Guests that share pages now', () => sharing().guests);
    gauge(
      'uffd_shared_memory_bytes',
      'Memory of the pages that guests share, once for all',
      () => sharing().memoryBytes,
    );
    counted('uffd_shared_bytes_total', 'Bytes that were mapped from the shared memory', 'shared');
    // Zeros, and what guests have without sharing.
    counter('uffd_unshared_bytes_total', "Bytes that were installed as a guest's own", () => {
      const { counts } = totals();
      return CLASSES.reduce((sum, count) => sum + (counts[count] ?? 0), 0) - (counts.shared ?? 0);
    });
  }

  function addStorage(): void {
    const storage = (): StorageCounts => server.storage as StorageCounts;
    const tiers = () => [['cache', storage().cache] as const, ['store', storage().store] as const];
    counted('uffd_chunk_waits_total', 'Faults that waited for a chunk', 'waited');
    labelled('uffd_chunks_total', 'Chunks that came, by where from', 'tier', () =>
      tiers().map(([tier, { chunks }]) => [tier, chunks]),
    );
    labelled('uffd_chunk_bytes_total', 'Bytes of chunks that came, by where from', 'tier', () =>
      tiers().map(([tier, { bytes }]) => [tier, bytes]),
    );
    counter('uffd_chunk_failures_total', 'Tries to load a chunk that failed', () => storage().failed);
    gauge('uffd_chunks_fetching', 'Chunks that are fetched from the store now', () => storage().fetching);
    gauge('uffd_chunks_waiting', 'Chunks that are wanted and not there yet', () => storage().waiting);
    gauge('uffd_cache_bytes', 'Bytes in the cache, by the last look', () => storage().cacheBytes);
    counter(
      'uffd_cache_evicted_total',
      'Chunks removed from the cache to make room',
      () => storage().evicted,
    );
    counter('uffd_cache_damaged_total', 'Damaged chunks removed from the cache', () => storage().damaged);
    counter(
      'uffd_chunk_kept_bytes_total',
      'Bytes kept in memory instead of in the cache',
      () => storage().keptBytes,
    );
    registry.registerMetric(
      new LatencyMetric('uffd_chunk_latency_seconds', 'From the wish for a chunk until it was there', () =>
        tiers().map(([tier, { latencies, seconds }]) => ({
          labels: { tier },
          counts: latencies,
          sum: seconds,
        })),
      ) as never,
    );
  }
}

/** The values of a histogram for some labels: `counts` as in `Totals.latencies`. */
interface Counted {
  readonly labels: Record<string, string>;
  readonly counts: readonly number[];
  readonly sum: number;
}

/** A histogram whose values are counted elsewhere: prom-client's own class needs every single value. */
class LatencyMetric {
  readonly name: string;
  readonly #help: string;
  readonly #counted: () => readonly Counted[];

  constructor(name: string, help: string, counted: () => readonly Counted[]) {
    this.name = name;
    this.#help = help;
    this.#counted = counted;
  }

  async get(): Promise<Omit<MetricObjectWithValues<MetricValue<string>>, 'collect'>> {
    const values = this.#counted().flatMap((counted) => this.#valuesOf(counted));
    return { name: this.name, help: this.#help, type: 'histogram' as never, aggregator: 'sum', values };
  }

  #valuesOf({ labels, counts, sum }: Counted): (MetricValue<string> & { metricName: string })[] {
    let all = 0;
    const values: (MetricValue<string> & { metricName: string })[] = counts.map((count, index) => {
      all += count;
      const le = LATENCY_BOUNDS[index] ?? '+Inf';
      return { metricName: `${this.name}_bucket`, value: all, labels: { ...labels, le } };
    });
    values.push({ metricName: `${this.name}_sum`, value: sum, labels });
    values.push({ metricName: `${this.name}_count`, value: all, labels });
    return values;
  }

  reset(): void {}
}
