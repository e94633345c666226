// Text for terminals and pipes: numbers as people read them, and a table that fits where it is shown.

import { stripVTControlCharacters } from 'node:util';
import Table from 'cli-table3';
import picocolors from 'picocolors';

/** Columns that a terminal is taken to have when nobody says. */
const DEFAULT_COLUMNS = 80;
/** Below this a frame leaves no room for the text in it. */
const LEAST_COLUMNS = 30;

/** How wide the output may be: the terminal's width, or COLUMNS where that is less. */
export function columnsOf(stream: NodeJS.WriteStream, environment = process.env): number {
  const told = Number(environment.COLUMNS);
  const wished = Number.isInteger(told) && told > 0 ? told : DEFAULT_COLUMNS;
  const real = stream.columns > 0 ? stream.columns : undefined;
  if (real === undefined) return wished;
  return environment.COLUMNS === undefined ? real : Math.min(real, wished);
}

/** How output looks where it goes. */
export interface Look {
  /** Columns to fit into; undefined in a pipe or a file, where lines are as long as they are. */
  columns: number | undefined;
  /** Those of picocolors; they do nothing where there are no colours. */
  colors: ReturnType<typeof picocolors.createColors>;
}

export function lookOf(stream: NodeJS.WriteStream): Look {
  // CI makes picocolors colour a dumb terminal too.
  const plain = !stream.isTTY || process.env.TERM === 'dumb';
  return {
    columns: stream.isTTY ? columnsOf(stream) : undefined,
    colors: picocolors.createColors(!plain && picocolors.isColorSupported),
  };
}

/**
 * Text in lines of at most `columns`, wrapped between words; lines after the first begin with `indent`. Words that
 * are too long stay whole. `glue` ends every line that goes on.
 */
export function wrap(text: string, columns: number | undefined, indent: string, glue = ''): string {
  if (columns === undefined) return text;
  const lines: string[] = [];
  let line = '';
  // What stands in front of the first word belongs to it.
  for (const word of text.match(/^\s*\S+|\S+/g) ?? []) {
    if (line !== '' && line.length + 1 + word.length + glue.length > columns) {
      lines.push(line + glue);
      line = indent + word;
    } else {
      line = line === '' ? word : `${line} ${word}`;
    }
  }
  return [...lines, line].join('\n');
}

/**
 * Rows of a name and a value. On a terminal of `columns` a framed table that wraps inside; without `columns`,
 * or where a frame has no room, a line each.
 */
export function renderTable(rows: readonly (readonly [string, string])[], columns?: number): string {
  const names = Math.max(...rows.map(([name]) => name.length));
  if (columns === undefined || columns < LEAST_COLUMNS) {
    return rows.map(([name, value]) => `${name.padEnd(names)}  ${value}`).join('\n');
  }
  // Three lines of frame, and a blank on both sides of both cells.
  const room = columns - 3 - 2 - names;
  const values = Math.max(...rows.map(([, value]) => stripVTControlCharacters(value).length)) + 2;
  const table = new Table({
    colWidths: [names + 2, Math.min(values, room)],
    wordWrap: true,
    style: { head: [], border: [], compact: true },
  });
  // Wrapped between words. The table would cut a word that is too long anywhere, colours included.
  for (const [name, content] of rows) {
    const words = content.split(' ').map((word) => pieces(word, room - 2));
    table.push([name, { content: words.join(' '), wrapOnWordBoundary: true }]);
  }
  return table.toString();
}

/** A word in pieces of `most` characters, with blanks between; one with colours stays whole. */
function pieces(word: string, most: number): string {
  if (word.length <= most || word !== stripVTControlCharacters(word)) return word;
  return (word.match(new RegExp(`.{1,${most}}`, 'gsu')) ?? []).join(' ');
}

/** A name from outside, with nothing in it that a terminal would obey. */
export function printable(text: string): string {
  return text.replaceAll(/\p{Cc}/gu, '?');
}

/** To three decimals. */
export function rounded(value: number): number {
  return Math.round(value * 1000) / 1000;
}

/** 24,017 */
export function grouped(value: number): string {
  return Math.round(value).toLocaleString('en-US');
}

/** 4.0 KiB, 1.5 GiB; bytes as they are. */
export function byteSize(bytes: number): string {
  const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return unit === 0 ? `${bytes} ${bytes === 1 ? 'byte' : 'bytes'}` : `${value.toFixed(1)} ${units[unit]}`;
}

/** 3 pages, 1 page. */
export function counted(count: number, noun: string): string {
  return `${grouped(count)} ${noun}${count === 1 ? '' : 's'}`;
}
