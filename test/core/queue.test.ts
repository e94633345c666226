// The queue decodes raw messages and orders the actions: it accepts only whole messages, delivers mapping changes
// before faults, and delivers no fault before the kernel's queue was read to its end.

import { strict as assert } from 'node:assert';
import { Action, Operation as Op, Option, Step } from '../../src/bindings/core.js';
import { decodeMessages } from '../../src/uffd/messages.js';
import { suite } from '../support/harness.js';
import {
  answer,
  apply,
  bring,
  type Delivery,
  deliver,
  deliverAll,
  dispatch,
  drive,
  EAGAIN,
  FLAG_MINOR,
  FLAG_WP,
  fault,
  feed,
  fork,
  holding,
  type Message,
  makeCore,
  P,
  PAGE,
  page,
  pagesOf,
  put,
  remap,
  remove,
  stateOf,
  transfer,
  unmap,
  WRITE,
  write,
} from './support.js';
import { requested } from './transfers.js';

const test = suite('queue');

const EVENT_REMOVE = 8n;

// ---- decoding ----------------------------------------------------------------------------------------------

const read = (kind: string, write: boolean, tid = 0, offset = 0n): Delivery => {
  return { is: 'fault', address: page(3) + offset, page: page(3), kind, write, tid };
};

const HIGH = 0xffff_8000_0000_0000n;
const DECODED: [name: string, message: Message, delivered: Delivery][] = [
  ['a read of a missing page', fault(page(3)), read('missing', false)],
  ['a write to a missing page', fault(page(3), WRITE), read('missing', true)],
  ['a write to a write-protected page', fault(page(3), WRITE | FLAG_WP), read('write-protect', true)],
  ['a read that is a minor fault', fault(page(3), FLAG_MINOR), read('minor', false)],
  ['a write that is a minor fault', fault(page(3), FLAG_MINOR | WRITE), read('minor', true)],
  ['an exact address and a thread', fault(page(3) + 0xabcn, 0n, 4321), read('missing', false, 4321, 0xabcn)],
  ['a thread id of 32 bits', fault(page(3), 0n, 0xffff_ffff), read('missing', false, 0xffff_ffff)],
  ['a fork', fork(77), { is: 'forked', fd: 77n }],
  [
    'a move',
    remap(page(3), page(50), 5n * P),
    { is: 'remapped', from: page(3), to: page(50), length: 5n * P },
  ],
  ['a removal', remove(page(3), page(9)), { is: 'removed', start: page(3), end: page(9) }],
  ['an unmapping', unmap(page(3), page(9)), { is: 'unmapped', start: page(3), end: page(9) }],
  ['addresses of 64 bits', unmap(HIGH, HIGH + P), { is: 'unmapped', start: HIGH, end: HIGH + P }],
];

for (const [name, message, expected] of DECODED) {
  test(`${name}: whole, cut anywhere, and with bytes behind it`, () => {
    const core = makeCore();
    for (let length = 1; length < 96; length++) {
      if (length % 32 === 0) continue;
      assert.equal(core.exports.begin(), Action.READ);
      write(core, message, message, message);
      assert.equal(core.exports.handleRead(length), Action.BROKEN, `${length} bytes`);
      assert.deepEqual([core.errno, core.badOffset, core.badBytes], [0, 0, length]);
      assert.equal(deliver(core).is, 'none', `${length} bytes`);
      assert.equal(core.waiting, 0, `${length} bytes`);
    }
    bring(core, message);
    assert.equal(core.waiting, 1);
    assert.deepEqual(deliverAll(core), [expected]);
    assert.equal(core.waiting, 0);
  });
}

test('an event that is not known is named by its place; what came before it is kept', () => {
  for (const code of [0x00, 0x11, 0x17, 0xff]) {
    const core = makeCore();
    assert.equal(core.exports.begin(), Action.READ);
    const length = write(
      core,
      fault(page(1)),
      remove(page(0), page(1)),
      { is: 'code', code },
      fault(page(2)),
    );
    assert.equal(core.exports.handleRead(length), Action.BROKEN);
    assert.deepEqual([core.errno, core.badOffset, core.badBytes], [0, 64, 32]);
    bring(core);
    assert.equal(core.waiting, 2);
    assert.deepEqual(
      deliverAll(core).map((one) => one.is),
      ['removed', 'fault'],
    );
  }
});

