// What a run of the demo has found out: the object that --json prints, and the rows of the table.

import { createHistogram } from 'node:perf_hooks';
import type { Wait } from '../../index.js';
import { byteSize, counted, grouped, printable } from '../text.js';
import type { Touched } from './messages.js';
import type { Recorded } from './recording.js';

export interface DemoOptions {
  file: string;
  /** Threads that touch. */
  threads: number;
  /** Pages filled for a fault. */
  window: number;
  wait: Wait;
  seed: number;
  /** Where to record to. */
  record?: string;
}

/** What --json prints. */
export interface Report extends Omit<DemoOptions, 'record'> {
  /** Where it ran. The times of a simulated kernel are virtual. */
  kernel: 'linux' | 'simulated';
  /** What was recorded, where that was asked for. */
  trace: (Recorded & { file: string }) | null;
  fileBytes: number;
  pageSize: number;
  pages: number;
  /** Faults that the loop was told of. */
  faults: number;
  /** Those that it filled pages for; the others' pages had just come with a neighbour's fill. */
  fills: number;
  /** From the first touch to the last. */
  durationMs: number;
  faultsPerSecond: number;
  /** Of the touches that led to a fill, as the touching threads saw them. */
  latencyP50Us: number;
  latencyP99Us: number;
  via: 'syscall' | 'device';
  userModeOnly: boolean;
  memorySha256: string;
  fileSha256: string;
  equal: boolean;
}

export interface Findings {
  kernel: Report['kernel'];
  recorded: Recorded | undefined;
  fileBytes: number;
  pageSize: number;
  pages: number;
  faults: number;
  fills: number;
  via: 'syscall' | 'device';
  userModeOnly: boolean;
  /** Each thread's; at least one. */
  touched: readonly Touched[];
  memorySha256: string;
  fileSha256: string;
}

export function createReport(options: DemoOptions, findings: Findings): Report {
  const { touched, memorySha256, fileSha256, recorded, ...counts } = findings;
  const { record, ...chosen } = options;
  const latency = createHistogram();
  for (const thread of touched) latency.add(thread.latency);
  const begunMs = Math.min(...touched.map((thread) => thread.begunMs));
  const endedMs = Math.max(...touched.map((thread) => thread.endedMs));
  const durationMs = Math.max(endedMs - begunMs, 0.001);
  return {
    ...chosen,
    ...counts,
    trace: record !== undefined && recorded ? { file: record, ...recorded } : null,
    durationMs: rounded(durationMs),
    faultsPerSecond: Math.round((counts.faults / durationMs) * 1000),
    latencyP50Us: rounded(latency.percentile(50) / 1000),
    latencyP99Us: rounded(latency.percentile(99) / 1000),
    memorySha256,
    fileSha256,
    equal: memorySha256 === fileSha256,
  };
}

/** What a trace says of the run that it is of. */
export function aboutOf({ file, threads, window, wait, seed }: DemoOptions): Record<string, unknown> {
  return { command: 'demo', file, threads, window, wait, seed };
}

/** To three decimals. */
function rounded(value: number): number {
  return Math.round(value * 1000) / 1000;
}

export interface Colors {
  good(text: string): string;
  bad(text: string): string;
}

/** The table's rows. */
export function reportRows(report: Report, colors: Colors): [string, string][] {
  const { faults, fills, latencyP50Us, latencyP99Us, window } = report;
  const verdict = report.equal
    ? colors.good('equal')
    : colors.bad('DIFFERENT: the memory does not hold what the file does');
  return [
    ['file', printable(report.file)],
    [
      'bytes',
      report.fileBytes < 1024
        ? `${report.fileBytes}`
        : `${grouped(report.fileBytes)} (${byteSize(report.fileBytes)})`,
    ],
    ['pages', `${grouped(report.pages)} of ${grouped(report.pageSize)} bytes`],
    ['faults', faults === fills ? grouped(faults) : `${grouped(faults)} (${grouped(fills)} filled pages)`],
    ['duration', `${grouped(report.durationMs)} ms`],
    ['faults/s', grouped(report.faultsPerSecond)],
    ['latency', `p50 ${latencyP50Us.toFixed(1)} µs, p99 ${latencyP99Us.toFixed(1)} µs`],
    ['threads', `${report.threads} touching, 1 serving`],
    ['wait', report.wait],
    ['window', counted(window, 'page')],
    ['seed', `${report.seed}`],
    ['opened', `${report.via}${report.userModeOnly ? ', user mode only' : ''}`],
    ...simulatedRow(report),
    ...traceRow(report, colors),
    ['memory SHA-256', report.memorySha256],
    ['file SHA-256', report.fileSha256],
    ['verdict', verdict],
  ];
}

function simulatedRow({ kernel }: Report): [string, string][] {
  return kernel === 'simulated' ? [['kernel', 'simulated; its times are virtual']] : [];
}

function traceRow({ trace, fills }: Report, colors: Colors): [string, string][] {
  if (!trace) return [];
  const { file, records, bytes, failure } = trace;
  const size = `${counted(records, 'record')}, ${byteSize(bytes)}, ${(bytes / Math.max(fills, 1)).toFixed(1)} bytes a fill`;
  const rows: [string, string][] = [['trace', `${printable(file)}: ${size}`]];
  if (failure !== null) rows.push(['', colors.bad(`NOT WHOLE: ${printable(failure)}`)]);
  return rows;
}
