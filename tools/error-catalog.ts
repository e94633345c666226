// Writes the error catalog, from which every UffdError takes its text. The catalog is the tables of docs/errors.md as
// TypeScript, so no text is written twice.

import { readFileSync, writeFileSync } from 'node:fs';

const PAGE = 'docs/errors.md';
/** The heads of a table's columns. The second may be left out. */
const HEADS = ['code', 'if', 'cause', 'what to do'];

interface Row {
  readonly code: string;
  /** The reason as TypeScript text. */
  readonly reason: string;
  readonly condition: string;
  readonly facts: readonly string[];
}

/** @throws Error if a table of the page is broken */
export function writeErrorCatalog(target: string): void {
  const sections = readFileSync(PAGE, 'utf8').split(/^## /m).slice(1);
  const calls = sections.map((section) => ({
    call: section.slice(0, section.indexOf('\n')),
    rows: rowsOf(section),
  }));
  const rows = calls.flatMap((one) => one.rows);
  // Several calls have the same row.
  const reasons = [...new Set(rows.map(({ reason }) => reason))];
  const text = [
    `// Made by tools/error-catalog.ts from ${PAGE}. Do not edit.\n`,
    '/** What must be known of a failure for a row to apply. */',
    `export type Condition = ${union(rows.map(({ condition }) => condition))};`,
    '/** A fact that a text has a place for. */',
    `export type Fact = ${union(rows.flatMap(({ facts }) => facts))};`,
    '/** Why a call fails, and what to do. Without `when` it always applies. */',
    'export interface Reason { readonly when?: Condition; readonly cause: string; readonly remedy: string }\n',
    ...reasons.map((reason, index) => `const r${index}: Reason = ${reason};`),
    '\n/** By call and errno. */',
    'export const REASONS: Readonly<Record<string, Readonly<Record<string, readonly Reason[]>>>> = {',
    ...calls.map((one) => `  ${JSON.stringify(one.call)}: { ${codesText(one.rows, reasons)} },`),
    '};\n',
  ].join('\n');
  writeFileSync(target, text);
}

function rowsOf(section: string): Row[] {
  const lines = section.split('\n').filter((line) => line.startsWith('|'));
  const [heads = [], , ...rows] = lines.map((line) =>
    line
      .slice(1, -1)
      .split('|')
      .map((cell) => cell.trim()),
  );
  if (heads.some((head) => !HEADS.includes(head))) throw new Error(`${PAGE}: no head of a column: ${heads}`);
  return rows.map((cells) => {
    if (cells.length !== heads.length)
      throw new Error(`${PAGE}: not one cell a column: ${cells.join(' | ')}`);
    const [code = '', condition = '', cause = '', remedy = ''] = HEADS.map(
      (head) => cells[heads.indexOf(head)],
    );
    const when = condition === '' ? undefined : condition;
    const facts = [...`${cause} ${remedy}`.matchAll(/\{(\w+)\}/g)].map(([, fact = '']) => fact);
    return { code, condition, facts, reason: JSON.stringify({ when, cause, remedy }) };
  });
}

/** The rows of one call, by errno. */
function codesText(rows: readonly Row[], reasons: readonly string[]): string {
  const codes = [...new Set(rows.map(({ code }) => code))];
  const named = (wanted: string): string[] =>
    rows.filter(({ code }) => code === wanted).map(({ reason }) => `r${reasons.indexOf(reason)}`);
  return codes.map((code) => `${code}: [${named(code).join(', ')}]`).join(', ');
}

/** The type of one of these texts. */
function union(texts: readonly string[]): string {
  return [...new Set(texts)]
    .filter((text) => text !== '')
    .map((text) => JSON.stringify(text))
    .join(' | ');
}
