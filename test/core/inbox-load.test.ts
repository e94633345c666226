// The inbox under load: nothing lost, nothing doubled, order kept, whatever comes in; memory is bounded by what
// waits at the same time, and never grows while faults are handed out and answered.

import { strict as assert } from 'node:assert';
import { type Core, Op } from '../../src/core.js';
import { generator, seed, suite } from '../harness.js';
import {
  answer,
  countingCore,
  drain,
  EAGAIN,
  FLAG_MINOR,
  FLAG_WP,
  fault,
  feed,
  fork,
  type Heard,
  hear,
  hearAll,
  hearEvent,
  lookup,
  type Message,
  makeCore,
  P,
  PAGE,
  page,
  pagesOf,
  put,
  remap,
  remove,
  State,
  stateOf,
  take,
  transfer,
  unmap,
  WRITE,
  write,
} from './support.js';

const test = suite('inbox under load');

test('100,000 faults at once: in order, then empty, then again without growing', () => {
  const core = makeCore();
  const before = core.memory.buffer.byteLength;
  const wave = () => {
    const all = Array.from({ length: 100_000 }, (_, i) => fault(page((i * 7919) % 100_000)));
    feed(core, ...all, ...all.slice(0, 1000));
    assert.equal(core.exports.inboxWaiting(), 100_000);
    drain(core);
    for (const { address } of all as { address: bigint }[]) {
      const heard = hear(core);
      if (heard.is !== 'fault' || heard.page !== address)
        assert.fail(`${heard.is} in the place of ${address}`);
      answer(core, true);
    }
    assert.equal(hear(core).is, 'none');
    assert.equal(core.exports.inboxWaiting(), 0);
  };
  wave();
  // 131,072 entries of 56 bytes and as many of 4 for the hash; all smaller sizes together are as much again.
  const grown = core.memory.buffer.byteLength - before;
  assert.ok(grown < 2 * 131_072 * 60 + 65_536, `${grown} bytes`);
  wave();
  assert.equal(core.memory.buffer.byteLength - before, grown);
});

test('the fault that is out finds a place when it comes back, however full the table is', () => {
  for (let before = 1; before <= 400; before++) {
    const core = makeCore();
    const all = Array.from({ length: before + 128 }, (_, i) => fault(page(i)));
    feed(core, ...all.slice(0, before));
    core.exports.inboxTake(EAGAIN);
    hear(core);
    // As many as there is room for.
    assert.equal(core.exports.inboxRoom(), 128 * 32);
    feed(core, ...all.slice(before));
    answer(core, false);
    const heard = pagesOf(hearAll(core, 1));
    assert.deepEqual(
      heard.sort((a, b) => a - b),
      [...all.keys()],
      `${before} before`,
    );
  }
});

test('a repeat among 100,000 waiting faults is found in a few loads', async () => {
  const { core, loads } = await countingCore();
  feed(core, ...Array.from({ length: 100_000 }, (_, i) => fault(page(i))));
  let sum = 0;
  for (let i = 0; i < 1000; i++) {
    core.exports.inboxRoom();
    const length = write(core, fault(page(i * 97), WRITE));
    sum += loads(() => core.exports.inboxTake(length));
  }
  assert.equal(core.exports.inboxWaiting(), 100_000);
  // A dozen for the message, its range and what was decoded, and two or three for each entry of a chain.
  assert.ok(sum / 1000 < 18, `${sum / 1000} loads on average`);
});

test('faults that are dropped before they are heard do not pile up', () => {
  const core = makeCore();
  const round = () => {
    feed(core, fault(page(1)), fault(page(2)), unmap(page(0), page(4)));
    assert.deepEqual(
      hearAll(core).map((one) => one.is),
      ['unmapped'],
    );
  };
  round();
  const before = core.memory.buffer.byteLength;
  for (let i = 0; i < 50_000; i++) round();
  assert.equal(core.memory.buffer.byteLength, before);
});

/** Promises page bitmaps of many small registrations until nothing is left: chunks of 32 MiB, from chunk 1 on. */
function exhaust(core: Core): void {
  let refused = false;
  let chunk = 1;
  for (let length = 2 ** 42; length >= 2 ** 25; ) {
    const address = page(0) + BigInt(chunk) * 2n ** 25n;
    if (core.arguments(address, length, 0n).rangePut(1, 12)) {
      chunk += length / 2 ** 25;
    } else {
      refused = true;
      length /= 2;
    }
  }
  assert.ok(refused);
}

