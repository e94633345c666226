// What came of a replay: the object that --json prints, and its text.

import { inspect } from 'node:util';
import type { ReplayResult } from '../../trace/index.js';
import { counted, grouped, type Look, printable, rounded } from '../text.js';

/** What --json prints. */
export interface ReplayReport {
  file: string;
  identical: boolean;
  records: number;
  faults: number;
  performed: number;
  recordedMs: number;
  durationMs: number;
  difference: {
    index: number;
    expected: string;
    came: string;
    before: readonly string[];
    error: string | null;
    fault: { page: string; address: string; access: string; kind: string; tid: number } | null;
  } | null;
  damage: string | null;
}

export function createReport(
  file: string,
  { identical, records, faults, performed, difference, damage }: ReplayResult,
  recordedMs: number,
  durationMs: number,
): ReplayReport {
  return {
    file,
    identical,
    records,
    faults,
    performed,
    recordedMs: rounded(recordedMs),
    durationMs: rounded(durationMs),
    difference: difference ? toldDifference(difference) : null,
    damage: damage ?? null,
  };
}

function toldDifference(difference: NonNullable<ReplayResult['difference']>): ReplayReport['difference'] {
  const { index, expected, came, before, fault, error } = difference;
  return {
    index,
    expected,
    came,
    before,
    error: error === undefined ? null : inspect(error),
    fault: fault
      ? {
          page: `0x${fault.page.toString(16)}`,
          address: `0x${fault.address.toString(16)}`,
          access: fault.access,
          kind: fault.kind,
          tid: fault.tid,
        }
      : null,
  };
}

export function render(report: ReplayReport, { colors }: Look): string {
  const { records, faults, performed, recordedMs, durationMs, difference, damage } = report;
  const size = `${counted(records, 'record')}, ${counted(faults, 'fault')}`;
  const times = `in ${grouped(durationMs)} ms; recorded in ${grouped(recordedMs)} ms`;
  const lines: string[] = [];
  if (difference)
    lines.push(`${colors.red('DIFFERENT')} at record ${grouped(difference.index)}`, ...told(difference));
  else if (damage === null) lines.push(`${colors.green('identical')}: ${size}, ${times}`);
  else lines.push(`identical as far as it can be read: ${size}, ${times}`);
  if (performed > 0)
    lines.push(
      `${counted(performed, 'call')} outside of the handler, made as the trace has ${performed === 1 ? 'it' : 'them'}`,
    );
  if (damage !== null) lines.push(`${colors.red('NOT WHOLE')}: ${printable(damage)}`);
  return lines.join('\n');
}

function told({
  index,
  expected,
  came,
  before,
  fault,
  error,
}: NonNullable<ReplayReport['difference']>): string[] {
  const width = grouped(index).length;
  const thread = fault && fault.tid !== 0 ? `, thread ${fault.tid}` : '';
  return [
    `expected  ${expected}`,
    `came      ${came}`,
    ...(fault ? [`fault     ${fault.access} of ${fault.address} (${fault.kind}${thread})`] : []),
    ...(error === null
      ? []
      : [
          `threw     ${error
            .split('\n')
            .map(printable)
            .join(`\n${' '.repeat(10)}`)}`,
        ]),
    ...(before.length > 0 ? ['before it'] : []),
    ...before.map((call, i) => `  ${grouped(index - before.length + i).padStart(width)}  ${call}`),
  ];
}
