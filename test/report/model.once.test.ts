// The results of a report's page, compared with plain code: rows of the address space, growth of the working set,
// cells, percentiles, the search.

import { strict as assert } from 'node:assert';
import { cellsOf, inView, stepsOf } from '../../src/report/bins.js';
import type { Model } from '../../src/report/collect.js';
import { Events, isFault, What } from '../../src/report/events.js';
import { growthOf } from '../../src/report/growth.js';
import { timesOf } from '../../src/report/numbers.js';
import { Rows } from '../../src/report/rows.js';
import { parse } from '../../src/report/search.js';
import { AddressLabels, addressTicks } from '../../src/report/ticks.js';
import { View } from '../../src/report/view.js';
import { bucketOf, Histogram } from '../../src/trace/histogram.js';
import type { TraceSummary } from '../../src/trace/index.js';
import { generator, seed, suite } from '../support/harness.js';

const test = suite('report/model');
const P = 4096;
const ALL = [true, true, true, true];

function modelOf(events: Events): Model {
  const rows = new Rows(events);
  const [row, height] = [new Float64Array(events.length), new Float64Array(events.length)];
  const bucket = new Uint16Array(events.length);
  let most = 0;
  for (let at = 0; at < events.length; at++) {
    const first = events.page[at] as number;
    row[at] = rows.rowOf(first);
    height[at] = Math.max(0, rows.rowBehind(first + (events.pages[at] as number)) - (row[at] as number));
    bucket[at] = bucketOf(Math.max(0, events.latency[at] as number));
    most = Math.max(most, events.latency[at] as number);
  }
  const growth = growthOf(events, row, height, rows.count);
  const summary = { pageSize: P, latencyUs: { most } } as TraceSummary;
  const duration = (events.time[events.length - 1] ?? 0) + 1;
  return { name: 'a test', summary, events, rows, row, height, bucket, growth, duration };
}

/** Events of all sorts in three regions that are far apart. */
function storm(dice: (below: number) => number, count: number): Model {
  const events = new Events();
  let time = 0;
  for (let index = 0; index < count; index++) {
    time += dice(40);
    const page = 0x7f0000000 + dice(3) * 1e6 + dice(100);
    const what = [What.read, What.read, What.write, What.prefetched, What.removed][dice(5)] as number;
    const pages = what > What.write ? 1 + dice(20) : 1;
    const at = events.add(time, page, pages, what, 0, what > What.write ? 0 : 1 + dice(3));
    if (what <= What.write && dice(10) > 0) events.setLatency(at, dice(2000));
  }
  return modelOf(events);
}

test('rows: every page that was touched has one of its own, in order; gaps are left out', () => {
  const { events, rows } = storm(generator(seed()), 3000);
  assert.equal(rows.regions.length, 3);
  assert.ok(rows.count < 1000, `${rows.count}`);
  let last = -1;
  const touched = new Set<number>();
  for (let at = 0; at < events.length; at++) {
    if (events.what[at] === What.removed) continue;
    for (let page = 0; page < (events.pages[at] as number); page++)
      touched.add((events.page[at] as number) + page);
  }
  for (const page of [...touched].sort((a, b) => a - b)) {
    const row = rows.rowOf(page);
    assert.ok(row > last && row < rows.count, `${page}`);
    assert.equal(rows.pageAt(row), page);
    assert.equal(rows.rowBehind(page + 1), row + 1);
    last = row;
  }
});

test('rows of a trace in which nothing happened, and of one with removals alone', () => {
  assert.equal(new Rows(new Events()).count, 1);
  const events = new Events();
  events.add(1, 500, 8, What.removed, 0, 0);
  assert.deepEqual(new Rows(events).regions, [{ first: 500, end: 508, row: 0 }]);
});

