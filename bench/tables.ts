// Tables: for a terminal, or as the Markdown that docs/benchmarks.md holds.

import Table from 'cli-table3';
import type { Spread } from './statistics.js';

export type Cells = string[][];

/** Makes a table's text from its head and its rows. */
export type Writer = (head: string[], rows: Cells) => string;

export const terminal: Writer = (head, rows) => {
  const table = new Table({ head, style: { head: [], border: [], compact: true }, colAligns: aligned(head) });
  table.push(...rows);
  return table.toString();
};

export const markdown: Writer = (head, rows) => {
  const rule = aligned(head).map((align) => (align === 'right' ? '---:' : '---'));
  return [head, rule, ...rows].map((cells) => `| ${cells.join(' | ')} |`).join('\n');
};

/** Words to the left, figures to the right. */
function aligned(head: string[]): ('left' | 'right')[] {
  const words = ['handler', 'aim', 'where', 'figure', 'what it covers', ''];
  return head.map((title) => (words.includes(title) ? 'left' : 'right'));
}

/** Median, and in brackets the smallest and the largest. */
export function text({ median, min, max }: Spread, digits: number): string {
  const one = (value: number): string =>
    value.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return `${one(median)} (${one(min)}–${one(max)})`;
}