test('a move that the tables have no room for is not told, and changes nothing', () => {
  const core = makeCore();
  put(core, 0, 10);
  transfer(core, Op.copy, 0, 10);
  // Below all that is registered, in a chunk of its own.
  const to = page(0) - 2n ** 30n;
  feed(core, remap(page(0), to, 10n * P));
  drain(core);
  exhaust(core);
  for (let n = 0; n < 3; n++) assert.equal(hearEvent(core).is, 'noMemory');
  assert.equal(lookup(core, to), undefined);
  assert.equal(lookup(core, page(0))?.start, page(0));
  assert.equal(stateOf(core, 3), State.present);
});

test('where memory is at its maximum the core says so, and does not ask to read for ever', () => {
  const core = makeCore();
  exhaust(core);
  assert.equal(core.exports.inboxRoom(), 0);
  assert.equal(hear(core).is, 'noMemory');
});

// ---- against a simple model --------------------------------------------------------------------------------

interface Waiting {
  index: number;
  kind: number;
  write: boolean;
  tid: number;
  /** How often it was put off. */
  level: number;
  due: number;
}

const KINDS = ['missing', 'write-protect', 'minor'];
const FLAGS = [0n, FLAG_WP, FLAG_MINOR];

/** What the inbox promises, in lists. */
class Model {
  ready: Waiting[] = [];
  /** In the order in which they were put off. */
  deferred: Waiting[] = [];
  events: Message[] = [];
  drained = false;
  out: (Waiting & { over: boolean; cut: boolean }) | undefined;

  takeFault(index: number, kind: number, write: boolean, tid: number): void {
    const known = this.find(index, kind);
    if (known) known.write ||= write;
    else this.ready.push({ index, kind, write, tid, level: 0, due: 0 });
  }

  find(index: number, kind: number): Waiting | undefined {
    return [...this.ready, ...this.deferred].find((one) => one.index === index && one.kind === kind);
  }

  /** Those that were put off and fulfil a condition become ready, the shortest delays first. */
  recall(condition: (one: Waiting) => boolean): void {
    const due = this.deferred.filter(condition).sort((a, b) => a.level - b.level);
    this.deferred = this.deferred.filter((one) => !condition(one));
    this.ready.push(...due);
  }

  drop(first: number, end: number): void {
    const stays = ({ index }: Waiting) => index < first || index >= end;
    this.ready = this.ready.filter(stays);
    this.deferred = this.deferred.filter(stays);
    if (this.out && !stays(this.out)) this.out.over = true;
  }

  event(): Message | undefined {
    const event = this.events.shift();
    if (event?.is === 'unmap') this.drop(indexOf(event.start), indexOf(event.end));
    if (event?.is === 'remap') this.drop(indexOf(event.from), indexOf(event.from + event.length));
    if (event) {
      const before = this.ready.length;
      this.recall(() => true);
      for (const one of this.ready.slice(before)) one.level = 0;
    }
    return event;
  }

  fault(now: number): Waiting | undefined {
    this.recall((one) => one.due <= now);
    const first = this.ready.shift();
    this.out = first && { ...first, over: false, cut: false };
    return this.out;
  }

  answer(answered: boolean, now: number): void {
    const { out } = this;
    this.out = undefined;
    if (!out || out.over || (answered && !out.cut)) return;
    const known = this.find(out.index, out.kind);
    if (known) {
      known.write ||= out.write;
      return;
    }
    const level = Math.min(out.level + 1, 7);
    const { over, cut, ...fault } = out;
    this.deferred.push({ ...fault, level, due: now + 2 ** (level - 1) });
  }

  get waiting(): number {
    return this.ready.length + this.deferred.length + this.events.length;
  }
}

function indexOf(address: bigint): number {
  return Number((address - page(0)) / P);
}

