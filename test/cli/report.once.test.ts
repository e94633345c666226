// The demo's report: it shows every result, and wrong pages prominently.

import { stripVTControlCharacters } from 'node:util';
import picocolors from 'picocolors';
import * as assert from 'uvu/assert';
import {
  createReport,
  type DemoOptions,
  type Findings,
  type GuestResults,
  reportRows,
} from '../../src/cli/demo/report.js';
import { suite } from '../support/harness.js';

const test = suite('cli/report');

const OPTIONS: DemoOptions = {
  file: 'a\u001bfile',
  threads: 2,
  window: 4,
  wait: 'block',
  placement: 'none',
  seed: 9,
};
const PLAIN = { colors: picocolors.createColors(false) };
const MARKED = {
  colors: { ...PLAIN.colors, green: (text: unknown) => `+${text}`, red: (text: unknown) => `!${text}` },
};

function found(change: Partial<GuestResults> = {}): GuestResults {
  return {
    ...{ faults: 3, touches: 3, wrongCount: 0, wrong: [], firstMs: 1.23456, ms: 3, p50Us: 1, p99Us: 50 },
    ...change,
  };
}

function findings(change: Partial<Findings> = {}): Findings {
  return {
    ...{ kernel: 'linux', recorded: undefined, fileBytes: 10_000, pageSize: 4096, pages: 3 },
    ...{ first: found(), again: found({ faults: 1, ms: 0.5, firstMs: 0.25 }) },
    ...change,
  };
}

function textOf(rows: [string, string][]): string {
  return rows.map((row) => row.join(' ')).join('\n');
}

test('both runs are shown, the first at the top', () => {
  const { durationMs, firstTouchMs, faultsPerSecond, verified, prefetched, equal, trace } = createReport(
    OPTIONS,
    findings(),
  );
  assert.equal([durationMs, firstTouchMs, faultsPerSecond, verified], [3, 1.235, 1000, 3]);
  assert.equal(prefetched, {
    ...{ faults: 1, verified: 3, firstTouchMs: 0.25, durationMs: 0.5, faultsPerSecond: 2000 },
    ...{ latencyP50Us: 1, latencyP99Us: 50 },
  });
  assert.equal([equal, trace], [true, null]);
});

test('the trace is named if one was requested', () => {
  const recorded = { records: 10, bytes: 2000, failure: 'no room' };
  assert.is(createReport(OPTIONS, findings({ recorded })).trace, null);
  const report = createReport({ ...OPTIONS, record: 'a\u001btrace' }, findings({ recorded }));
  assert.equal(report.trace, { file: 'a\u001btrace', ...recorded });
  const text = textOf(reportRows(report, MARKED));
  assert.ok(text.includes('trace a?trace: 10 records, 2.0 KiB, 666.7 bytes a fault\n !NOT WHOLE: no room'));
});

test('a wrong page in either run is reported prominently, and so are pages that were not touched', () => {
  const wrong = found({ wrongCount: 3, wrong: ['page 1', 'page 2', 'page 3'] });
  for (const change of [{ first: wrong }, { again: wrong }, { first: wrong, again: undefined }]) {
    const report = createReport(OPTIONS, findings(change));
    assert.not(report.equal);
    const rows = reportRows(report, MARKED);
    assert.match(textOf(rows), /verdict !WRONG: [^\n]+\n page 1\n page 2\n page 3$/);
  }
  const both = createReport(OPTIONS, findings({ first: wrong, again: wrong }));
  assert.is(both.wrong.length, 5);
  assert.is(both.verified, 0);
  assert.not(createReport(OPTIONS, findings({ again: found({ touches: 2 }) })).equal);
});

test('the rows show every result, and escape control characters of file names', () => {
  const text = textOf(reportRows(createReport(OPTIONS, findings()), PLAIN));
  const expected = [
    ...['file a?file', '10,000 (9.8 KiB)', '3 of 4,096', '2 touching', 'wait block', '4 pages', 'seed 9'],
    ...[
      'no prefetch     prefetch',
      'faults           3            1',
      'pages verified           3            3',
    ],
    ...['first touch      1.2 ms       0.3 ms', 'all touched        3 ms         1 ms'],
    ...['faults/s       1,000        2,000', 'latency p50      1.0 µs       1.0 µs'],
    ...['latency p99     50.0 µs      50.0 µs', 'verdict every page is right'],
  ];
  for (const part of expected) assert.ok(text.includes(part), `${part}\n${text}`);
  assert.is(stripVTControlCharacters(text), text);
});

test('one run is shown in one column', () => {
  const text = textOf(
    reportRows(createReport(OPTIONS, findings({ kernel: 'simulated', again: undefined })), PLAIN),
  );
  for (const part of ['simulated; its times are virtual', '\nfaults 3\n', '\nall touched 3 ms\n'])
    assert.ok(text.includes(part), `${part}\n${text}`);
  assert.not(text.includes('prefetch'));
});

test.run();
