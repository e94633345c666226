// The queue under load: it loses no message, delivers none twice and keeps the order. Its memory is bounded by what
// waits at the same time, and never grows while faults are delivered and answered.

import { strict as assert } from 'node:assert';
import { Action, Operation as Op, Step } from '../../src/bindings/core.js';
import type { Core } from '../../src/uffd/core.js';
import { generator, seed, suite } from '../support/harness.js';
import {
  answer,
  bring,
  countingCore,
  type Delivery,
  deliver,
  deliverAll,
  deliverFrom,
  dispatch,
  drive,
  EAGAIN,
  FLAG_MINOR,
  FLAG_WP,
  fault,
  feed,
  fork,
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
  still,
  take,
  transfer,
  unmap,
  WRITE,
  write,
} from './support.js';
import { EFAULT, ENOENT } from './transfers.js';

const ENOMEM = 12;

const test = suite('queue under load');

test('100,000 faults at once: in order, then empty, then again without growing', () => {
  const core = makeCore();
  const before = core.memory.buffer.byteLength;
  const wave = () => {
    const all = Array.from({ length: 100_000 }, (_, i) => fault(page((i * 7919) % 100_000)));
    feed(core, ...all, ...all.slice(0, 1000));
    bring(core);
    assert.equal(core.waiting, 100_000);
    for (const { address } of all as { address: bigint }[]) {
      const delivered = deliver(core);
      if (delivered.is !== 'fault' || delivered.page !== address)
        assert.fail(`${delivered.is} in the place of ${address}`);
      answer(core, true);
    }
    assert.equal(deliver(core).is, 'none');
    assert.equal(core.waiting, 0);
  };
  wave();
  // 131,072 entries of 56 bytes, and as many of 4 for the hash table. All smaller tables together took as much again.
  const grown = core.memory.buffer.byteLength - before;
  assert.ok(grown < 2 * 131_072 * 60 + 65_536, `${grown} bytes`);
  wave();
  assert.equal(core.memory.buffer.byteLength - before, grown);
});

test('the fault that the handler has finds a place when it comes back, however full the table is', () => {
  for (let before = 1; before <= 400; before++) {
    const core = makeCore();
    const all = Array.from({ length: before + 128 }, (_, i) => fault(page(i)));
    feed(core, ...all.slice(0, before));
    deliver(core);
    // Read as many faults as fit.
    assert.equal(bring(core, ...all.slice(before)), 128 * 32);
    answer(core, false);
    const delivered = pagesOf(deliverAll(core, 1));
    assert.deepEqual(
      delivered.sort((a, b) => a - b),
      [...all.keys()],
      `${before} before`,
    );
  }
});

test('a repeat among 100,000 waiting faults is found in a few loads', async () => {
  const { core, loads } = await countingCore();
  feed(core, ...Array.from({ length: 100_000 }, (_, i) => fault(page(i))));
  bring(core);
  // A read inside a fill: apart from decoding the message, it does the same work for every message.
  const read = (length: number): number => {
    core.arguments(page(200_000), PAGE).beginFill(Op.ZEROPAGE, 0);
    assert.equal(core.exports.handleResult(EAGAIN), Action.READ);
    const count = loads(() => core.exports.handleRead(length));
    assert.equal(core.exports.handleResult(EFAULT), Action.FILLED);
    return count;
  };
  const nothing = read(EAGAIN);
  let sum = 0;
  for (let i = 0; i < 1000; i++) sum += read(write(core, fault(page(i * 97), WRITE))) - nothing;
  assert.equal(core.waiting, 100_000);
  // About a dozen loads for the message and its range, and two or three for each entry of the hash chain.
  assert.ok(sum / 1000 < 18, `${sum / 1000} loads on average`);
});

test('faults that are dropped before delivery do not pile up', () => {
  const core = makeCore();
  const round = () => {
    feed(core, fault(page(1)), fault(page(2)), unmap(page(0), page(4)));
    assert.deepEqual(
      deliverAll(core).map((one) => one.is),
      ['unmapped'],
    );
  };
  round();
  const before = core.memory.buffer.byteLength;
  for (let i = 0; i < 50_000; i++) round();
  assert.equal(core.memory.buffer.byteLength, before);
});

/** Registers ranges until no memory is left for their bitmaps: in chunks of 32 MiB, from chunk 1 on. */
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

test('a move that the tables have no room for is not delivered, and changes nothing', () => {
  const core = makeCore();
  put(core, 0, 10);
  transfer(core, Op.COPY, 0, 10);
  // An address below all registered ranges, in a chunk of its own.
  const to = page(0) - 2n ** 30n;
  bring(core, remap(page(0), to, 10n * P));
  exhaust(core);
  for (let n = 0; n < 3; n++) {
    assert.equal(dispatch(core), Action.BROKEN);
    assert.equal(core.errno, ENOMEM);
  }
  assert.equal(lookup(core, to), undefined);
  assert.equal(lookup(core, page(0))?.start, page(0));
  assert.equal(stateOf(core, 3), State.present);
});

test('if memory is at its maximum the core says so, and does not ask to read forever', () => {
  const core = makeCore();
  exhaust(core);
  assert.equal(core.exports.begin(), Action.BROKEN);
  assert.equal(core.room, 0);
  assert.equal(core.errno, ENOMEM);
});

// ---- against a simple model --------------------------------------------------------------------------------

interface Waiting {
  index: number;
  kind: number;
  write: boolean;
  tid: number;
  /** How often it was deferred. */
  level: number;
  due: number;
}

const KINDS = ['missing', 'write-protect', 'minor'];
const FLAGS = [0n, FLAG_WP, FLAG_MINOR];

