// Results as tables: for a terminal, or as the Markdown that docs/benchmarks.md holds.

import { type Verdict, verdicts } from './aims.js';
import { whereOf } from './cells.js';
import type { ComparedRow } from './comparison.js';
import type { CoreFigure } from './core.js';
import type { OperatorResults, OperatorRow } from './operator.js';
import type { PagerResults } from './pager.js';
import type { Scaling } from './plots/scaling.js';
import { type PlacementResult, type Results, rowsOf } from './results.js';
import { figure, ratio, type ServeCell, type ServedRound, type ServeResults } from './serve.js';
import type { Spread } from './statistics.js';
import type { StoreResults } from './store.js';
import { type Cells, markdown, terminal, text } from './tables.js';

const PLACEMENT_HEAD = ['handler', 'faults/s', 'p50 µs', 'p99 µs', 'p99.9 µs', 'faults/s ÷ C', 'p99 ÷ C'];

function placementCells(result: PlacementResult): Cells {
  return rowsOf(result).map(({ handler, perSecond, p50Us, p99Us, p999Us, speed, p99 }) => [
    handler,
    text(perSecond, 0),
    text(p50Us, 1),
    text(p99Us, 1),
    text(p999Us, 1),
    speed ? text(speed, 2) : '1',
    p99 ? text(p99, 2) : '1',
  ]);
}

const CORE_HEAD = ['figure', 'median (least–most)', 'what it covers'];

function coreCells(figures: CoreFigure[], width: number): Cells {
  return figures.map(({ name, unit, value, covers }) => [
    name,
    `${text(value, 1)} ${unit}`,
    folded(covers, width),
  ]);
}

function folded(words: string, width: number): string {
  return words.replace(new RegExp(`(.{1,${width}})( |$)`, 'g'), '$1\n').trimEnd();
}

const CELL_HEAD = [
  ...['handler', 'pages/s', 'p50 µs', 'p99 µs', 'p99.9 µs', 'processor µs', 'peak MiB'],
  ...['pages/s ÷ C', 'p99 ÷ C', 'processor ÷ C'],
];

function cellCells(cell: ServeCell): Cells {
  return cell.entrants.map((entrant, index) => {
    const median = (of: keyof ServedRound): string => figure(entrant, of).median.toFixed(1);
    return [
      entrant.name,
      text(figure(entrant, 'perSecond'), 0),
      ...[median('p50Us'), median('p99Us'), median('p999Us'), median('cpuUs')],
      entrant.peakMiB.toFixed(0),
      ...RATIOS.map((of) => (index === 0 ? '1' : text(ratio(cell, entrant, of), 2))),
    ];
  });
}

const RATIOS = ['perSecond', 'p99Us', 'cpuUs'] as const;

/** Medians of the ratios to C in short: pages/s, p99, processor time. */
function ratioCells({ cells }: ServeResults): { head: string[]; rows: Cells } {
  const names = [...new Set(cells.flatMap(({ entrants }) => entrants.slice(1).map(({ name }) => name)))];
  const rows = cells.map((cell) => [
    whereOf(cell),
    ...names.map((name) => {
      const entrant = cell.entrants.find((one) => one.name === name);
      if (!entrant) return '';
      return RATIOS.map((of) => ratio(cell, entrant, of).median.toFixed(2)).join(' · ');
    }),
  ]);
  return { head: ['where', ...names], rows };
}

/** The effect of a recorded working set, in a sentence. */
export function workingSetText({ workingSet, pages }: ServeResults): string {
  if (!workingSet) return '';
  const { without, with: prefetched, ratio } = workingSet;
  const count = workingSet.pages.toLocaleString('en');
  return (
    `Until a guest has touched its working set, ${count} of ${pages.toLocaleString('en')} pages at random: ` +
    `${text(without, 1)} ms without prefetch, ${text(prefetched, 1)} ms with; ratio ${text(ratio, 2)}.`
  );
}

function growthCells({ x, y, lines }: Scaling): { head: string[]; rows: Cells } {
  const counts = [...new Set(lines.flatMap(({ points }) => points.map((point) => point.x)))];
  const rows = counts.map((count) => [
    count.toLocaleString('en'),
    ...lines.map(({ points }) => {
      const value = points.find((point) => point.x === count)?.value;
      return value ? text(value, value.median < 1000 ? 1 : 0) : '';
    }),
  ]);
  return { head: [x, ...lines.map(({ name }) => `${name}, ${y}`)], rows };
}

const AIM_HEAD = ['aim', 'where', 'median (least–most)', ''];

function aimCells(all: Verdict[]): Cells {
  return all.map(({ aim, where, value, met }) => [aim, where, text(value, 2), met ? 'met' : 'missed']);
}