test('200,000 random steps: nothing lost, nothing doubled, order kept', () => {
  // What is heard is at every step exactly what the model says, and as many wait as the model holds.
  const random = generator(seed());
  const core = makeCore();
  const model = new Model();
  const pages = 60;
  put(core, 0, pages);
  let now = 1000;
  let heard = 0;

  const someRange = (): [bigint, bigint] => {
    const first = random(pages);
    return [page(first), page(first + 1 + random(4))];
  };
  const message = (): Message => {
    const kind = random(40);
    if (kind === 0) return remove(...someRange());
    if (kind === 1) return unmap(...someRange());
    if (kind === 2) return fork(random(1000));
    if (kind === 3) {
      const [from, end] = someRange();
      return remap(from, page(1000), end - from);
    }
    const flags = (FLAGS[random(3)] as bigint) | (random(3) ? 0n : WRITE);
    return fault(page(random(pages)), flags, random(5));
  };
  const read = () => {
    const messages = Array.from({ length: 1 + random(random(8) ? 4 : 60) }, message);
    if (model.events.length + messages.length > 512) return;
    feed(core, ...messages);
    model.drained = false;
    for (const one of messages) {
      if (one.is !== 'fault') {
        model.events.push(one);
        continue;
      }
      const flags = one.flags as bigint;
      const kind = flags & FLAG_WP ? 1 : flags & FLAG_MINOR ? 2 : 0;
      model.takeFault(indexOf(one.address), kind, (flags & WRITE) !== 0n, one.tid as number);
    }
  };
  const meet = () => {
    // What is out meets the kernel: the change that comes first, or the end of its memory.
    const { out } = model;
    if (!out) return;
    const cut = random(2) === 0;
    const overlaps = model.events.some((event) => touches(event, out.index));
    core.arguments(page(out.index), PAGE).transferBegin(0, 0);
    if (overlaps) out.cut = true;
    else if (cut) {
      for (let i = 0; i < 2; i++) {
        core.exports.transferResult(EAGAIN);
        core.exports.transferResume();
      }
      out.cut = true;
    } else {
      core.exports.transferResult(-2);
      core.exports.transferResult(0);
      out.over = true;
    }
  };

  for (let step = 0; step < 200_000; step++) {
    now += random(4) ? 0 : random(20) / 4;
    const kind = random(20);
    if (kind < 3) read();
    else if (kind < 6) {
      drain(core);
      model.drained = true;
    } else if (kind === 6) {
      core.exports.inboxOpen();
      model.drained = false;
    } else if (kind === 7) meet();
    else if (kind === 8 && random(20) === 0) {
      const first = random(pages);
      take(core, first, 1);
      put(core, first, 1);
      model.drop(first, first + 1);
    } else if (kind === 9 && random(10) === 0) {
      // As release does, also while a fault is out.
      const event = model.event();
      assert.deepEqual(hearEvent(core), event ? toldOf(event) : { is: 'none' }, `step ${step}`);
    } else if (model.out) {
      const answered = random(3) > 0;
      answer(core, answered, now);
      model.answer(answered, now);
    } else {
      const event = model.event();
      const is = model.drained ? 'none' : 'read';
      const one = event || !model.drained ? undefined : model.fault(now);
      const expected = event ? toldOf(event) : one ? toldFault(one) : { is };
      assert.deepEqual(hear(core, now), expected, `step ${step}`);
      if (one) heard++;
    }
    assert.equal(core.exports.inboxWaiting(), model.waiting, `step ${step}`);
  }
  assert.ok(heard > 10_000, `only ${heard} faults were heard`);
  if (model.out) answer(core, true, now);
  model.answer(true, now);
  // At the end all that waits comes out, but for what the last changes take away.
  const changes = model.events.length;
  while (model.event());
  assert.equal(hearAll(core, now + 64).length, changes + model.waiting);
  assert.equal(core.exports.inboxWaiting(), 0);
});

function touches(event: Message, index: number): boolean {
  const meets = (start: bigint, end: bigint) => indexOf(start) <= index && index < indexOf(end);
  if (event.is === 'remap')
    return meets(event.from, event.from + event.length) || meets(event.to, event.to + event.length);
  return (event.is === 'remove' || event.is === 'unmap') && meets(event.start, event.end);
}

function toldOf(event: Message): Heard {
  switch (event.is) {
    case 'remove':
      return { is: 'removed', start: event.start, end: event.end };
    case 'unmap':
      return { is: 'unmapped', start: event.start, end: event.end };
    case 'remap':
      return { is: 'remapped', from: event.from, to: event.to, length: event.length };
    case 'fork':
      return { is: 'forked', fd: BigInt(event.fd) };
    default:
      throw new Error(event.is);
  }
}

function toldFault({ index, kind, write, tid }: Waiting): Heard {
  const address = page(index);
  return { is: 'fault', address, page: address, kind: KINDS[kind] as string, write, tid };
}

test.run();
