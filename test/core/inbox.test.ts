// Raw messages in, ordered decisions out: each event is decoded whole or not at all, mapping changes come before
// faults, and no fault is offered before the kernel's queue was read to its end.

import { strict as assert } from 'node:assert';
import { Op, Option, Read } from '../../src/core.js';
import { decodeMessages } from '../../src/messages.js';
import { suite } from '../harness.js';
import {
  answer,
  apply,
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
  holding,
  type Message,
  makeCore,
  P,
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

const test = suite('inbox');

const EVENT_REMOVE = 8n;

// ---- decoding ----------------------------------------------------------------------------------------------

const read = (kind: string, write: boolean, tid = 0, offset = 0n): Heard => {
  return { is: 'fault', address: page(3) + offset, page: page(3), kind, write, tid };
};

const HIGH = 0xffff_8000_0000_0000n;
const DECODED: [name: string, message: Message, heard: Heard][] = [
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
      core.exports.inboxRoom();
      write(core, message, message, message);
      if (length % 32 !== 0) assert.equal(core.exports.inboxTake(length), Read.ragged, `${length} bytes`);
      assert.equal(core.exports.inboxWaiting(), 0, `${length} bytes`);
    }
    feed(core, message);
    assert.equal(core.exports.inboxWaiting(), 1);
    assert.deepEqual(hearAll(core), [expected]);
    assert.equal(core.exports.inboxWaiting(), 0);
  });
}

test('an event that is not known is named by its place; what came before it is kept', () => {
  for (const code of [0x00, 0x11, 0x17, 0xff]) {
    const core = makeCore();
    core.exports.inboxRoom();
    const length = write(
      core,
      fault(page(1)),
      remove(page(0), page(1)),
      { is: 'code', code },
      fault(page(2)),
    );
    assert.equal(core.exports.inboxTake(length), Read.unknown);
    assert.equal(core.exports.inboxUnknown(), 64);
    assert.equal(core.exports.inboxWaiting(), 2);
    assert.deepEqual(
      hearAll(core).map((one) => one.is),
      ['removed', 'fault'],
    );
  }
});

test('other results of read', () => {
  const core = makeCore();
  feed(core, fault(page(1)));
  const results: [number, number][] = [
    [-4, Read.more],
    [0, Read.ended],
    [-9, Read.ended],
    [-5, Read.failed],
    [-14, Read.failed],
    [-22, Read.failed],
    [-23, Read.starved],
    [-24, Read.starved],
  ];
  for (const [result, verdict] of results) {
    assert.equal(core.exports.inboxTake(result), verdict, `read gave ${result}`);
    assert.equal(hear(core).is, 'read', `after ${result} the queue is not known to be empty`);
  }
  assert.equal(core.exports.inboxTake(EAGAIN), Read.drained);
  // An interrupted read says nothing new.
  assert.equal(core.exports.inboxTake(-4), Read.more);
  assert.equal(hear(core).is, 'fault');
});