/** A model of the queue's promises, made of lists. */
class Model {
  ready: Waiting[] = [];
  /** In the order in which they were deferred. */
  deferred: Waiting[] = [];
  events: Message[] = [];
  /** Messages that were not read yet; whether this batch has read the queue to its end. */
  kernel: Message[] = [];
  drained = false;
  /** When the batch began. */
  now = 0;
  out: (Waiting & { over: boolean; cut: boolean }) | undefined;

  /** Reads all messages of the kernel. */
  read(): void {
    this.drained = true;
    for (const one of this.kernel.splice(0)) {
      if (one.is !== 'fault') {
        this.events.push(one);
        continue;
      }
      const flags = one.flags as bigint;
      const kind = flags & FLAG_WP ? 1 : flags & FLAG_MINOR ? 2 : 0;
      this.takeFault(indexOf(one.address), kind, (flags & WRITE) !== 0n, one.tid as number);
    }
  }

  /** The number of undelivered changes, read or not. */
  get changes(): number {
    return this.events.length + this.kernel.filter(({ is }) => is !== 'fault').length;
  }

  /** The next delivery of the batch. */
  next(): Delivery {
    if (this.events.length === 0 && !this.drained) this.read();
    const event = this.event();
    if (event) return deliveryOf(event);
    const one = this.fault(this.now);
    return one ? deliveryOfFault(one) : { is: 'none' };
  }

  takeFault(index: number, kind: number, write: boolean, tid: number): void {
    const known = this.find(index, kind);
    if (known) known.write ||= write;
    else this.ready.push({ index, kind, write, tid, level: 0, due: 0 });
  }

  find(index: number, kind: number): Waiting | undefined {
    return [...this.ready, ...this.deferred].find((one) => one.index === index && one.kind === kind);
  }

  /** Deferred faults that meet the condition become ready, those with the shortest delays first. */
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
  // At every step the core delivers exactly what the model expects, and holds as many faults.
  const random = generator(seed());
  const core = makeCore();
  const model = new Model();
  const pages = 60;
  put(core, 0, pages);
  let now = 1000;
  let delivered = 0;

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
  /** The kernel queues some messages; half of the time they are read at once. */
  const read = () => {
    const messages = Array.from({ length: 1 + random(random(8) ? 4 : 60) }, message);
    if (model.changes + messages.length > 512) return;
    model.kernel.push(...messages);
    if (random(2)) {
      feed(core, ...messages);
    } else {
      bring(core, ...messages);
      model.read();
    }
  };
  const meet = () => {
    // A fill of the current fault's page is cut short by a change or by EAGAIN, or finds the memory unmapped.
    const { out } = model;
    if (!out) return;
    const cut = random(2) === 0;
    const overlaps = model.events.some((event) => touches(event, out.index));
    let action = core.arguments(page(out.index), PAGE).beginFill(Op.COPY, 0);
    if (overlaps) {
      out.cut = true;
    } else if (cut) {
      if (action === Action.IOCTL) model.read();
      while (action === Action.IOCTL) action = drive(core, core.exports.handleResult(EAGAIN));
      out.cut = true;
    } else {
      assert.equal(core.exports.handleResult(ENOENT), Action.IOCTL);
      action = core.exports.handleResult(0);
      out.over = true;
    }
    assert.equal(action, Action.FILLED);
    assert.equal(core.outcome, out.cut && !out.over ? Step.SHORT : core.outcome);
  };

  const expectDelivery = (action: number, step: number) => {
    assert.deepEqual(deliverFrom(core, action, now), model.next(), `step ${step}`);
    if (model.out) delivered++;
  };

  for (let step = 0; step < 200_000; step++) {
    now += random(4) ? 0 : random(20) / 4;
    const kind = random(20);
    if (kind < 3) read();
    else if (kind === 7) meet();
    else if (kind === 8 && random(20) === 0) {
      const first = random(pages);
      take(core, first, 1);
      put(core, first, 1);
      model.drop(first, first + 1);
    } else if (model.out) {
      const answered = random(3) > 0;
      const goesOn = random(3) === 0;
      // Continuing the batch may deliver a change, which may need new tables.
      const answers = (): number => core.exports.handleAnswer(answered, goesOn);
      const action = goesOn ? answers() : still(core, 'handleAnswer', answers);
      model.answer(answered, now);
      if (goesOn) expectDelivery(action, step);
      else assert.equal(drive(core, action, now), Action.DONE);
    } else {
      const begins = random(4) > 0;
      if (begins) {
        model.drained = false;
        model.now = now;
      }
      expectDelivery(begins ? core.exports.begin() : core.exports.next(), step);
    }
    assert.equal(core.waiting, model.waiting, `step ${step}`);
  }
  assert.ok(delivered > 10_000, `only ${delivered} faults were delivered`);
  if (model.out) answer(core, true, now);
  model.answer(true, now);
  // At the end everything that waits is delivered, except what the last changes drop.
  bring(core);
  model.read();
  const changes = model.events.length;
  while (model.event());
  assert.equal(deliverAll(core, now + 64).length, changes + model.waiting);
  assert.equal(core.waiting, 0);
});

function touches(event: Message, index: number): boolean {
  const meets = (start: bigint, end: bigint) => indexOf(start) <= index && index < indexOf(end);
  if (event.is === 'remap')
    return meets(event.from, event.from + event.length) || meets(event.to, event.to + event.length);
  return (event.is === 'remove' || event.is === 'unmap') && meets(event.start, event.end);
}

function deliveryOf(event: Message): Delivery {
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

function deliveryOfFault({ index, kind, write, tid }: Waiting): Delivery {
  const address = page(index);
  return { is: 'fault', address, page: address, kind: KINDS[kind] as string, write, tid };
}

test.run();
