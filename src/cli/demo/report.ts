// What the demo has found out: the object that --json prints, and the rows of the table.

import type { Placement, Wait, Window } from '../../index.js';
import type { Recorded } from '../../serve/index.js';
import { byteSize, counted, grouped, printable, rounded } from '../text.js';

export interface DemoOptions {
  /** The guest's memory. */
  file: string;
  /** Threads of the guest that touch pages. */
  threads: number;
  /** Pages installed for a fault. */
  window: Window;
  wait: Wait;
  placement: Placement;
  seed: number;
  /** Where to record to. */
  record?: string;
}

/** What threads of a guest have found, together. */
export interface Found {
  /** Faults that the serving thread has answered. */
  faults: number;
  /** Pages that were touched, and those of them that did not hold what the file has. */
  touches: number;
  wrongCount: number;
  /** The first few of those. */
  wrong: readonly string[];
  /** Milliseconds from the hand-over until the first touch, and until all of them, were over. */
  firstMs: number;
  ms: number;
  /** Microseconds of a touch. */
  p50Us: number;
  p99Us: number;
}

/** One guest that was served. */
export interface Run {
  faults: number;
  /** Pages that hold what the file has. */
  verified: number;
  firstTouchMs: number;
  durationMs: number;
  faultsPerSecond: number;
  latencyP50Us: number;
  latencyP99Us: number;
}

/** What --json prints. What stands at the top of a run is of the first one. */
export interface Report extends Omit<DemoOptions, 'record'>, Run {
  /** Where it ran. The times of a simulated kernel are virtual. */
  kernel: 'linux' | 'simulated';
  /** What was recorded, where that was asked for. */
  trace: (Recorded & { file: string }) | null;
  fileBytes: number;
  pageSize: number;
  pages: number;
  /** The same guest again, with what the first one touched installed ahead; null: there was no second one. */
  prefetched: Run | null;
  /** Whether every page of every guest was right. */
  equal: boolean;
  /** The first few that were not. */
  wrong: readonly string[];
}

export interface Findings {
  kernel: Report['kernel'];
  recorded: Recorded | undefined;
  fileBytes: number;
  pageSize: number;
  pages: number;
  first: Found;
  again: Found | undefined;
}

/** Wrong pages that are told. */
const WRONG_TOLD = 5;

export function createReport(options: DemoOptions, findings: Findings): Report {
  const { first, again, recorded, ...facts } = findings;
  const { record, ...chosen } = options;
  const all = again ? [first, again] : [first];
  return {
    ...chosen,
    ...facts,
    trace: record !== undefined && recorded ? { file: record, ...recorded } : null,
    ...runOf(first),
    prefetched: again ? runOf(again) : null,
    equal: all.every(({ touches, wrongCount }) => touches === facts.pages && wrongCount === 0),
    wrong: all.flatMap(({ wrong }) => wrong).slice(0, WRONG_TOLD),
  };
}

function runOf({ faults, touches, wrongCount, firstMs, ms, p50Us, p99Us }: Found): Run {
  const durationMs = Math.max(ms, 0.001);
  return {
    faults,
    verified: touches - wrongCount,
    firstTouchMs: rounded(firstMs),
    durationMs: rounded(durationMs),
    faultsPerSecond: Math.round((faults / durationMs) * 1000),
    latencyP50Us: rounded(p50Us),
    latencyP99Us: rounded(p99Us),
  };
}

/** What a trace says of the run that it is of. */
export function aboutOf(options: DemoOptions): Record<string, unknown> {
  const { file, threads, window, wait, placement, seed } = options;
  return { command: 'demo', file, threads, window, wait, placement, seed };
}

export interface Colors {
  good(text: string): string;
  bad(text: string): string;
}

/** The table's rows. */
export function reportRows(report: Report, colors: Colors): [string, string][] {
  const { fileBytes, pages, pageSize } = report;
  return [
    ['file', printable(report.file)],
    ['bytes', fileBytes < 1024 ? `${fileBytes}` : `${grouped(fileBytes)} (${byteSize(fileBytes)})`],
    ['pages', `${grouped(pages)} of ${grouped(pageSize)} bytes`],
    ['threads', `${report.threads} touching, 1 serving`],
    ['wait', report.wait],
    ['placement', String(report.placement)],
    ['window', report.window === 'adaptive' ? 'adaptive' : counted(report.window, 'page')],
    ['seed', `${report.seed}`],
    ...simulatedRow(report),
    ...runRows(report),
    ...traceRow(report, colors),
    ...verdictRows(report, colors),
  ];
}

/** What is told of each run: a column for each. */
const ASPECTS: [string, (run: Run) => string][] = [
  ['faults', ({ faults }) => grouped(faults)],
  ['pages verified', ({ verified }) => grouped(verified)],
  ['first touch', ({ firstTouchMs }) => `${firstTouchMs.toFixed(1)} ms`],
  ['all touched', ({ durationMs }) => `${grouped(durationMs)} ms`],
  ['faults/s', ({ faultsPerSecond }) => grouped(faultsPerSecond)],
  ['latency p50', ({ latencyP50Us }) => `${latencyP50Us.toFixed(1)} µs`],
  ['latency p99', ({ latencyP99Us }) => `${latencyP99Us.toFixed(1)} µs`],
];

function runRows(report: Report): [string, string][] {
  const { prefetched } = report;
  if (!prefetched) return ASPECTS.map(([name, tell]) => [name, tell(report)]);
  const left = 'no prefetch';
  const rows = ASPECTS.map(([name, tell]) => [name, tell(report), tell(prefetched)] as const);
  const width = Math.max(left.length, ...rows.map(([, first]) => first.length));
  const both = (first: string, again: string): string => `${first.padStart(width)}  ${again.padStart(width)}`;
  return [
    ['', both(left, 'prefetch')],
    ...rows.map(([name, first, again]): [string, string] => [name, both(first, again)]),
  ];
}

function simulatedRow({ kernel }: Report): [string, string][] {
  return kernel === 'simulated' ? [['kernel', 'simulated; its times are virtual']] : [];
}

function traceRow({ trace, faults }: Report, colors: Colors): [string, string][] {
  if (!trace) return [];
  const { file, records, bytes, failure } = trace;
  const size = `${counted(records, 'record')}, ${byteSize(bytes)}, ${(bytes / Math.max(faults, 1)).toFixed(1)} bytes a fault`;
  const rows: [string, string][] = [['trace', `${printable(file)}: ${size}`]];
  if (failure !== null) rows.push(['', colors.bad(`NOT WHOLE: ${printable(failure)}`)]);
  return rows;
}

function verdictRows({ equal, wrong }: Report, colors: Colors): [string, string][] {
  if (equal) return [['verdict', colors.good('every page is right')]];
  return [
    ['verdict', colors.bad('WRONG: the memory does not hold what the file does')],
    ...wrong.map((page): [string, string] => ['', page]),
  ];
}
