// The findings and the verdict as text: the verdict and what to do first, then everything that was found. On
// a terminal it fits the columns, and commands are cut so that a shell takes them as they are; in a log
// every sentence is a line. Colours only repeat what a word says.

import { byteSize, grouped, type Look, renderTable, wrap } from '../text.js';
import { type Ability, answerAt, type Door, type Findings, type Trial } from './findings.js';
import type { Judgement, Problem } from './verdict.js';

/** What an outcome is called. */
const WORDS: Record<Trial['outcome'], string> = {
  ok: 'ok',
  failed: 'FAILED',
  refused: 'refused',
  absent: 'no',
  'not tried': 'not tried',
};

type Row = [name: string, value: string];

export function renderReport(findings: Findings, judgement: Judgement, look: Look): string {
  const sections: [string, Row[]][] = [
    ['System', systemRows(findings)],
    ['Access', accessRows(findings, look)],
    ['Features, and the Linux that brings them', findings.features.map((one) => abilityRow(one, look))],
    ['Operations, and the Linux that brings them', findings.operations.map((one) => abilityRow(one, look))],
  ];
  return [
    renderVerdict(findings, judgement, look),
    ...judgement.problems.map((problem) => renderProblem(problem, judgement, look)),
    ...sections.map(
      ([title, rows]) =>
        `${look.colors.bold(wrap(title, look.columns, ''))}\n${renderTable(rows, look.columns)}`,
    ),
  ].join('\n\n');
}

function renderVerdict(findings: Findings, { verdict }: Judgement, { columns, colors }: Look): string {
  const color = { usable: colors.green, 'usable with limits': colors.yellow, 'not usable': colors.red }[
    verdict
  ];
  const title = `userfaultfd: ${color(verdict)}`;
  const all = [...findings.features, ...findings.operations];
  const good = all.filter(({ outcome }) => outcome === 'ok').length;
  if (good === 0) return title;
  const counts = `${good} of ${all.length} features and operations were tried and work; all are listed below.`;
  return `${title}\n${wrap(counts, columns, '')}`;
}

function renderProblem(problem: Problem, { verdict }: Judgement, { columns, colors }: Look): string {
  const { what, why, remedies } = problem;
  const lines = [
    colors.bold(wrap(`${verdict === 'not usable' ? 'problem' : 'limit'}: ${what}`, columns, '  ')),
    wrap(`  reason: ${why}`, columns, '    '),
  ];
  for (const [index, remedy] of remedies.entries()) {
    lines.push(wrap(`  ${index === 0 ? 'remedy' : 'or'}: ${remedy.what}`, columns, '    '));
    for (const command of remedy.commands) {
      lines.push(wrap(`      ${command}`, columns, '        ', ' \\'));
    }
  }
  return lines.join('\n');
}

function systemRows({ system }: Findings): Row[] {
  const { hugePages, pageSize } = system;
  const pool =
    hugePages &&
    `${byteSize(hugePages.bytes)}: ${grouped(hugePages.free)} of ${grouped(hugePages.total)} free (vm.nr_hugepages)`;
  return [
    ['kernel', `${system.platform} ${system.kernel}, ${system.arch}`],
    ['page size', pageSize === null ? 'not known' : byteSize(pageSize)],
    ['huge pages', pool ?? 'none'],
    ['transparent', system.transparentHugePages ?? 'none'],
    ['container', system.container ?? 'none'],
    ['Node', system.nodeSupported ? system.node : `${system.node}, too old`],
    ['koffi', system.koffi ?? 'not installed'],
  ];
}

function accessRows({ access }: Findings, look: Look): Row[] {
  const { user, device, doors, way, systemCalls } = access;
  const door = (via: Door['via'], userOnly?: boolean): string =>
    answerAt(doors, via, userOnly) ?? 'not tried';
  const opened = device?.open === 'ok' ? '' : `, open: ${device?.open}`;
  return [
    ['by system call', door('syscall')],
    ['user mode only', door('syscall', true)],
    ['by device', door('device')],
    ['tried with', way ? `${way.via}${way.userModeOnly ? ', user mode only' : ''}` : 'nothing'],
    ['kernel-mode faults', outcomeText(systemCalls, look)],
    ['user', `uid ${user.uid}, group ${user.group}${user.userNamespace ? ', in a user namespace' : ''}`],
    ['CAP_SYS_PTRACE', user.sysPtrace ? 'yes' : 'no'],
    ['unprivileged', `${user.unprivileged ?? 'none'} (vm.unprivileged_userfaultfd)`],
    ['/dev node', device ? `${device.owner}:${device.group} ${device.mode}${opened}` : 'none'],
    ['seccomp', user.seccomp === 2 ? 'a filter' : user.seccomp === null ? 'not known' : 'none'],
  ];
}

function abilityRow(ability: Ability, look: Look): Row {
  return [ability.name, outcomeText(ability, look, ability.since)];
}

/** ok (5.7); not tried (4.11): no huge pages are free. */
function outcomeText({ outcome, detail }: Trial, { colors }: Look, since: string | null = null): string {
  const color = {
    ok: colors.green,
    failed: colors.red,
    refused: colors.yellow,
    absent: colors.yellow,
    'not tried': colors.dim,
  }[outcome];
  return `${color(WORDS[outcome])}${since === null ? '' : ` (${since})`}${detail === undefined ? '' : `: ${detail}`}`;
}
