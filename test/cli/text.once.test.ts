// Printed text fits into the given number of columns, and loses nothing.

import { stripVTControlCharacters } from 'node:util';
import * as assert from 'uvu/assert';
import { renderTable } from '../../src/cli/table.js';
import { byteSize, columnsOf, counted, grouped, printable, wrap } from '../../src/cli/text.js';
import { suite } from '../support/harness.js';

const test = suite('cli/text');

const HASH = '0123456789abcdef'.repeat(4);
const ROWS: [string, string][] = [
  ['name', 'a few words that can be wrapped between two of them'],
  ['SHA-256', HASH],
  ['verdict', '\u001b[32mequal\u001b[39m'],
];

test('a table is never wider than its columns, and keeps every character', () => {
  for (let columns = 30; columns <= 140; columns++) {
    const lines = stripVTControlCharacters(renderTable(ROWS, columns)).split('\n');
    for (const line of lines) assert.ok(line.length <= columns, `${columns} columns: ${line}`);
    const values = lines.map((line) => line.split('│')[2]?.trim() ?? '');
    assert.is(
      values.join('').replaceAll(' ', ''),
      ROWS.map(([, value]) => stripVTControlCharacters(value))
        .join('')
        .replaceAll(' ', ''),
    );
  }
});

test('words stay whole where they fit', () => {
  const text = renderTable([['name', 'some words to be wrapped']], 30);
  for (const word of ['some', 'words', 'wrapped']) assert.ok(text.includes(word), text);
});

test('colours are never cut', () => {
  const value = '\u001b[2mnot tried\u001b[22m (4.11): averylongwordthatiscut andmore';
  for (let columns = 30; columns <= 60; columns++) {
    const text = renderTable([['missing-hugetlbfs', value]], columns);
    const shown = stripVTControlCharacters(text);
    assert.not.ok(shown.includes('\u001b') || shown.includes('2m'), text);
  }
});

test('wrapped text fits, goes on with its indentation and its glue, and keeps every word', () => {
  const words = '  remedy: a word and afewwordsmore, and some more of them';
  for (let columns = 20; columns <= 60; columns++) {
    const lines = wrap(words, columns, '    ', ' \\').split('\n');
    for (const [index, line] of lines.entries()) {
      assert.ok(line.length <= columns, line);
      assert.ok(line.startsWith(index === 0 ? '  remedy' : '    '), line);
      assert.is(line.endsWith(' \\'), index < lines.length - 1);
    }
    assert.is(lines.map((line) => line.replace(/ \\$/, '').trim()).join(' '), words.trim());
  }
  assert.is(wrap(words, undefined, '    '), words);
  assert.is(wrap('one averyveryverylongword', 10, '  '), 'one\n  averyveryverylongword');
});

test('without columns, or with too few, it is plain lines', () => {
  const plain = `name     ${ROWS[0]?.[1]}\nSHA-256  ${HASH}\nverdict  ${ROWS[2]?.[1]}`;
  assert.is(renderTable(ROWS), plain);
  for (const columns of [1, 10, 29]) assert.is(renderTable(ROWS, columns), plain);
});

test('columns: the terminal, or COLUMNS where that is less', () => {
  const stream = (columns: number | undefined) => ({ columns }) as NodeJS.WriteStream;
  const cases: [number | undefined, string | undefined, number][] = [
    [120, undefined, 120],
    [120, '40', 40],
    [40, '120', 40],
    [undefined, '40', 40],
    [undefined, undefined, 80],
    [undefined, 'wide', 80],
    [undefined, '-1', 80],
    [0, undefined, 80],
  ];
  for (const [columns, environment, expected] of cases) {
    assert.is(
      columnsOf(stream(columns), environment === undefined ? {} : { COLUMNS: environment }),
      expected,
      `${columns}, ${environment}`,
    );
  }
});

test('numbers as people read them', () => {
  assert.is(grouped(1234567.8), '1,234,568');
  assert.is(counted(1, 'page'), '1 page');
  assert.is(counted(2000, 'page'), '2,000 pages');
  const sizes: [number, string][] = [
    [1, '1 byte'],
    [1023, '1023 bytes'],
    [1024, '1.0 KiB'],
    [1536 * 1024, '1.5 MiB'],
    [2 ** 30, '1.0 GiB'],
    [2 ** 52, '4096.0 TiB'],
  ];
  for (const [bytes, expected] of sizes) assert.is(byteSize(bytes), expected);
});

test('a name cannot command the terminal', () => {
  assert.is(printable('a\u001b[2Jb\nc\u0007'), 'a?[2Jb?c?');
});

test.run();
