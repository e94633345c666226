// Metrics for Prometheus, liveness and readiness, over HTTP.

import { Counter, Gauge, type MetricObjectWithValues, type MetricValue, Registry } from 'prom-client';
import { type Count, LATENCY_BOUNDS, type Server } from '../../serve/index.js';
import { printable } from '../text.js';
import { type Answer, serveHttp } from './http.js';
import type { Ledger, Totals } from './ledger.js';

/** Ways in which a fault was answered, by what is counted. */
const RESULTS: readonly (readonly [result: string, count: Count])[] = [
  ['answered', 'faults'],
  ['present', 'present'],
  ['deferred', 'deferred'],
];
const CLASSES: readonly Count[] = ['copied', 'hole', 'removed', 'prefetched', 'eager'];

/** Begins to answer. @throws Refusal where the address cannot be had */
export async function serveMetrics(
  address: { host: string; port: number },
  server: Server,
  ledger: Ledger,
): Promise<{ close(): void }> {
  const registry = createRegistry(server, ledger);
  return serveHttp(address, {
    '/metrics': async () => ({ status: 200, text: await registry.metrics(), type: registry.contentType }),
    // Only whether the process answers: to end it because something is wrong would hang every guest that is well.
    '/healthz': () => ({ status: 200, text: 'ok\n' }),
    '/readyz': () => readiness(server.problems),
  });
}

/** Problems, a line each; none: it is ready. */
function readiness(problems: ReadonlyMap<string, string>): Answer {
  if (problems.size === 0) return { status: 200, text: 'ok\n' };
  const lines = [...problems].map(([key, reason]) => `${printable(key)}: ${printable(reason)}\n`);
  return { status: 503, text: lines.join('') };
}

function createRegistry(server: Server, ledger: Ledger): Registry {
  const registry = new Registry();
  const registers = [registry];
  const totals = () => ledger.totals(server.sessions);
  new Gauge({
    ...{ name: 'uffd_guests', help: 'Guests that are served now', registers },
    collect() {
      this.set(server.sessions.size);
    },
  });
  new Gauge({
    ...{ name: 'uffd_problems', help: 'Problems now: /readyz has their reasons; 0: ready', registers },
    collect() {
      this.set(server.problems.size);
    },
  });
  counter('uffd_guests_total', 'Guests that were served', registers, () => server.served);
  counter('uffd_refused_total', 'Monitors that were turned away', registers, () => ledger.refused);
  counter('uffd_killed_total', 'Monitors that were killed', registers, () => ledger.killed);
  counter('uffd_failed_total', 'Guests that could not be served', registers, () => ledger.failures);
  counter(
    'uffd_left_out_bytes_total',
    'Bytes that could not be installed in the background',
    registers,
    () => totals().counts.leftOut,
  );
  counter(
    'uffd_pauses_total',
    'Times that installing in the background paused for want of memory',
    registers,
    () => totals().counts.paused,
  );
  counter(
    'uffd_taken_bytes_total',
    'Bytes that monitors took away',
    registers,
    () => totals().counts.taken ?? 0,
  );
  counter(
    'uffd_retried_reads_total',
    'Reads of memory files that failed and were tried again',
    registers,
    () => {
      return totals().counts.retried ?? 0;
    },
  );
  labelled('uffd_faults_total', 'Page faults by result', 'result', registers, () => {
    const { counts } = totals();
    return RESULTS.map(([result, count]) => [result, counts[count] ?? 0]);
  });
  labelled('uffd_installed_bytes_total', 'Bytes that were installed, by why', 'class', registers, () => {
    const { counts } = totals();
    return CLASSES.map((count) => [count, counts[count] ?? 0]);
  });
  new Gauge({
    ...{ name: 'uffd_resident_bytes', help: "Bytes in guests' memory, as far as it is known", registers },
    collect() {
      this.set([...server.sessions].reduce((sum, { resident }) => sum + resident, 0));
    },
  });
  registry.registerMetric(new LatencyMetric(() => totals().latencies) as never);
  return registry;
}

function counter(name: string, help: string, registers: Registry[], value: () => number): void {
  new Counter({
    ...{ name, help, registers },
    collect() {
      this.reset();
      this.inc(value());
    },
  });
}

function labelled(
  name: string,
  help: string,
  label: string,
  registers: Registry[],
  values: () => (readonly [string, number])[],
): void {
  new Counter({
    ...{ name, help, registers, labelNames: [label] },
    collect() {
      this.reset();
      for (const [text, value] of values()) this.inc({ [label]: text }, value);
    },
  });
}

/** A histogram that others count: prom-client's own wants to be told of every single value. */
class LatencyMetric {
  readonly name = 'uffd_fault_latency_seconds';
  readonly #latencies: () => Totals['latencies'];

  constructor(latencies: () => Totals['latencies']) {
    this.#latencies = latencies;
  }

  async get(): Promise<Omit<MetricObjectWithValues<MetricValue<string>>, 'collect'>> {
    const { counts, sum } = this.#latencies();
    let all = 0;
    const values: (MetricValue<string> & { metricName: string })[] = counts.map((count, index) => {
      all += count;
      const le = LATENCY_BOUNDS[index] ?? '+Inf';
      return { metricName: `${this.name}_bucket`, value: all, labels: { le } };
    });
    values.push({ metricName: `${this.name}_sum`, value: sum, labels: {} });
    values.push({ metricName: `${this.name}_count`, value: all, labels: {} });
    const help = 'From the news of a fault until it was answered';
    return { name: this.name, help, type: 'histogram' as never, aggregator: 'sum', values };
  }

  reset(): void {}
}