const OPERATOR_HEAD = ['figure', 'ours', 'theirs', 'unit', 'compared with', 'ratio or value', 'aim', ''];

function operatorCells(rows: readonly OperatorRow[]): Cells {
  return rows.map(({ figure, ours, theirs, unit, to, value, aim, atMost }) => [
    figure,
    text(ours, digitsOf(ours)),
    theirs ? text(theirs, digitsOf(theirs)) : '',
    unit,
    to,
    text(value, digitsOf(value)),
    `${atMost ? '≤' : '≥'} ${aim}`,
    metBy(value, aim, atMost),
  ]);
}

function digitsOf({ median }: Spread): number {
  if (median >= 1000) return 0;
  return median >= 20 ? 1 : 2;
}

function operatorNote({ rounds, reversed, transparentHuge }: OperatorResults): string {
  return (
    `${rounds} rounds, ${reversed} of them in reverse order; transparent huge pages, for all alike: ${transparentHuge}. ` +
    'Medians, with the least and the most in brackets; a ratio is ours divided by theirs in the same round.'
  );
}

/** One of the operator's figures as a line, printed as soon as it is measured. */
export function operatorLine({ figure, value, aim, atMost }: OperatorRow): string {
  return `${figure}: ${text(value, digitsOf(value))}, aim ${atMost ? '≤' : '≥'} ${aim}`;
}

/** The operator's figures, for a terminal. */
export function operatorTable(results: OperatorResults): string {
  return `\n${operatorNote(results)}\n${terminal(OPERATOR_HEAD, operatorCells(results.rows))}`;
}

const PAGER_HEAD = [
  ...['figure', 'where', 'pager', 'other', 'unit', 'compared with', 'ratio or value', 'aim', ''],
];
const STORE_HEAD = [
  ...['figure', 'where', 'uffd', 'other', 'unit', 'compared with', 'ratio or value', 'aim', ''],
];

function comparedCells(rows: readonly ComparedRow[]): Cells {
  return rows.map(({ figure, where, ours, theirs, unit, to, value, aim, atMost }) => [
    figure,
    where,
    text(ours, digitsOf(ours)),
    theirs ? text(theirs, digitsOf(theirs)) : '',
    unit,
    to,
    text(value, digitsOf(value)),
    aim === undefined ? '' : `${atMost ? '≤' : '≥'} ${aim}`,
    aim === undefined ? 'reported' : metBy(value, aim, atMost),
  ]);
}

function metBy({ median }: Spread, aim: number, atMost: boolean): string {
  return (atMost ? median <= aim : median >= aim) ? 'met' : 'missed';
}

function pagerNote({ rounds, fileBytes }: PagerResults): string {
  return (
    `${rounds} rounds in alternating order; a file of ${fileBytes / 2 ** 20} MiB. Medians, with the least and the most ` +
    'in brackets; a ratio is the pager divided by the other in the same round.'
  );
}

/** One of the figures as a line, printed as soon as it is measured. */
export function comparedLine({ figure, where, value, aim, atMost }: ComparedRow): string {
  const wanted = aim === undefined ? '' : `, aim ${atMost ? '≤' : '≥'} ${aim}`;
  return `${figure}, ${where}: ${text(value, digitsOf(value))}${wanted}`;
}

function storeNote({ rounds, image, workingSet, compressed, delayMs }: StoreResults): string {
  const mib = (bytes: number): string => `${bytes / 2 ** 20} MiB`;
  return (
    `${rounds} rounds in alternating order; a memory of ${mib(image)}, which zstd compresses to ${(compressed * 100).toFixed(0)} %; a ` +
    `working set of ${mib(workingSet)}; each answer of the store is delayed by ${delayMs} ms. Medians, with the least and the ` +
    'most in brackets; a ratio is ours divided by the other in the same round.'
  );
}

function generationCells({ generations }: StoreResults): { head: string[]; rows: Cells } {
  const sizes = [...new Set(generations.map(({ chunk }) => chunk))];
  const runs = [...new Set(generations.map(({ run }) => run))];
  const kib = (bytes: number): string => (bytes < 2 ** 20 ? `${bytes / 1024} KiB` : `${bytes / 2 ** 20} MiB`);
  const cell = (run: number, chunk: number): string => {
    const one = generations.find((it) => it.run === run && it.chunk === chunk);
    if (!one) return '';
    return `${(one.newBytes / one.changed).toFixed(1)} (${(one.sent / 2 ** 20).toFixed(1)} MiB)`;
  };
  return {
    head: ['where', ...sizes.map((chunk) => `chunks of ${kib(chunk)}`)],
    rows: runs.map((run) => [`runs of ${kib(run)}`, ...sizes.map((chunk) => cell(run, chunk))]),
  };
}