test('other results of read', () => {
  const core = makeCore();
  bring(core, fault(page(1)));
  const results: [result: number, action: number, errno?: number][] = [
    // EINTR: the core reads again.
    [-4, Action.READ],
    [0, Action.ENDED],
    [-9, Action.ENDED],
    [-5, Action.BROKEN, 5],
    [-14, Action.BROKEN, 14],
    [-22, Action.BROKEN, 22],
    [-23, Action.STARVED],
    [-24, Action.STARVED],
  ];
  let action = core.exports.begin();
  for (const [result, expected, errno] of results) {
    assert.equal(action, Action.READ);
    action = core.exports.handleRead(result);
    assert.equal(action, expected, `read gave ${result}`);
    if (errno) assert.equal(core.errno, errno);
    assert.equal(core.starved, expected === Action.STARVED ? 1 : 0, `read gave ${result}`);
    if (action !== Action.READ) action = core.exports.next();
    assert.equal(action, Action.READ, `after ${result} the queue is not known to be empty`);
  }
  assert.equal(core.exports.handleRead(EAGAIN), Action.FAULT);
});

test('a read that left room has seen the end of the queue; one that filled the buffer has not', () => {
  const core = makeCore();
  assert.equal(core.exports.begin(), Action.READ);
  const { room } = core;
  assert.equal(room, 128 * 32);
  assert.equal(core.exports.handleRead(write(core, fault(page(1)))), Action.FAULT);
  answer(core, true);
  assert.equal(core.exports.begin(), Action.READ);
  assert.equal(core.room, room);
  const full = Array.from({ length: room / 32 }, (_, i) => fault(page(i)));
  assert.equal(core.exports.handleRead(write(core, ...full)), Action.READ);
  assert.equal(core.exports.handleRead(EAGAIN), Action.FAULT);
});

test('decodeMessages gives all in their order, and changes nothing', () => {
  const core = makeCore();
  const most = 300;
  const all = Array.from({ length: most }, (_, i) =>
    i % 3 === 0 ? fault(page(i), WRITE | FLAG_WP, i) : i % 3 === 1 ? remap(page(i), page(2), 4096n) : fork(i),
  );
  const bytes = new Uint8Array(most * 32);
  all.forEach((one, i) => {
    write(core, one);
    bytes.set(core.messageBytes(0, 32), i * 32);
  });
  const decoded = decodeMessages(bytes);
  assert.equal(decoded.length, most);
  assert.deepEqual(decoded.slice(0, 3), [
    { event: 'pagefault', address: page(0), access: 'write', kind: 'write-protect', tid: 0 },
    { event: 'remap', from: page(1), to: page(2), length: 4096 },
    { event: 'fork', fd: 2 },
  ]);
  assert.deepEqual(decoded[299], { event: 'fork', fd: 299 });
  assert.throws(() => decodeMessages(bytes.subarray(1)), /multiple of 32/);
  bytes.set([0x99], 32);
  assert.deepEqual(decodeMessages(bytes)[1], { event: 'unknown', code: 0x99, bytes: bytes.slice(32, 64) });
  write(core, remove(page(1), page(3)), unmap(page(4), page(5)), fault(page(6), FLAG_MINOR));
  assert.deepEqual(decodeMessages(core.messageBytes(0, 96)), [
    { event: 'remove', start: page(1), end: page(3) },
    { event: 'unmap', start: page(4), end: page(5) },
    { event: 'pagefault', address: page(6), access: 'read', kind: 'minor', tid: 0 },
  ]);
});

// ---- order -------------------------------------------------------------------------------------------------