test('the working set: what was faulted on ever, and what is present', () => {
  const model = storm(generator(seed()), 2000);
  const { events, rows, row, height, growth } = model;
  const [ever, present] = [new Set<number>(), new Set<number>()];
  for (let at = 0; at < events.length; at++) {
    for (let line = row[at] as number; line < (row[at] as number) + (height[at] as number); line++) {
      if (events.what[at] === What.removed) present.delete(line);
      else present.add(line);
      if (isFault(events, at)) ever.add(line);
    }
    assert.equal(growth?.faulted[at], ever.size);
    // Rows between regions belong to no region, but an extent that spans them covers them.
    assert.equal(growth?.present[at], present.size, `event ${at} of ${rows.count} rows`);
  }
});

/** Counts the events of each cell in plain code. `lengths`: an event is as long as its latency. */
function plainly(model: Model, view: View, columns: number, lines: number, lengths: boolean): number[] {
  const counts = new Array<number>(columns * lines * 4).fill(0);
  const { events, row, height } = model;
  const across = columns / (view.time.to - view.time.from);
  const up = lines / (view.rows.to - view.rows.from);
  for (let at = 0; at < events.length; at++) {
    const time = events.time[at] as number;
    if (time > view.time.to || (time < view.time.from && !lengths)) continue;
    const x = Math.floor((time - view.time.from) * across);
    const wait = lengths ? Math.max(0, events.latency[at] as number) : 0;
    const right = Math.max(x, Math.floor((time + wait - view.time.from) * across));
    const low = ((row[at] as number) - view.rows.from) * up;
    const high = low + (height[at] as number) * up;
    for (
      let line = Math.max(0, Math.floor(low));
      line < Math.max(Math.floor(low) + 1, Math.floor(high));
      line++
    ) {
      for (let column = Math.max(0, x); column <= right && column < columns && line < lines; column++) {
        const cell = (column * lines + line) * 4 + (events.what[at] as number);
        counts[cell] = (counts[cell] as number) + 1;
      }
    }
  }
  return counts;
}

test('cells: each event is counted in those that it covers; as long as it waited, where there are few', () => {
  const dice = generator(seed());
  for (const [count, lengths] of [
    [2000, true],
    [60_000, false],
  ] as const) {
    const model = storm(dice, count);
    const view = new View(model.duration, model.rows.count);
    for (let round = 0; round < 4; round++) {
      // 64 and 32 are powers of two, so that both ways round alike.
      const counts = cellsOf(model, view, 64, 32, ALL);
      const expected = plainly(model, view, 64, 32, lengths);
      const wrong = expected.filter((number, cell) => number !== counts[cell]).length;
      // Rounding may put an event on the border of a cell to either side of it.
      assert.ok(wrong <= expected.length / 500, `${wrong} cells of ${expected.length}`);
      view.show(view.time, { from: dice(100), to: 200 + dice(100) });
      if (lengths) view.zoomTime(0.7, dice(10) / 10);
    }
    const prefetched = cellsOf(model, view, 64, 32, [false, false, false, true]);
    assert.ok(prefetched.some((number, index) => number > 0 && index % 4 === What.prefetched));
    assert.ok(prefetched.every((number, index) => number === 0 || index % 4 === What.prefetched));
  }
});

test('rates and percentiles of each step are those of its faults', () => {
  const model = storm(generator(seed()), 4000);
  const { events, duration } = model;
  const [from, to] = [duration * 0.2, duration * 0.9];
  const steps = stepsOf(model, { from, to }, 25);
  const width = (to - from) / 25;
  let all = 0;
  for (const [step, start] of steps.time.entries()) {
    const histogram = new Histogram();
    let faults = 0;
    for (let at = 0; at < events.length; at++) {
      const inside = Math.floor(((events.time[at] as number) - from) * (25 / (to - from))) === step;
      if (!inside || !isFault(events, at) || (events.time[at] as number) < from) continue;
      faults++;
      if ((events.latency[at] as number) >= 0) histogram.add(events.latency[at] as number);
    }
    all += faults;
    assert.ok(Math.abs((steps.faults[step] as number) - (faults / width) * 1e6) < 1, `${start}`);
    const expected = [50, 90, 99].map((of) => (histogram.count > 0 ? histogram.percentile(of) : null));
    assert.deepEqual(
      steps.percentiles.map((row) => row[step]),
      expected,
    );
  }
  assert.equal(inView(model, { from, to: to - 1e-6 }).faults, all);
});

