// The results of the demo: the object that --json prints, and the rows of the table.

import type { Placement, Wait, Window } from '../../index.js';
import type { Recorded } from '../../serve/index.js';
import type { TouchResults } from '../guest/protocol.js';
import { byteSize, counted, grouped, type OutputStyle, printable, rounded } from '../text.js';

export interface DemoOptions {
  /** The file that is the guest's memory. */
  file: string;
  /** Threads of the guest that touch pages. */
  threads: number;
  /** Pages installed for a fault. */
  window: Window;
  wait: Wait;
  placement: Placement;
  seed: number;
  /** The path to record to. */
  record?: string;
}

/** The results of a guest's threads together. */
export interface GuestResults extends TouchResults {
  /** Faults that the serving thread has answered. */
  readonly faults: number;
}

/** One guest that was served. */
export type GuestRun = ReturnType<typeof runOf>;

/** What --json prints. The fields at its top are those of the first run. */
export interface Report
  extends Omit<DemoOptions, 'record'>,
    Omit<Findings, 'recorded' | 'first' | 'again'>,
    GuestRun {
  /** The recording, if one was requested. */
  trace: (Recorded & { file: string }) | null;
  /** The second run: the same guest, with the pages of the first run installed ahead; null if there was none. */
  prefetched: GuestRun | null;
  /** Whether every page of every guest was right. */
  equal: boolean;
  /** The first few pages that were wrong. */
  wrong: readonly string[];
}

export interface Findings {
  /** The kernel of the run. Times of the simulated kernel are virtual. */
  kernel: 'linux' | 'simulated';
  recorded: Recorded | undefined;
  fileBytes: number;
  pageSize: number;
  pages: number;
  first: GuestResults;
  again: GuestResults | undefined;
}

/** Most wrong pages that are listed. */
const WRONG_LISTED = 5;

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
    wrong: all.flatMap(({ wrong }) => wrong).slice(0, WRONG_LISTED),
  };
}

function runOf({ faults, touches, wrongCount, firstMs, ms, p50Us, p99Us }: GuestResults) {
  const durationMs = Math.max(ms, 0.001);
  return {
    faults,
    /** Pages that match the file. */
    verified: touches - wrongCount,
    firstTouchMs: rounded(firstMs),
    durationMs: rounded(durationMs),
    faultsPerSecond: Math.round((faults / durationMs) * 1000),
    latencyP50Us: rounded(p50Us),
    latencyP99Us: rounded(p99Us),
  };
}

/** The notes about a run in its trace. */
export function aboutOf(options: DemoOptions): Record<string, unknown> {
  const { file, threads, window, wait, placement, seed } = options;
  return { command: 'demo', file, threads, window, wait, placement, seed };
}

/** The table's rows. */
export function reportRows(report: Report, look: Pick<OutputStyle, 'colors'>): [string, string][] {
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
    ...traceRow(report, look),
    ...verdictRows(report, look),
  ];
}

/** The rows that describe a run; each run has a column. */
const ASPECTS: [string, (run: GuestRun) => string][] = [
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

function traceRow({ trace, faults }: Report, { colors }: Pick<OutputStyle, 'colors'>): [string, string][] {
  if (!trace) return [];
  const { file, records, bytes, failure } = trace;
  const size = `${counted(records, 'record')}, ${byteSize(bytes)}, ${(bytes / Math.max(faults, 1)).toFixed(1)} bytes a fault`;
  const rows: [string, string][] = [['trace', `${printable(file)}: ${size}`]];
  if (failure !== null) rows.push(['', colors.red(`NOT WHOLE: ${printable(failure)}`)]);
  return rows;
}

function verdictRows({ equal, wrong }: Report, { colors }: Pick<OutputStyle, 'colors'>): [string, string][] {
  if (equal) return [['verdict', colors.green('every page is right')]];
  return [
    ['verdict', colors.red('WRONG: the memory does not hold what the file does')],
    ...wrong.map((page): [string, string] => ['', page]),
  ];
}
