// The export for Perfetto: JSON whose events are the faults, the calls and the changes of the trace, each once.

import { strict as assert } from 'node:assert';
import { perfettoJson, TraceReader } from '../../src/trace/index.js';
import { suite } from '../support/harness.js';
import { COPY, copied, page, Script, size, WRITE } from './support/handwritten-trace.js';

const test = suite('trace/perfetto');

interface Event {
  ph: string;
  name: string;
  tid: number;
  ts: number;
  dur?: number;
  id?: number;
  args: Record<string, unknown>;
}

function eventsOf(bytes: Uint8Array): { events: Event[]; other: Record<string, unknown>; pieces: number } {
  const pieces = [...perfettoJson(TraceReader.of(bytes))];
  const { traceEvents, otherData } = JSON.parse(pieces.join(''));
  return { events: traceEvents, other: otherData, pieces: pieces.length };
}

const script = (): Script =>
  new Script()
    .faults(100, [0, 0n, 7], [1, WRITE, 8], [1, WRITE, 0], [2, 0n, 0])
    .ioctl(120, COPY, 0n, ...copied(page(0), size(2), size(2)))
    .ioctl(130, COPY, 0n, ...copied(page(4), size(3), size(3)))
    .removed(140, 0x15, page(0), page(2));

test('faults lie on their threads, from their reading to the call that lets them go; to the end where none does', () => {
  const { events, other } = eventsOf(script().bytes());
  const spans = events.filter(({ ph }) => ph === 'X');
  assert.deepEqual(
    spans.map(({ name, tid, ts, dur, args }) => [name, tid, ts, dur, args.page, args.letGo]),
    [
      ['read', 7, 100, 20, '0x7f0000000000', true],
      ['write', 8, 100, 20, '0x7f0000001000', true],
    ],
  );
  const [begun, ended] = ['b', 'e'].map((sort) => events.filter(({ ph }) => ph === sort));
  assert.deepEqual(
    begun?.map(({ id, ts, args }) => [id, ts, args.letGo]),
    [
      [2, 100, true],
      [3, 100, false],
    ],
  );
  assert.deepEqual(
    ended?.map(({ id, ts }) => [id, ts]),
    [
      [2, 120],
      [3, 140],
    ],
  );
  assert.deepEqual(other, { pageSize: 4096, faults: 4 });
});

test('calls and changes are moments, waiting faults are counted, tracks have names', () => {
  const { events } = eventsOf(script().bytes());
  assert.deepEqual(
    events.filter(({ ph }) => ph === 'i').map(({ name, ts }) => [name, ts]),
    [
      ['COPY', 120],
      ['filled ahead', 130],
      ['COPY', 130],
      ['remove', 140],
    ],
  );
  const waiting = events.filter(({ ph }) => ph === 'C').map(({ ts, args }) => [ts, args.faults]);
  assert.deepEqual(waiting, [
    [100, 1],
    [100, 2],
    [100, 3],
    [100, 4],
    [120, 3],
    [120, 1],
  ]);
  const names = events.filter(({ ph }) => ph === 'M').map(({ args }) => args.name);
  assert.deepEqual(names, ['userfaultfd', 'calls and events', 'thread 7', 'thread 8']);
});

test('a long trace comes in pieces; a truncated one is shown as far as it goes, and marked as truncated', () => {
  const long = new Script();
  for (let at = 0; at < 20_000; at++)
    long.faults(at * 10, [at, 0n, 7]).ioctl(at * 10 + 5, COPY, 0n, ...copied(page(at), size(1), size(1)));
  const bytes = long.bytes();
  const whole = eventsOf(bytes);
  assert.ok(whole.pieces > 5);
  assert.equal(whole.events.filter(({ ph }) => ph === 'X').length, 20_000);
  const cut = eventsOf(bytes.subarray(0, bytes.length - 3));
  assert.match(String(cut.other.damage), /cut or damaged/);
  assert.ok(cut.events.length < whole.events.length);
});

test.run();