const GENERATIONS =
  'Second generation: new bytes for each changed byte, and in brackets what is sent, compressed; one in a hundred ' +
  'pages of 512 MiB has changed, in runs at random places.';

/** The figures of chunk stores, for a terminal. */
export function storeTable(results: StoreResults): string {
  const { head, rows } = generationCells(results);
  const parts = [storeNote(results), terminal(STORE_HEAD, comparedCells(results.rows))];
  if (rows.length > 0) parts.push(GENERATIONS, terminal(head, rows));
  return `\n${parts.join('\n')}`;
}

function storeMarkdown(results: StoreResults): string[] {
  const { head, rows } = generationCells(results);
  const parts = [storeNote(results), markdown(STORE_HEAD, comparedCells(results.rows))];
  return rows.length > 0 ? [...parts, GENERATIONS, markdown(head, rows)] : parts;
}

/** The figures of pagers, for a terminal. */
export function pagerTable(results: PagerResults): string {
  return `\n${pagerNote(results)}\n${terminal(PAGER_HEAD, comparedCells(results.rows))}`;
}

/** One placement's table, for a terminal. */
export function placementTable(result: PlacementResult): string {
  return `\n${result.title}\n${terminal(PLACEMENT_HEAD, placementCells(result))}`;
}

/** A table of single figures, for a terminal. */
export function figureTable(title: string, figures: CoreFigure[]): string {
  return `\n${title}\n${terminal(CORE_HEAD, coreCells(figures, 60))}`;
}

/** Guests that were served in one cell, for a terminal. */
export function cellTable(cell: ServeCell): string {
  return `\n${whereOf(cell)}\n${terminal(CELL_HEAD, cellCells(cell))}`;
}

/** All cells as ratios to C, for a terminal. */
export function ratioTable(results: ServeResults): string {
  const { head, rows } = ratioCells(results);
  return `\nto C: pages/s · p99 · processor time a page\n${terminal(head, rows)}`;
}

/** How a figure grows, for a terminal. */
export function growthTable(one: Scaling): string {
  const { head, rows } = growthCells(one);
  return `\n${one.title}\n${terminal(head, rows)}`;
}

/** The aims, for a terminal. */
export function aimTable(results: Results): string {
  return `\naims\n${terminal(AIM_HEAD, aimCells(verdicts(results)))}`;
}

/** The whole report, as docs/benchmarks.md contains it. */
export function markdownReport(results: Results): string {
  const { machine, rounds, pages, placements, core, traces, steady, serve, growth, leftOut, warnings } =
    results;
  const { operator } = results;
  const size = `${rounds} rounds of each handler, of ${pages.toLocaleString('en')} pages`;
  const parts = [`${machine}. ${size}; medians, with the least and the most in brackets.`];
  for (const note of [
    ...leftOut.map((what) => `Left out: ${what}.`),
    ...warnings.map((what) => `Note: ${what}.`),
  ]) {
    parts.push(note);
  }
  const { pager, store } = results;
  if (pager) parts.push(pagerNote(pager), markdown(PAGER_HEAD, comparedCells(pager.rows)));
  if (store) parts.push(...storeMarkdown(store));
  if (operator) parts.push(operatorNote(operator), markdown(OPERATOR_HEAD, operatorCells(operator.rows)));
  for (const result of placements) {
    parts.push(`### ${capital(result.title)}`, markdown(PLACEMENT_HEAD, placementCells(result)));
  }
  if (core.length > 0) parts.push('### The core alone', markdown(CORE_HEAD, coreCells(core, 1000)));
  if (traces.length > 0) {
    parts.push('### Traces and the simulated kernel', markdown(CORE_HEAD, coreCells(traces, 1000)));
  }
  if (steady.length > 0) {
    parts.push(
      '### A loop over a million faults, and installing ahead',
      markdown(CORE_HEAD, coreCells(steady, 1000)),
    );
  }
  if (serve) {
    const { head, rows } = ratioCells(serve);
    parts.push(
      '### A guest that is served',
      'Ratios to C: pages/s · p99 · processor time a page; medians.',
      markdown(head, rows),
      ...serve.cells.flatMap((cell) => [
        `#### ${capital(whereOf(cell))}`,
        markdown(CELL_HEAD, cellCells(cell)),
      ]),
      workingSetText(serve),
    );
  }
  for (const one of growth) {
    const { head, rows } = growthCells(one);
    parts.push(`### ${one.title}`, markdown(head, rows));
  }
  if (verdicts(results).length > 0) parts.push('### Aims', markdown(AIM_HEAD, aimCells(verdicts(results))));
  return parts.join('\n\n');
}

function capital(words: string): string {
  return words.charAt(0).toUpperCase() + words.slice(1);
}
