// The findings and the verdict as text: first the verdict and what to do, then all findings. On a terminal it fits the
// columns, and commands are cut so that a shell accepts them; in a log each sentence is a line. Colours carry no
// information of their own: a word says the same.

import { renderTable } from '../table.js';
import { byteSize, grouped, type OutputStyle, wrap } from '../text.js';
import { type Findings, type OpenResult, openResult, type Trial } from './findings.js';
import type { SimulatedDiagnosis } from './simulated.js';
import type { Diagnosis, Problem } from './verdict.js';

type Color = 'green' | 'red' | 'yellow' | 'dim';

/** The word for an outcome, and its colour. */
const OUTCOMES: Record<Trial['outcome'], [word: string, color: Color]> = {
  ok: ['ok', 'green'],
  failed: ['FAILED', 'red'],
  refused: ['refused', 'yellow'],
  absent: ['no', 'yellow'],
  'not tried': ['not tried', 'dim'],
};
const SIMULATED = {
  works: 'green',
  'works with limits': 'yellow',
  'does not work': 'red',
  'not tried': 'dim',
} as const;
const VERDICTS = { usable: 'green', 'usable with limits': 'yellow', 'not usable': 'red' } as const;

export function renderReport(
  findings: Findings,
  judgement: Diagnosis,
  simulation: SimulatedDiagnosis,
  look: OutputStyle,
): string {
  const { columns, colors } = look;
  const rows = (abilities: Findings['features']): [string, string][] =>
    abilities.map((ability) => [ability.name, outcomeText(ability, look, ability.since)]);
  const sections: [string, [string, string][]][] = [
    ['System', systemRows(findings)],
    ['Access', accessRows(findings, look)],
    ['Features, and the Linux that brings them', rows(findings.features)],
    ['Operations, and the Linux that brings them', rows(findings.operations)],
    ['uffd check-handler --simulated', simulatedRows(findings, simulation, look)],
  ];
  const all = [...findings.features, ...findings.operations];
  const good = all.filter(({ outcome }) => outcome === 'ok').length;
  const counts = `${good} of ${all.length} features and operations were tried and work; all are listed below.`;
  const title = `userfaultfd: ${colors[VERDICTS[judgement.verdict]](judgement.verdict)}`;
  return [
    good === 0 ? title : `${title}\n${wrap(counts, columns, '')}`,
    ...judgement.problems.map((problem) => renderProblem(problem, judgement.verdict === 'not usable', look)),
    ...simulation.problems.map((problem) =>
      renderProblem(
        { ...problem, what: `uffd check-handler --simulated: ${problem.what}` },
        simulation.verdict === 'does not work',
        look,
      ),
    ),
    ...sections.map(
      ([title, rows]) => `${colors.bold(wrap(title, columns, ''))}\n${renderTable(rows, columns)}`,
    ),
  ].join('\n\n');
}

function renderProblem(problem: Problem, fatal: boolean, { columns, colors }: OutputStyle): string {
  const { what, why, remedies } = problem;
  const kind = fatal ? 'problem' : 'limit';
  return [
    colors.bold(wrap(`${kind}: ${what}`, columns, '  ')),
    wrap(`  reason: ${why}`, columns, '    '),
    ...remedies.flatMap(({ what, commands }, index) => [
      wrap(`  ${index === 0 ? 'remedy' : 'or'}: ${what}`, columns, '    '),
      ...commands.map((command) => wrap(`      ${command}`, columns, '        ', ' \\')),
    ]),
  ].join('\n');
}
function systemRows({ system }: Findings): [string, string][] {
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

function accessRows({ access }: Findings, look: OutputStyle): [string, string][] {
  const { user, device, doors, way, systemCalls } = access;
  const door = (via: OpenResult['via'], userOnly?: boolean): string =>
    openResult(doors, via, userOnly) ?? 'not tried';
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

function simulatedRows(
  { simulated }: Findings,
  { verdict }: SimulatedDiagnosis,
  { colors }: OutputStyle,
): [string, string][] {
  const { calls, memory, ptraceScope, killable, syncWakeUp, fixedAddresses } = simulated;
  const answer = (ability: boolean | null): string =>
    ability === null ? 'not tried' : ability ? 'yes' : 'no';
  return [
    ['here', colors[SIMULATED[verdict]](verdict)],
    ['calls are trapped', calls],
    ["handler's memory", `${memory} (kernel.yama.ptrace_scope: ${ptraceScope ?? 'none'})`],
    ['safe from signals', `${answer(killable)} (5.19)`],
    ['fast answers', `${answer(syncWakeUp)} (6.6)`],
    ['fixed addresses', `${answer(fixedAddresses)} (personality)`],
  ];
}

/** ok (5.7); not tried (4.11): no huge pages are free. */
function outcomeText(
  { outcome, detail }: Trial,
  { colors }: OutputStyle,
  since: string | null = null,
): string {
  const [word, color] = OUTCOMES[outcome];
  return `${colors[color](word)}${since === null ? '' : ` (${since})`}${detail === undefined ? '' : `: ${detail}`}`;
}
