// The formats of a check's report: a table, JSON, JUnit XML, TAP. It uses nothing of Node.

import { type CheckReport, countOf, type ScenarioResult, type Verdict } from './result.js';

/** The formats that `formatReport` knows. */
export const REPORT_FORMATS = ['table', 'json', 'junit', 'tap'] as const;
export type ReportFormat = (typeof REPORT_FORMATS)[number];

const WORDS: Readonly<Record<Verdict, string>> = { pass: 'pass', fail: 'FAIL', 'not applicable': 'n/a' };

/** Writes a report. The text ends with a line break. */
export function formatReport(report: CheckReport, format: ReportFormat = 'table'): string {
  switch (format) {
    case 'table':
      return asTable(report);
    case 'json':
      return `${JSON.stringify(report, withHexadecimal)}\n`;
    case 'junit':
      return asJunit(report);
    case 'tap':
      return asTap(report);
  }
}

function withHexadecimal(_: string, value: unknown): unknown {
  return typeof value === 'bigint' ? `0x${value.toString(16)}` : value;
}

/** What there is to say of a result, a line each. */
export function linesOf(result: ScenarioResult): string[] {
  const { verdict, why, reason, page, details = [], seed, evidence, trace } = result;
  const asked = verdict === 'fail' ? [`why it matters: ${why}`] : [];
  return [
    ...(reason === undefined ? [] : [reason]),
    ...asked,
    ...(page === undefined
      ? []
      : [
          `page at ${withHexadecimal('', page.address)}, offset ${page.offset} of the memory file`,
          `expected: ${page.expected}`,
          `actual: ${page.actual}`,
        ]),
    ...repeatsOf(result),
    ...(seed === undefined ? [] : [`seed: ${seed}`]),
    ...details,
    ...(evidence === undefined ? [] : [`evidence: ${evidence}`]),
    ...(trace === undefined ? [] : [`trace: ${trace}`]),
  ];
}

function repeatsOf({ repeats, seed }: ScenarioResult): string[] {
  if (!repeats || repeats.failed === 0) return [];
  const { failed, of } = repeats;
  if (seed !== undefined && failed === of) return ['repeats'];
  return [`failed in ${failed} of ${of} runs`];
}

/** One result, as lines of a table. `width`: of the longest name. */
export function formatResult(result: ScenarioResult, width: number): string {
  const { scenario, verdict, milliseconds } = result;
  const [first = '', ...rest] = linesOf(result);
  const head = `${WORDS[verdict].padEnd(4)}  ${scenario.padEnd(width)}  ${`${milliseconds} ms`.padStart(8)}`;
  return [`${head}  ${first}`.trimEnd(), ...rest.map((line) => `        ${line}`)].join('\n');
}

/** How many results have each verdict, in a line. */
export function summaryOf(report: CheckReport): string {
  const parts = (['pass', 'fail', 'not applicable'] as const).map(
    (verdict) =>
      `${countOf(report, verdict)} ${{ pass: 'passed', fail: 'failed' }[verdict as 'pass'] ?? verdict}`,
  );
  return parts.join(', ');
}

function asTable(report: CheckReport): string {
  const width = Math.max(0, ...report.results.map(({ scenario }) => scenario.length));
  const lines = report.results.map((result) => formatResult(result, width));
  return `${[...lines, summaryOf(report)].join('\n')}\n`;
}

// ---- for other programs ------------------------------------------------------------------------------------

/** Text of XML, without the characters that XML cannot have. */
function xml(text: string): string {
  const entities: Readonly<Record<string, string>> = {
    '&': '&amp;',
    '<': '&lt;',
    '>': '&gt;',
    '"': '&quot;',
  };
  return text
    .replaceAll(/[^\t\n\r\u{20}-\u{D7FF}\u{E000}-\u{FFFD}\u{10000}-\u{10FFFF}]/gu, '?')
    .replaceAll(/[&<>"]/g, (character) => entities[character] as string);
}

function asJunit(report: CheckReport): string {
  const { command, results } = report;
  const seconds = (milliseconds: number): string => (milliseconds / 1000).toFixed(3);
  const total = results.reduce((sum, { milliseconds }) => sum + milliseconds, 0);
  const cases = results.map((result) => {
    const head = `    <testcase classname="check-handler" name="${xml(result.scenario)}" time="${seconds(result.milliseconds)}"`;
    const text = xml(linesOf(result).join('\n'));
    const reason = xml(result.reason ?? '');
    if (result.verdict === 'fail')
      return `${head}>\n      <failure message="${reason}">${text}</failure>\n    </testcase>`;
    if (result.verdict === 'pass') return `${head}/>`;
    return `${head}>\n      <skipped message="${reason}"/>\n    </testcase>`;
  });
  const counts = `tests="${results.length}" failures="${countOf(report, 'fail')}" skipped="${countOf(report, 'not applicable')}"`;
  const name = xml(command.join(' '));
  return [
    '<?xml version="1.0" encoding="UTF-8"?>',
    `<testsuites ${counts} time="${seconds(total)}">`,
    `  <testsuite name="${name}" ${counts} time="${seconds(total)}">`,
    ...cases,
    '  </testsuite>',
    '</testsuites>\n',
  ].join('\n');
}

function asTap({ results }: CheckReport): string {
  const lines = results.flatMap((result, index) => {
    const skipped = result.verdict === 'not applicable' ? ` # SKIP ${result.reason}` : '';
    const head = `${result.verdict === 'fail' ? 'not ok' : 'ok'} ${index + 1} - ${result.scenario}${skipped}`;
    const said =
      result.verdict === 'fail' ? linesOf(result).map((line) => `# ${line.replaceAll('\n', ' ')}`) : [];
    return [head, ...said];
  });
  return `${['TAP version 13', `1..${results.length}`, ...lines].join('\n')}\n`;
}