test('no fault is delivered before the queue was read to its end; changes are', () => {
  const core = makeCore();
  assert.equal(core.exports.begin(), Action.READ);
  assert.equal(core.exports.handleRead(EAGAIN), Action.DONE);
  // A fill has read both messages, so the change needs no further read.
  bring(core, fault(page(1)), remove(page(0), page(1)));
  assert.equal(core.exports.begin(), Action.REMOVED);
  assert.equal(core.exports.next(), Action.READ);
  // A read that fills the buffer does not show the end of the queue.
  const full = Array.from({ length: core.room / 32 }, () => fault(page(2)));
  assert.equal(core.exports.handleRead(write(core, ...full)), Action.READ);
  assert.equal(core.exports.handleRead(EAGAIN), Action.FAULT);
  assert.equal(core.start, page(1));
  answer(core, true);
  // A new batch reads the queue again. After the change, the batch continues without a further read.
  feed(core, unmap(page(90), page(91)));
  assert.equal(core.exports.begin(), Action.READ);
  assert.equal(core.exports.handleRead(write(core, remove(page(0), page(1)))), Action.REMOVED);
  assert.equal(core.exports.next(), Action.FAULT);
  assert.equal(core.start, page(2));
  assert.equal(core.exports.handleAnswer(true, true), Action.DONE, 'what came since is for the next batch');
  assert.equal(deliver(core).is, 'unmapped');
  assert.equal(deliver(core).is, 'none');
});

test('changes come before faults and both in order, however they were read', () => {
  const messages = [
    fault(page(5)),
    remove(page(50), page(51)),
    fault(page(4)),
    unmap(page(60), page(61)),
    remap(page(70), page(80), P),
    fault(page(6)),
    fork(9),
  ];
  for (const chunk of [1, 2, 3, 7]) {
    const core = makeCore();
    put(core, 0, 100);
    for (let i = 0; i < messages.length; i += chunk) bring(core, ...messages.slice(i, i + chunk));
    const delivered = deliverAll(core);
    assert.deepEqual(
      delivered.map((one) => one.is),
      ['removed', 'unmapped', 'remapped', 'forked', 'fault', 'fault', 'fault'],
    );
    assert.deepEqual(pagesOf(delivered), [5, 4, 6]);
  }
});

test('at the end changes alone are delivered', () => {
  const core = holding();
  bring(core, fault(page(1)), remove(page(0), page(1)), fork(3));
  assert.equal(core.exports.beginEnd(false), Action.REMOVED);
  assert.equal(core.exports.next(), Action.FORKED);
  assert.equal(core.waiting, 1);
  // The core wakes the waiting thread.
  assert.equal(core.exports.next(), Action.IOCTL);
  assert.deepEqual(requested(core), { is: 'wake', start: 1, pages: 1 });
  assert.equal(core.exports.handleResult(0), Action.DONE);
  assert.equal(core.waiting, 0);
});

test('waiters at a place that is gone are woken before the change is delivered, also after EINTR', () => {
  const cases: [change: Message, woken: [start: number, pages: number][], action: number][] = [
    [remove(page(3), page(9)), [], Action.REMOVED],
    [unmap(page(3), page(9)), [[3, 6]], Action.UNMAPPED],
    [
      remap(page(3), page(50), 5n * P),
      [
        [3, 5],
        [50, 5],
      ],
      Action.REMAPPED,
    ],
    [fork(9), [], Action.FORKED],
  ];
  for (const [change, woken, expected] of cases) {
    const core = holding(change);
    let action = dispatch(core);
    for (const [start, pages] of woken) {
      for (const result of [-4, -4, 0]) {
        assert.equal(action, Action.IOCTL);
        assert.deepEqual(requested(core), { is: 'wake', start, pages });
        action = core.exports.handleResult(result);
      }
    }
    assert.equal(action, expected);
    // Closing the descriptor wakes all threads. An owner that hands the descriptor on must wake them as above.
    for (const reads of [true, false]) {
      const last = holding();
      bring(last, change);
      const first = drive(last, last.exports.beginEnd(reads));
      assert.equal(first, reads || woken.length === 0 ? expected : Action.IOCTL, change.is);
    }
  }
});