test('a read that left room has seen the end of the queue; one that filled the buffer has not', () => {
  const core = makeCore();
  const room = core.exports.inboxRoom();
  assert.equal(core.exports.inboxTake(write(core, fault(page(1)))), Read.drained);
  assert.equal(hear(core).is, 'fault');
  answer(core, true);
  assert.equal(core.exports.inboxRoom(), room);
  const full = Array.from({ length: room / 32 }, (_, i) => fault(page(i)));
  assert.equal(core.exports.inboxTake(write(core, ...full)), Read.more);
  assert.equal(hear(core).is, 'read');
  drain(core);
  assert.equal(hear(core).is, 'fault');
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

test('no fault is offered before the queue was read to its end; changes are', () => {
  const core = makeCore();
  assert.equal(hear(core).is, 'read');
  feed(core, fault(page(1)));
  assert.equal(hear(core).is, 'read');
  feed(core, remove(page(0), page(1)));
  assert.equal(hear(core).is, 'removed');
  assert.equal(hear(core).is, 'read');
  drain(core);
  // One more message, and the end has to be seen again.
  feed(core, fault(page(2)));
  assert.equal(hear(core).is, 'read');
  drain(core);
  assert.deepEqual(pagesOf([hear(core)]), [1]);
  // A round begins anew.
  core.exports.inboxOpen();
  assert.equal(hear(core).is, 'read');
  drain(core);
  assert.deepEqual(pagesOf([hear(core)]), [2]);
  assert.equal(hear(core).is, 'none');
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
    for (let i = 0; i < messages.length; i += chunk) feed(core, ...messages.slice(i, i + chunk));
    const heard = hearAll(core);
    assert.deepEqual(
      heard.map((one) => one.is),
      ['removed', 'unmapped', 'remapped', 'forked', 'fault', 'fault', 'fault'],
    );
    assert.deepEqual(pagesOf(heard), [5, 4, 6]);
  }
});

test('changes alone can be asked for', () => {
  const core = holding(fault(page(1)), remove(page(0), page(1)), fork(3));
  assert.equal(hearEvent(core).is, 'removed');
  assert.equal(hearEvent(core).is, 'forked');
  assert.equal(hearEvent(core).is, 'none');
  assert.equal(core.exports.inboxWaiting(), 1);
});

test('repeats of a page are one fault; a write upgrades it; kinds are kept apart', () => {
  const core = holding(
    fault(page(1), 0n, 11),
    fault(page(2)),
    fault(page(1) + 0x10n, WRITE, 12),
    fault(page(1), FLAG_WP | WRITE),
    fault(page(1), FLAG_MINOR),
    fault(page(2)),
  );
  assert.equal(core.exports.inboxWaiting(), 4);
  const of = (kind: string, write: boolean, tid = 0): Heard => {
    return { is: 'fault', address: page(1), page: page(1), kind, write, tid };
  };
  const second: Heard = {
    is: 'fault',
    address: page(2),
    page: page(2),
    kind: 'missing',
    write: false,
    tid: 0,
  };
  const all = [of('missing', true, 11), second, of('write-protect', true), of('minor', false)];
  assert.deepEqual(hearAll(core), all);
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
  const heard = hearAll(core);
  assert.deepEqual(pagesOf(heard), [huge, 2 * huge, 3 * huge]);
  assert.equal(heard[0]?.is === 'fault' && heard[0].address, page(huge + 3));
});

test('512 changes may wait; then there is no room before one was delivered', () => {
  const core = makeCore();
  const change = (i: number) => remove(page(i), page(i + 1));
  for (let i = 0; i < 510; i++) feed(core, change(i));
  assert.equal(core.exports.inboxRoom(), 2 * 32);
  feed(core, change(510), change(511));
  assert.equal(core.exports.inboxRoom(), 0);
  assert.equal(core.exports.inboxWaiting(), 512);
  for (let i = 0; i < 2000; i++) {
    const heard = hear(core);
    assert.equal(heard.is === 'removed' && heard.start, page(i));
    assert.equal(core.exports.inboxRoom(), 32);
    feed(core, change(512 + i));
  }
  assert.equal(hearAll(core).length, 512);
  assert.equal(core.exports.inboxRoom(), 128 * 32);
});

// ---- a removal that takes effect late ----------------------------------------------------------------------

test('a page that was removed, filled and is missing again is removed; one that was never removed is not', () => {
  for (const features of [EVENT_REMOVE, 0n]) {
    const core = makeCore(features);
    put(core, 0, 100);
    apply(core, remove(page(3), page(4)));
    // Between the news of a removal and the removal a fill goes through, and is lost; here it is, twice.
    for (const fill of [Op.zero, Op.copy]) {
      transfer(core, fill, 3, 1);
      transfer(core, Op.copy, 4, 2);
      feed(core, fault(page(3)), fault(page(4)));
      assert.equal(stateOf(core, 3), 1, 'a fault that was not offered yet says nothing');
      hearAll(core);
      assert.deepEqual(
        [3, 4, 5].map((index) => stateOf(core, index)),
        [2, 1, 1],
      );
    }
    // A fill says that it is there after all.
    transfer(core, Op.zero, 3, 1);
    assert.equal(stateOf(core, 3), 1);
    // What came in its place was never removed.
    apply(core, unmap(page(3), page(4)));
    put(core, 3, 1);
    transfer(core, Op.copy, 3, 1);
    feed(core, fault(page(3)));
    hearAll(core);
    assert.equal(stateOf(core, 3), 1);
  }
});

test('leave to write to a page that was filled is no news of it', () => {
  const core = makeCore(EVENT_REMOVE);
  put(core, 0, 100, { modes: 3 });
  apply(core, remove(page(3), page(4)));
  transfer(core, Op.copy, 3, 1, Option.writeProtect);
  for (const flags of [FLAG_WP | WRITE, FLAG_MINOR]) {
    feed(core, fault(page(3), flags));
    hearAll(core);
    assert.equal(stateOf(core, 3), 5);
  }
});

test.run();
