// A table that fits the width of a terminal, or plain lines.

import { stripVTControlCharacters } from 'node:util';
import Table from 'cli-table3';

/** Below this width a frame leaves no room for text. */
const LEAST_COLUMNS = 30;

/**
 * Rows of a name and a value. With `columns`, they are a framed table that fits this width and wraps inside. Without
 * `columns`, or if a frame has no room, each row is one line.
 */
export function renderTable(rows: readonly (readonly [string, string])[], columns?: number): string {
  const names = Math.max(...rows.map(([name]) => name.length));
  if (columns === undefined || columns < LEAST_COLUMNS) {
    return rows.map(([name, value]) => `${name.padEnd(names)}  ${value}`).join('\n');
  }
  // Three frame lines, and a blank on both sides of both cells.
  const room = columns - 3 - 2 - names;
  const values = Math.max(...rows.map(([, value]) => stripVTControlCharacters(value).length)) + 2;
  const table = new Table({
    colWidths: [names + 2, Math.min(values, room)],
    wordWrap: true,
    style: { head: [], border: [], compact: true },
  });
  // Wrapped between words here, because the table would cut a long word anywhere, even inside of a colour code.
  for (const [name, content] of rows) {
    const words = content.split(' ').map((word) => pieces(word, room - 2));
    table.push([name, { content: words.join(' '), wrapOnWordBoundary: true }]);
  }
  return table.toString();
}

/** Cuts a word into pieces of `most` characters, separated by blanks; a coloured word stays whole. */
function pieces(word: string, most: number): string {
  if (word.length <= most || word !== stripVTControlCharacters(word)) return word;
  return (word.match(new RegExp(`.{1,${most}}`, 'gsu')) ?? []).join(' ');
}