test('repeats of a page are one fault; a write upgrades it; kinds are kept apart', () => {
  const core = holding();
  bring(
    core,
    fault(page(1), 0n, 11),
    fault(page(2)),
    fault(page(1) + 0x10n, WRITE, 12),
    fault(page(1), FLAG_WP | WRITE),
    fault(page(1), FLAG_MINOR),
    fault(page(2)),
  );
  assert.equal(core.waiting, 4);
  const of = (kind: string, write: boolean, tid = 0): Delivery => {
    return { is: 'fault', address: page(1), page: page(1), kind, write, tid };
  };
  const second: Delivery = {
    is: 'fault',
    address: page(2),
    page: page(2),
    kind: 'missing',
    write: false,
    tid: 0,
  };
  const all = [of('missing', true, 11), second, of('write-protect', true), of('minor', false)];
  assert.deepEqual(deliverAll(core), all);
});

test('in a range of huge pages a fault is about the huge page', () => {
  const core = makeCore();
  const huge = 512;
  put(core, huge, 2 * huge, { pageShift: 21 });
  feed(
    core,
    fault(page(huge + 3)),
    fault(page(2 * huge - 1) + 5n),
    fault(page(2 * huge)),
    fault(page(3 * huge)),
  );
  const delivered = deliverAll(core);
  assert.deepEqual(pagesOf(delivered), [huge, 2 * huge, 3 * huge]);
  assert.equal(delivered[0]?.is === 'fault' && delivered[0].address, page(huge + 3));
});

test('512 changes may wait; then there is no room before one was delivered', () => {
  const core = makeCore();
  const change = (i: number) => remove(page(i), page(i + 1));
  for (let i = 0; i < 510; i++) bring(core, change(i));
  assert.equal(bring(core, change(510), change(511)), 2 * 32);
  assert.equal(core.waiting, 512);
  for (let i = 0; i < 2000; i++) {
    feed(core, change(512 + i));
    // A fill that would have to read ends short instead, and a batch delivers without reading.
    let action = core.arguments(page(0) - P, PAGE).beginFill(Op.ZEROPAGE, 0);
    for (let tries = 0; action === Action.IOCTL; tries++) {
      assert.ok(tries < 10);
      action = core.exports.handleResult(EAGAIN);
    }
    assert.equal(action, Action.FILLED);
    assert.equal(core.outcome, Step.SHORT);
    const delivered = deliver(core);
    assert.equal(delivered.is === 'removed' && delivered.start, page(i));
    assert.equal(bring(core), 32);
  }
  assert.equal(deliverAll(core).length, 512);
  assert.equal(bring(core), 128 * 32);
});

// ---- a removal that takes effect late ----------------------------------------------------------------------

test('a page that was removed, filled and is missing again is removed; one that was never removed is not', () => {
  for (const features of [EVENT_REMOVE, 0n]) {
    const core = makeCore(features);
    put(core, 0, 100);
    apply(core, remove(page(3), page(4)));
    // The kernel posts the event before it removes the pages: a fill in between succeeds and is then lost. Here, twice.
    for (const fill of [Op.ZEROPAGE, Op.COPY]) {
      transfer(core, fill, 3, 1);
      transfer(core, Op.COPY, 4, 2);
      bring(core, fault(page(3)), fault(page(4)));
      assert.equal(stateOf(core, 3), 1, 'a fault that was not delivered yet says nothing');
      deliverAll(core);
      assert.deepEqual(
        [3, 4, 5].map((index) => stateOf(core, index)),
        [2, 1, 1],
      );
    }
    // A further fill makes the page present again.
    transfer(core, Op.ZEROPAGE, 3, 1);
    assert.equal(stateOf(core, 3), 1);
    // After an unmap, the new memory at this address was never removed.
    apply(core, unmap(page(3), page(4)));
    put(core, 3, 1);
    transfer(core, Op.COPY, 3, 1);
    feed(core, fault(page(3)));
    deliverAll(core);
    assert.equal(stateOf(core, 3), 1);
  }
});

test('a write-protect fault of a page that was filled says nothing of its presence', () => {
  const core = makeCore(EVENT_REMOVE);
  put(core, 0, 100, { modes: 3 });
  apply(core, remove(page(3), page(4)));
  transfer(core, Op.COPY, 3, 1, Option.WRITE_PROTECT);
  feed(core, fault(page(3), FLAG_WP | WRITE));
  deliverAll(core);
  assert.equal(stateOf(core, 3), 5);
});

test.run();
