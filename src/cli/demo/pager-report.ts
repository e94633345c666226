// The results of the pager's demo: the object that --json prints, and the rows of the table.

import type { PagerStats } from '../../pager/index.js';
import { byteSize, counted, grouped, type OutputStyle, printable, rounded } from '../text.js';
import { percentage, throughput } from './pager-progress.js';

export interface PagerDemoOptions {
  /** The URL or the file. */
  source: string;
  /** Bytes that may be in memory. */
  resident: number;
  /** Threads that read. */
  threads: number;
  seed: number;
}

/** One phase: what the threads have read, and what the pager did for it. */
export interface Phase {
  readonly readBytes: number;
  readonly durationMs: number;
  readonly faults: number;
  readonly hits: number;
  readonly fetchedBytes: number;
  readonly aheadBytes: number;
  readonly aheadUsedBytes: number;
  readonly evictedBytes: number;
}

/** What --json prints. */
export interface PagerReport extends PagerDemoOptions {
  readonly bytes: number;
  readonly blockSize: number;
  readonly userModeOnly: boolean;
  readonly random: Phase;
  readonly inOrder: Phase;
  /** The most bytes in memory that were seen. */
  readonly residentMostBytes: number;
  /** Reads of the source that failed, and were made again. */
  readonly failures: number;
  /** What the bytes were compared with. */
  readonly comparedWith: 'read(2)' | 'a second download';
  /** Whether every byte that was read was right. */
  readonly equal: boolean;
  /** Where the first few pieces begin that were wrong. */
  readonly wrong: readonly number[];
  readonly wrongCount: number;
  readonly pieceBytes: number;
}

/** Most wrong pieces that are listed. */
export const WRONG_LISTED = 5;

export function phaseOf(readBytes: number, ms: number, before: PagerStats, after: PagerStats): Phase {
  const more = (name: Exclude<keyof PagerStats, 'userModeOnly' | 'compression'>): number =>
    after[name] - before[name];
  return {
    readBytes,
    durationMs: rounded(Math.max(ms, 0.001)),
    faults: more('faults'),
    hits: more('hits'),
    fetchedBytes: more('fetchedBytes'),
    aheadBytes: more('aheadBytes'),
    aheadUsedBytes: more('aheadUsedBytes'),
    evictedBytes: more('evictedBytes'),
  };
}

/** The rows that describe a phase; each phase has a column. */
const ASPECTS: [string, (phase: Phase) => string][] = [
  ['bytes read', ({ readBytes }) => byteSize(readBytes)],
  ['time', ({ durationMs }) => `${grouped(durationMs)} ms`],
  ['throughput', ({ readBytes, durationMs }) => throughput(readBytes, durationMs)],
  ['faults', ({ faults }) => grouped(faults)],
  ['hits', ({ hits, faults }) => percentage(hits, faults)],
  ['fetched', ({ fetchedBytes }) => byteSize(fetchedBytes)],
  ['read ahead', ({ aheadBytes }) => byteSize(aheadBytes)],
  ['of it used', ({ aheadUsedBytes, aheadBytes }) => percentage(aheadUsedBytes, aheadBytes)],
  ['evicted', ({ evictedBytes }) => byteSize(evictedBytes)],
];

/** The table's rows. */
export function pagerRows(report: PagerReport, look: Pick<OutputStyle, 'colors'>): [string, string][] {
  const { bytes, random, inOrder, resident, residentMostBytes } = report;
  const rows = ASPECTS.map(([name, tell]) => [name, tell(random), tell(inOrder)] as const);
  const width = Math.max('random'.length, ...rows.map(([, first]) => first.length));
  const last = Math.max('in order'.length, ...rows.map(([, , second]) => second.length));
  const both = (first: string, second: string): string =>
    `${first.padStart(width)}  ${second.padStart(last)}`;
  return [
    ['source', printable(report.source)],
    ['bytes', bytes < 1024 ? `${bytes}` : `${grouped(bytes)} (${byteSize(bytes)})`],
    ['resident', `${byteSize(residentMostBytes)} at most, of ${byteSize(resident)} allowed`],
    ['blocks', `of ${byteSize(report.blockSize)}`],
    ['threads', `${report.threads} reading, 1 serving`],
    ['seed', `${report.seed}`],
    ['', both('random', 'in order')],
    ...rows.map(([name, first, second]): [string, string] => [name, both(first, second)]),
    ...failureRow(report),
    ...verdictRows(report, look),
  ];
}

function failureRow({ failures }: PagerReport): [string, string][] {
  return failures === 0 ? [] : [['failures', `${counted(failures, 'read')} failed, and were made again`]];
}

function verdictRows(report: PagerReport, { colors }: Pick<OutputStyle, 'colors'>): [string, string][] {
  const { equal, wrong, wrongCount, comparedWith, pieceBytes } = report;
  if (equal) return [['verdict', `${colors.green('every byte is right')} (compared with ${comparedWith})`]];
  const places = wrong.map((offset) => `byte ${grouped(offset)}`).join(', ');
  return [
    [
      'verdict',
      colors.red(
        `NOT RIGHT: ${counted(wrongCount, 'piece')} of ${byteSize(pieceBytes)} differ, the first at ${places}`,
      ),
    ],
  ];
}
