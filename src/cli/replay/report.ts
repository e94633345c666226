// The result of a replay: the object that --json prints, and its text.

import { inspect } from 'node:util';
import type { Pagefault } from '../../index.js';
import { type GuestReplay, INVARIANTS } from '../../testing/index.js';
import type { ReplayResult } from '../../trace/index.js';
import { counted, grouped, type OutputStyle, printable, rounded } from '../text.js';

/** What --json prints. */
export type ReplayReport = ReturnType<typeof createReport>;

export function createReport(
  file: string,
  {
    identical,
    records,
    faults,
    performed,
    difference,
    damage,
    failure,
  }: ReplayResult & Pick<GuestReplay, 'failure'>,
  recordedMs: number,
  durationMs: number,
) {
  return {
    ...{ file, identical, records, faults, performed },
    recordedMs: rounded(recordedMs),
    durationMs: rounded(durationMs),
    difference: difference ? differenceOf(difference) : null,
    damage: damage ?? null,
    broken: failure ? `${INVARIANTS[failure.invariant]}: ${failure.detail}` : null,
  };
}

function differenceOf({ error, fault, ...where }: NonNullable<ReplayResult['difference']>) {
  const hex = (address: bigint): string => `0x${address.toString(16)}`;
  const faultOf = ({ page, address, access, kind, tid }: Pagefault) => ({
    page: hex(page),
    address: hex(address),
    ...{ access, kind, tid },
  });
  return {
    ...where,
    error: error === undefined ? null : inspect(error),
    fault: fault ? faultOf(fault) : null,
  };
}

export function render(report: ReplayReport, { colors }: OutputStyle): string {
  const { records, faults, performed, recordedMs, durationMs, difference, damage, broken } = report;
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
  if (broken !== null) lines.push(`broken: ${broken}`);
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
