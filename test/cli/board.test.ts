// What the demo's threads share stays consistent: every view of it sees the same, marks touch one page only.

import { createHistogram } from 'node:perf_hooks';
import { stripVTControlCharacters } from 'node:util';
import * as assert from 'uvu/assert';
import { Board } from '../../src/cli/demo/board.js';
import type { Touched } from '../../src/cli/demo/messages.js';
import { createReport, type DemoOptions, type Findings, reportRows } from '../../src/cli/demo/report.js';
import { suite } from '../harness.js';

const test = suite('cli/board and report');

test('a mark is on its page alone, and seen through every view', () => {
  const pages = 100;
  const board = Board.forPages(pages);
  const other = new Board(board.shared);
  for (const page of [0, 31, 32, 99]) {
    other.mark(page);
    assert.ok(board.marked(page));
  }
  const marked = Array.from({ length: pages }, (_, page) => page).filter((page) => board.marked(page));
  assert.equal(marked, [0, 31, 32, 99]);
  assert.is(board.faults + board.fills + board.resident, 0);
});

test('a fault without a fill counts as a fault only', () => {
  const board = Board.forPages(1);
  board.countFault(16);
  board.countFault(0);
  board.countFault(3);
  assert.equal([board.faults, board.fills, board.resident], [3, 2, 19]);
});

test('what was stopped does not begin any more', () => {
  const board = Board.forPages(1);
  assert.not(board.stopped);
  board.stop();
  board.begin();
  assert.ok(board.stopped);
  board.awaitBegin();
});

const OPTIONS: DemoOptions = { file: 'a\u001bfile', threads: 2, window: 4, wait: 'block', seed: 9 };

function touched(begunMs: number, endedMs: number, latencies: number[]): Touched {
  const latency = createHistogram();
  for (const value of latencies) latency.record(value);
  return { begunMs, endedMs, latency, sum: 0 };
}

function findings(change: Partial<Findings> = {}): Findings {
  return {
    kernel: 'linux',
    recorded: undefined,
    fileBytes: 10_000,
    pageSize: 4096,
    pages: 3,
    faults: 3,
    fills: 2,
    via: 'syscall',
    userModeOnly: true,
    touched: [touched(100, 102, [1000, 1000]), touched(99, 101.5, [50_000])],
    memorySha256: 'aa',
    fileSha256: 'aa',
    ...change,
  };
}

test('a report lasts from the first beginning to the last end, over the latencies of all threads', () => {
  const report = createReport(OPTIONS, findings());
  assert.is(report.durationMs, 3);
  assert.is(report.faultsPerSecond, 1000);
  assert.is(report.latencyP50Us, 1);
  assert.ok(Math.abs(report.latencyP99Us - 50) < 0.1);
  assert.ok(report.equal);
});

test('different digests are told, loudly', () => {
  const report = createReport(OPTIONS, findings({ memorySha256: 'bb' }));
  assert.not(report.equal);
  const rows = reportRows(report, { good: (text) => `+${text}`, bad: (text) => `!${text}` });
  assert.match(rows.at(-1)?.[1] as string, /^!DIFFERENT/);
});

test('the rows tell all that was found, and obey no file name', () => {
  const rows = reportRows(createReport(OPTIONS, findings()), { good: (text) => text, bad: (text) => text });
  const text = rows.map((row) => row.join(' ')).join('\n');
  const expected = [
    '10,000',
    '3 of 4,096',
    '3 (2 filled pages)',
    'block',
    '4 pages',
    'seed 9',
    'user mode only',
  ];
  for (const part of [...expected, 'p50 1.0 µs', '3 ms', 'faults/s 1,000', 'equal'])
    assert.ok(text.includes(part), part);
  assert.is(stripVTControlCharacters(text), text);
});

test.run();
