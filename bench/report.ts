// Results as tables: for a terminal, or as the Markdown that docs/benchmarks.md holds.

import type { CoreFigure } from './core.js';
import { type PlacementResult, type Results, rowsOf, type Verdict, verdicts, whereOf } from './results.js';
import type { ServeResults } from './serve.js';
import { type Cells, markdown, terminal, text } from './tables.js';

const PLACEMENT_HEAD = ['handler', 'faults/s', 'p50 µs', 'p99 µs', 'faults/s ÷ C', 'p99 ÷ C'];

function placementCells(result: PlacementResult): Cells {
  return rowsOf(result).map(({ handler, perSecond, p50Us, p99Us, speed, p99 }) => [
    handler,
    text(perSecond, 0),
    text(p50Us, 1),
    text(p99Us, 1),
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

const SERVE_HEAD = [
  'where',
  'pages/s',
  'p50 µs',
  'p99 µs',
  'C: pages/s',
  'p50 µs',
  'p99 µs',
  'pages/s ÷ C',
  'p99 ÷ C',
];

function serveCells({ cells }: ServeResults): Cells {
  return cells.map((cell) => [
    whereOf(cell),
    ...[cell.ours, cell.c].flatMap(({ perSecond, p50Us, p99Us }) => [
      text(perSecond, 0),
      p50Us.median.toFixed(1),
      p99Us.median.toFixed(1),
    ]),
    text(cell.speed, 2),
    text(cell.p99, 2),
  ]);
}

/** What a recorded working set is worth, in a sentence. */
function workingSetText({ workingSet, pages }: ServeResults): string {
  const { without, with: prefetched, ratio } = workingSet;
  const count = workingSet.pages.toLocaleString('en');
  return (
    `Until a guest has touched its working set, ${count} of ${pages.toLocaleString('en')} pages at random: ` +
    `${text(without, 1)} ms without prefetch, ${text(prefetched, 1)} ms with; ratio ${text(ratio, 2)}.`
  );
}

const AIM_HEAD = ['aim', 'where', 'median (least–most)', ''];

function aimCells(all: Verdict[]): Cells {
  return all.map(({ aim, where, value, met }) => [aim, where, text(value, 2), met ? 'met' : 'missed']);
}

/** One placement's table, for a terminal. */
export function placementTable(result: PlacementResult): string {
  return `\n${result.title}\n${terminal(PLACEMENT_HEAD, placementCells(result))}`;
}

/** A table of single figures, for a terminal. */
export function figureTable(title: string, figures: CoreFigure[]): string {
  return `\n${title}\n${terminal(CORE_HEAD, coreCells(figures, 60))}`;
}

/** Guests that were served, for a terminal. */
export function serveTable(results: ServeResults): string {
  return `\na guest that is served\n${terminal(SERVE_HEAD, serveCells(results))}\n${workingSetText(results)}`;
}

/** The aims, for a terminal. */
export function aimTable(results: Results): string {
  return `\naims\n${terminal(AIM_HEAD, aimCells(verdicts(results)))}`;
}

/** All of it as docs/benchmarks.md holds it. */
export function markdownReport(results: Results): string {
  const { machine, rounds, pages, placements, core, traces, serve, leftOut, warnings } = results;
  const size = `${rounds} pairs of rounds of ${pages.toLocaleString('en')} faults`;
  const parts = [`${machine}. ${size}; medians, with the least and the most in brackets.`];
  for (const note of [
    ...leftOut.map((what) => `Left out: ${what}.`),
    ...warnings.map((what) => `Note: ${what}.`),
  ]) {
    parts.push(note);
  }
  for (const result of placements) {
    parts.push(`### ${capital(result.title)}`, markdown(PLACEMENT_HEAD, placementCells(result)));
  }
  if (core.length > 0) parts.push('### The core alone', markdown(CORE_HEAD, coreCells(core, 1000)));
  if (traces.length > 0) {
    parts.push('### Traces and the simulated kernel', markdown(CORE_HEAD, coreCells(traces, 1000)));
  }
  if (serve) {
    parts.push('### A guest that is served', markdown(SERVE_HEAD, serveCells(serve)), workingSetText(serve));
  }
  parts.push('### Aims', markdown(AIM_HEAD, aimCells(verdicts(results))));
  return parts.join('\n\n');
}

function capital(words: string): string {
  return words.charAt(0).toUpperCase() + words.slice(1);
}
