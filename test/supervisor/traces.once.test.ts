// A failure of the simulated check leaves a trace: it has the calls of the schedule, `replayWithGuest` and `uffd replay`
// find the same broken again, and `uffd inspect` and `uffd report` read it.

import { strict as assert } from 'node:assert';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { ScenarioResult } from '../../src/conformance/result.js';
import { checkSimulated } from '../../src/supervisor/check-simulated.js';
import {
  checkHandler,
  formatReport,
  INVARIANTS,
  isOfGuest,
  REPORT_FORMATS,
  replayWithGuest,
} from '../../src/testing/index.js';
import { replay, summarize, TraceReader } from '../../src/trace/index.js';
import { uffd } from '../cli/support/command.js';
import { handler } from '../conformance/support/handlers.js';
import { suite } from '../support/harness.js';

const test = suite('simulated handlers: traces');
const folder = mkdtempSync(join(tmpdir(), 'uffd-traces-'));
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));

/** Bounds a search whose seed is not known. */
const SEEDS = 2000;
const SHRINKS = 40;

interface Failed {
  readonly result: ScenarioResult;
  readonly trace: string;
  /** The lines of the schedule. */
  readonly schedule: readonly string[];
}

const known = new Map<number, Promise<Failed>>();

/** Checks the handler with a fault, which must fail, and keeps the evidence. */
function failed(fault: number): Promise<Failed> {
  const found = known.get(fault) ?? check(fault);
  known.set(fault, found);
  return found;
}

async function check(fault: number): Promise<Failed> {
  const evidence = join(folder, `fault-${fault}`);
  const report = await checkSimulated(handler(fault), { seeds: SEEDS, shrinks: SHRINKS, evidence });
  const [result] = report.results as [ScenarioResult];
  assert.equal(result.verdict, 'fail', result.reason);
  assert.equal(result.evidence, join(evidence, 'random-guests'));
  const trace = join(result.evidence, 'guest.trace');
  assert.equal(result.trace, trace);
  for (const format of REPORT_FORMATS)
    assert.ok(formatReport(report, format).includes(trace), `${format} does not name the trace`);
  const schedule = readFileSync(join(result.evidence, 'schedule.txt'), 'utf8').trimEnd().split('\n');
  assert.ok(schedule.length > 3);
  assert.equal(readFileSync(join(result.evidence, 'reason.txt'), 'utf8'), `${result.reason}\n`);
  return { result, trace, schedule };
}

/** How many lines match; with a group, the sum of its numbers. */
function countIn(lines: readonly string[], pattern: RegExp): number {
  const found = lines.flatMap((line) => pattern.exec(line) ?? []);
  const matches = lines.filter((line) => pattern.test(line)).length;
  const numbers = found.map(Number).filter((number) => number > 0);
  return numbers.length > 0 ? numbers.reduce((sum, number) => sum + number, 0) : matches;
}

test('a race: the trace has the calls of the schedule, and its replay finds the same broken', async () => {
  const { result, trace, schedule } = await failed(6);
  const summary = summarize(TraceReader.fromFile(trace));
  const { faults, changes, calls, eagains, damage } = summary;
  assert.equal(damage, undefined);
  assert.equal(faults + changes.remove, countIn(schedule, /handler {5}reads (\d+) messages?$/));
  assert.equal(calls.COPY, countIn(schedule, /handler {5}COPY /));
  assert.equal(eagains, countIn(schedule, /handler {5}COPY .* → EAGAIN/));
  assert.ok(faults > 0 && changes.remove > 0);
  assert.equal(summary.rangesRegistered, summary.ranges.length);
  assert.deepEqual(summary.about, { command: handler(6), seed: result.seed });

  const replayed = replayWithGuest(TraceReader.fromFile(trace));
  assert.equal(replayed.identical, true, JSON.stringify(replayed.difference));
  assert.equal(replayed.faults, faults);
  const { invariant = 'leak', detail } = replayed.failure ?? {};
  assert.equal(`${INVARIANTS[invariant]}: ${detail}`, result.reason);

  const again = await uffd(['replay', trace]);
  assert.equal(again.code, 0, again.stderr);
  assert.match(again.stdout, /^identical: \d+ records, \d+ faults?,/);
  assert.match(again.stdout, /\nbroken: a page that was removed holds data: COPY has put \d+ at byte 0 of/);
  const json = await uffd(['replay', '--json', trace]);
  assert.match(JSON.parse(json.stdout).broken, /^a page that was removed holds data/);
  const inspected = await uffd(['inspect', '--json', trace]);
  assert.equal(inspected.code, 0, inspected.stderr);
  assert.equal(JSON.parse(inspected.stdout).faults, faults);
  const page = join(folder, 'race.html');
  const reported = await uffd(['report', trace, '--output', page]);
  assert.equal(reported.code, 0, reported.stderr);
  assert.ok(statSync(page).size > 10_000);
}, 120_000);

test('a handler that waits for ever: the replay ends in the same wait', async () => {
  const { trace } = await failed(3);
  const { identical, difference, failure } = replayWithGuest(TraceReader.fromFile(trace));
  assert.equal(identical, true, JSON.stringify(difference));
  assert.equal(failure?.invariant, 'asleep');
  assert.match(failure.detail, /nothing wakes it: thread \d+ /);
}, 120_000);

test('another guest answers otherwise: the first call that differs is shown', async () => {
  const { trace } = await failed(7);
  const reader = TraceReader.fromFile(trace);
  const guest = reader.meta.guest as { choices: number[] };
  Object.assign(reader, { meta: { ...reader.meta, guest: { ...guest, choices: [] } } });
  const { identical, difference, failure } = replayWithGuest(reader);
  assert.equal(identical, false);
  assert.notEqual(difference?.came, difference?.expected);
  assert.equal(failure, undefined);
}, 120_000);

test('such a trace is not for replay() and --handler, and another one not for replayWithGuest', async () => {
  const { trace } = await failed(7);
  assert.ok(isOfGuest(TraceReader.fromFile(trace)));
  await assert.rejects(replay(TraceReader.fromFile(trace)), { message: /replayWithGuest/ });
  const module = join(folder, 'handler.mjs');
  writeFileSync(module, 'export default () => ({ pagefault() {} });');
  const refused = await uffd(['replay', trace, '--handler', module]);
  assert.equal(refused.code, 2);
  assert.match(refused.stderr, /--handler is for traces of this library/);
  for (const guest of [undefined, 1, {}, { choices: [] }, { pageSize: 4096, pages: 2 ** 40 }]) {
    const reader = TraceReader.fromFile(trace);
    Object.assign(reader, { meta: { ...reader.meta, guest } });
    assert.throws(() => replayWithGuest(reader), { code: 'ERR_UFFD_TRACE' });
  }
}, 120_000);

test('a failure is reported if its evidence cannot be kept, and the report says why', async () => {
  const evidence = join(folder, 'no-folder');
  writeFileSync(evidence, '');
  const report = await checkHandler({ command: handler(7), simulated: true, seeds: SEEDS, evidence });
  const [result] = report.results as [ScenarioResult];
  assert.equal(result.verdict, 'fail');
  assert.deepEqual(result.repeats, { failed: 3, of: 3 });
  assert.equal(result.evidence ?? result.trace, undefined);
  assert.ok(
    result.details?.some((line) => /^the files of the failure were not kept: (ENOTDIR|EEXIST)/.test(line)),
  );
}, 120_000);

test.run();
