// Text for terminals and pipes: wrapped lines, formatted numbers.

import picocolors from 'picocolors';

/** The default width of a terminal, in columns. */
const DEFAULT_COLUMNS = 80;

/** The width of the output: that of the terminal, or COLUMNS if that is less. */
export function columnsOf(stream: NodeJS.WriteStream, environment = process.env): number {
  const requested = Number(environment.COLUMNS);
  const fallback = Number.isInteger(requested) && requested > 0 ? requested : DEFAULT_COLUMNS;
  const real = stream.columns > 0 ? stream.columns : undefined;
  if (real === undefined) return fallback;
  return environment.COLUMNS === undefined ? real : Math.min(real, fallback);
}

/** How the output is styled. */
export interface OutputStyle {
  /** Columns to fit into; undefined in a pipe or a file, where lines may have any length. */
  columns: number | undefined;
  /** The functions of picocolors; they do nothing if there are no colours. */
  colors: ReturnType<typeof picocolors.createColors>;
}

export function outputStyleOf(stream: NodeJS.WriteStream): OutputStyle {
  // With CI set, picocolors would colour a dumb terminal, too.
  const plain = !stream.isTTY || process.env.TERM === 'dumb';
  return {
    columns: stream.isTTY ? columnsOf(stream) : undefined,
    colors: picocolors.createColors(!plain && picocolors.isColorSupported),
  };
}

/**
 * Wraps text to lines of at most `columns` between words; lines after the first begin with `indent`. A word that is
 * too long stays whole. `glue` ends every line that continues.
 */
export function wrap(text: string, columns: number | undefined, indent: string, glue = ''): string {
  if (columns === undefined) return text;
  const lines: string[] = [];
  let line = '';
  // Keep what precedes the first word attached to it.
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

/** A name from outside, without characters that control a terminal. */
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