test('the search: all words have to be true; one that means nothing is named', () => {
  const model = storm(generator(seed()), 2000);
  const { events } = model;
  const found = (text: string): number[] => {
    const matches = parse(text, model);
    return Array.from({ length: events.length }, (_, at) => at).filter(matches);
  };
  const all = (is: (at: number) => boolean): number[] => found('').filter(is);
  assert.equal(found('').length, events.length);
  assert.deepEqual(
    found('write'),
    all((at) => events.what[at] === What.write),
  );
  assert.deepEqual(
    found('thread 2'),
    all((at) => isFault(events, at) && events.thread[at] === 2),
  );
  assert.deepEqual(
    found('thread:2 read'),
    all((at) => events.what[at] === What.read && events.thread[at] === 2),
  );
  assert.deepEqual(
    found('> 0.5ms'),
    all((at) => (events.latency[at] as number) > 500),
  );
  assert.deepEqual(
    found('<20us'),
    all((at) => (events.latency[at] as number) >= 0 && (events.latency[at] as number) < 20),
  );
  assert.deepEqual(
    found('remove'),
    all((at) => events.what[at] === What.removed),
  );
  const page = events.page[0] as number;
  const address = (page * P).toString(16);
  const covers = (at: number): boolean =>
    page >= (events.page[at] as number) && page < (events.page[at] as number) + (events.pages[at] as number);
  assert.deepEqual(found(`0x${address.slice(0, -3)}abc`), all(covers));
  const begins = all((at) => ((events.page[at] as number) * P).toString(16).startsWith(address.slice(0, 6)));
  assert.ok(begins.length > 0 && begins.length < events.length);
  assert.deepEqual(found(address.slice(0, 6)), begins);
  assert.throws(() => parse('write elephants', model), /'elephants' means nothing/);
});

test('a view never leaves what there is', () => {
  const view = new View(1000, 100);
  let changes = 0;
  view.onChange(() => changes++);
  view.zoomTime(0.5, 0);
  assert.deepEqual(view.time, { from: 0, to: 500 });
  view.pan(-3, 0);
  assert.deepEqual(view.time, { from: 0, to: 500 });
  view.pan(0.5, 0);
  assert.deepEqual(view.time, { from: 250, to: 750 });
  view.show({ from: 900, to: 2000 }, { from: 50, to: 51 });
  assert.deepEqual([view.time, view.rows.to - view.rows.from, view.whole], [view.fullTime, 4, false]);
  view.zoomRows(1e9);
  assert.ok(view.whole);
  for (let times = 0; times < 60; times++) view.zoomTime(0.5);
  assert.ok(Math.abs(view.time.to - view.time.from - 10) < 1e-6);
  view.reset();
  assert.ok(view.whole);
  assert.equal(changes, 66);
});

test('labels: times in one unit, as exact as they are; addresses without what is common to all', () => {
  assert.deepEqual(timesOf([0, 2.5e6, 5e6]), ['0.0 s', '2.5 s', '5.0 s']);
  assert.deepEqual(timesOf([1000, 1250, 1500]), ['1.00 ms', '1.25 ms', '1.50 ms']);
  assert.deepEqual(timesOf([0, 20, 40]), ['0 µs', '20 µs', '40 µs']);
  const { rows } = storm(generator(seed()), 1000);
  const labels = new AddressLabels(rows, P);
  const first = rows.regions[0]?.first as number;
  const last = labels.label(first).slice(1);
  assert.match(labels.label(first), /^…/);
  assert.ok((first * P).toString(16).endsWith(last) && labels.length < 14);
  const ticks = addressTicks(rows, { from: 0, to: rows.count }, 8);
  assert.ok(ticks.length >= 3 && ticks.length <= 14, `${ticks}`);
  assert.ok(ticks.every((row, index) => row > (ticks[index - 1] ?? -1)));
});

test.run();
