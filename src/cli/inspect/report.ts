// A trace's summary as rows of a table.

import type { TraceSummary } from '../../trace/index.js';
import { byteSize, counted, grouped, type OutputStyle, printable } from '../text.js';

/** Most ranges that are listed in a row. */
const RANGES_TOLD = 3;

export function summaryRows(
  file: string,
  summary: TraceSummary,
  { colors }: OutputStyle,
): [string, string][] {
  const { records, bytes, blocks, faults, damage } = summary;
  return [
    [
      'trace',
      `${printable(file)}: ${byteSize(bytes)}, ${counted(records, 'record')} in ${counted(blocks, 'block')}`,
    ],
    ...(damage === undefined ? [] : [['', colors.red(`NOT WHOLE: ${damage}`)] as [string, string]]),
    ...(Object.keys(summary.about).length > 0
      ? [['about', printable(JSON.stringify(summary.about))] as [string, string]]
      : []),
    ['userfaultfd', `by ${summary.how}; ${summary.features.join(', ') || 'no features'}`],
    ...happenedRows(summary),
    ['bytes a fault', faults === 0 ? '-' : (bytes / faults).toFixed(1)],
    [
      'calls',
      Object.entries(summary.calls)
        .map(([name, count]) => `${name} ${grouped(count)}`)
        .join(', '),
    ],
  ];
}

/** What happened in the run. */
export function happenedRows(summary: TraceSummary): [string, string][] {
  const { faults, changes, latencyUs, threads, pageSize } = summary;
  const changed = Object.entries(changes).filter(([, count]) => count > 0);
  const { count, p50, p90, p99, most } = latencyUs;
  const times = [
    `p50 ${grouped(p50)}`,
    `p90 ${grouped(p90)}`,
    `p99 ${grouped(p99)}`,
    `most ${grouped(most)}`,
  ];
  return [
    ['duration', `${summary.durationMs.toFixed(3)} ms`],
    ['faults', faults === 0 ? 'none' : `${grouped(faults)} (${kindsOf(summary)})`],
    ...(threads > 0 ? [['threads', `${grouped(threads)} faulted`] as [string, string]] : []),
    ['pages', `${grouped(summary.pages)} different of ${grouped(pageSize)} bytes`],
    ['ranges', rangesOf(summary)],
    ['changes', changed.map(([name, times]) => `${name} ${grouped(times)}`).join(', ') || 'none'],
    ['latency', count === 0 ? '-' : `${times.join(', ')} µs`],
    ['not let go', grouped(summary.unresolved)],
    ['EAGAINs', grouped(summary.eagains)],
    ['re-offers', grouped(summary.reoffers)],
  ];
}

function kindsOf({ faultsByKind }: TraceSummary): string {
  return Object.entries(faultsByKind)
    .flatMap(([kind, { read, write }]) => [
      [`${kind} read`, read] as const,
      [`${kind} write`, write] as const,
    ])
    .filter(([, count]) => count > 0)
    .map(([name, count]) => `${name} ${grouped(count)}`)
    .join(', ');
}

function rangesOf({ ranges, rangesRegistered }: TraceSummary): string {
  if (rangesRegistered === 0) return 'none registered';
  const told = ranges
    .slice(0, RANGES_TOLD)
    .map(({ start, bytes, modes }) => `${start} ${byteSize(bytes)} ${modes.join(' and ')}`);
  const more = rangesRegistered - told.length;
  return more > 0 ? `${told.join('; ')}; and ${grouped(more)} more` : told.join('; ');
}
