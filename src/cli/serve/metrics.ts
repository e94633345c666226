// Metrics for Prometheus, and whether it is well, over HTTP.

import { createServer } from 'node:http';
import { Counter, Gauge, type MetricObjectWithValues, type MetricValue, Registry } from 'prom-client';
import { type Count, LATENCY_BOUNDS, type Server } from '../../serve/index.js';
import { Refusal } from '../exit.js';
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
  { host, port }: { host: string; port: number },
  server: Server,
  ledger: Ledger,
): Promise<{ close(): void }> {
  const registry = createRegistry(server, ledger);
  const http = createServer((request, response) => {
    const path = new URL(request.url ?? '/', 'http://localhost').pathname;
    if (request.method !== 'GET' && request.method !== 'HEAD') {
      response.writeHead(405, { allow: 'GET, HEAD' }).end();
    } else if (path === '/healthz') {
      response.writeHead(200, { 'content-type': 'text/plain' }).end('ok\n');
    } else if (path === '/metrics') {
      registry.metrics().then(
        (text) => response.writeHead(200, { 'content-type': registry.contentType }).end(text),
        (error: Error) => response.writeHead(500).end(`${error.message}\n`),
      );
    } else {
      response.writeHead(404).end('see /metrics and /healthz\n');
    }
  });
  await new Promise<void>((resolve, reject) => {
    http.once('error', (error) => reject(new Refusal(`metrics cannot be served: ${error.message}`)));
    http.listen(port, host, resolve);
  });
  return {
    close() {
      http.close();
      http.closeAllConnections();
    },
  };
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
  counter('uffd_guests_total', 'Guests that were served', registers, () => server.served);
  counter('uffd_refused_total', 'Monitors that were turned away', registers, () => ledger.refused);
  counter('uffd_killed_total', 'Monitors that were killed', registers, () => ledger.killed);
  counter('uffd_failed_total', 'Guests that could not be served', registers, () => ledger.failures);
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
