// The formats of a check's report say the same: JUnit XML and TAP as their readers expect them, whatever the texts hold.

import { strict as assert } from 'node:assert';
import { type CheckReport, formatReport, REPORT_FORMATS, summaryOf } from '../../src/testing/index.js';
import { suite } from '../support/harness.js';

const test = suite('conformance/report');

const REPORT: CheckReport = {
  command: ['./handler', '<&">', '{socket}'],
  simulated: false,
  results: [
    { scenario: 'one', why: 'because', verdict: 'pass', milliseconds: 1500 },
    {
      ...{
        scenario: 'two',
        why: 'it matters',
        verdict: 'fail',
        reason: 'page 3 has "zeros" & more',
        milliseconds: 20,
      },
      page: { address: 0x7f00_0000_3000n, offset: 12_288, expected: 'the bytes of page 3', actual: 'zeros' },
      ...{ details: ['stderr: \u001b[31m<oops>\u0000'], repeats: { failed: 2, of: 3 }, evidence: 'kept/two' },
    },
    { scenario: 'three', why: '', verdict: 'not applicable', reason: 'no huge pages', milliseconds: 0 },
  ],
};

test('the table has a line for each scenario, and all that is known of a failure', () => {
  const table = formatReport(REPORT);
  assert.match(table, /^pass {2}one +1500 ms$/m);
  assert.match(table, /^FAIL {2}two +20 ms {2}page 3 has "zeros" & more$/m);
  assert.match(table, /^n\/a {3}three +0 ms {2}no huge pages$/m);
  for (const line of [
    'why it matters: it matters',
    'page at 0x7f0000003000, offset 12288 of the memory file',
    'expected: the bytes of page 3',
    'actual: zeros',
    'failed in 2 of 3 runs',
    'evidence: kept/two',
  ])
    assert.ok(table.includes(`        ${line}\n`), line);
  assert.equal(summaryOf(REPORT), '1 passed, 1 failed, 1 not applicable');
});

test('JSON has the results, with addresses in hexadecimal', () => {
  const { results } = JSON.parse(formatReport(REPORT, 'json'));
  assert.equal(results[1].page.address, '0x7f0000003000');
  assert.deepEqual(results[1].repeats, { failed: 2, of: 3 });
});

test('JUnit XML has the counts, escapes what XML cannot have, and skips what does not apply', () => {
  const xml = formatReport(REPORT, 'junit');
  assert.match(xml, /<testsuites tests="3" failures="1" skipped="1" time="1\.520">/);
  assert.match(xml, /<testsuite name="\.\/handler &lt;&amp;&quot;&gt; \{socket\}"/);
  assert.match(xml, /<failure message="page 3 has &quot;zeros&quot; &amp; more">/);
  assert.match(xml, /stderr: \?\[31m&lt;oops&gt;\?/);
  assert.match(xml, /<skipped message="no huge pages"\/>/);
  assert.equal(xml.match(/<testcase /g)?.length, 3);
});

test('TAP has a plan, a line for each scenario, and comments', () => {
  const lines = formatReport(REPORT, 'tap').split('\n');
  assert.deepEqual(lines.slice(0, 4), ['TAP version 13', '1..3', 'ok 1 - one', 'not ok 2 - two']);
  assert.ok(lines.includes('# expected: the bytes of page 3'));
  assert.ok(lines.includes('ok 3 - three # SKIP no huge pages'));
});

test('an empty report has all formats', () => {
  for (const format of REPORT_FORMATS)
    assert.ok(formatReport({ ...REPORT, results: [] }, format).endsWith('\n'));
});

test.run();
