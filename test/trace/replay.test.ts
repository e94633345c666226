// A recording replays identically, also on machines without userfaultfd; a deviation is found at the exact call. All
// recordings here are of the simulated kernel; real.test.ts tests those of the real kernel.

import { strict as assert } from 'node:assert';
import { execFileSync } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { FaultHandler, Pagefault, Wait } from '../../src/index.js';
import {
  advise,
  forked,
  type Program,
  read,
  SimulatedKernel,
  Userfaultfd,
  unmap,
  write,
} from '../../src/sim/index.js';
import { type HandlerFactory, type ReplayResult, replay, TraceReader } from '../../src/trace/index.js';
import { suite } from '../support/harness.js';
import { filling, inMemory, P, record, textOf } from './support/traces.js';

const test = suite('trace/replay');
const WAITS: Wait[] = ['poll', 'block', 'spin', 'adaptive'];

async function replayed(bytes: Uint8Array, factory?: HandlerFactory): Promise<ReplayResult> {
  return replay(TraceReader.of(bytes), factory);
}

async function assertIdentical(bytes: Uint8Array, factory?: HandlerFactory): Promise<ReplayResult> {
  const result = await replayed(bytes, factory);
  assert.deepEqual(result.difference, undefined);
  assert.equal(result.damage, undefined);
  assert.ok(result.identical && result.faults > 0);
  // The replay counts all records except the end.
  assert.equal(result.records, textOf(bytes).length - 1);
  return result;
}

test('every wait strategy, with and without the handler, stopped now and then, for many seeds', async () => {
  for (const wait of WAITS) {
    for (let seed = 1; seed <= 6; seed++) {
      const bytes = record(new SimulatedKernel({ seed }), { wait, seed, stopping: seed % 2 === 0 });
      await assertIdentical(bytes);
      await assertIdentical(bytes, filling);
    }
  }
});

test('old kernels: 4.19, 5.4, 6.1; and without a feature, where something is refused and the handler goes on', async () => {
  for (const version of ['4.14', '4.19', '5.4', '5.15', '6.1']) {
    const stubborn = (uffd: Userfaultfd): FaultHandler => {
      const filler = filling(uffd);
      return {
        ...filler,
        pagefault(fault, face) {
          try {
            uffd.poison(fault.page, P);
          } catch (error) {
            // The handler depends on the error's code, so a replay must throw the same error.
            if ((error as { code: string }).code !== 'ERR_UFFD_UNSUPPORTED') return false;
          }
          return filler.pagefault(fault, face);
        },
      };
    };
    const bytes = record(new SimulatedKernel({ seed: 3, version }), { touches: 20 }, stubborn);
    await assertIdentical(bytes);
    await assertIdentical(bytes, stubborn);
  }
});

test('other page sizes, on the newest kernel and on 4.19', async () => {
  for (const pageSize of [4096, 16384, 65536]) {
    for (const version of ['4.19', '6.18']) {
      const bytes = record(new SimulatedKernel({ seed: 3, version, pageSize }), {});
      assert.equal(TraceReader.of(bytes).meta.pageSize, pageSize);
      await assertIdentical(bytes);
      await assertIdentical(bytes, filling);
    }
  }
});

test('forks, unmapped memory, and children with userfaultfds of their own', async () => {
  for (let seed = 1; seed <= 8; seed++) {
    const kernel = new SimulatedKernel({ seed });
    const { writer, bytes } = inMemory();
    const uffd = Userfaultfd.open({
      kernel,
      record: writer,
      features: ['event-fork', 'event-unmap', 'event-remove'],
    });
    const base = kernel.map(16);
    uffd.register(base, 16 * P);
    const program = function* (): Program {
      for (let page = 0; page < 8; page++) {
        yield write(base + BigInt(page * P), page);
        if (page === 3) yield forked({ program: child });
        if (page === 5) yield advise(base, 2 * P, 4);
        if (page === 6) yield unmap(base + BigInt(8 * P), 2 * P);
      }
      uffd.stop();
    };
    const child = function* (): Program {
      for (let page = 0; page < 6; page++) yield read(base + BigInt(page * P));
    };
    kernel.thread(program());
    const handler = (face: Userfaultfd): FaultHandler => ({ ...filling(face), forked: (one) => one.close() });
    uffd.start(handler(uffd));
    while (uffd.waiting && kernel.step());
    uffd.close();
    await assertIdentical(bytes());
    await assertIdentical(bytes(), handler);
  }
});

test('a program that calls from outside of its handler, and a handler that polls by hand', async () => {
  const kernel = new SimulatedKernel({ seed: 2 });
  const { writer, bytes } = inMemory();
  const uffd = Userfaultfd.open({ kernel, record: writer, features: ['event-remove'] });
  const base = kernel.map(8);
  uffd.register(base, 8 * P, ['missing', 'write-protect']);
  uffd.copy(base, new Uint8Array(4 * P).fill(1), P);
  uffd.zero(base + BigInt(P), P);
  assert.throws(() => uffd.continue(base, P));
  uffd.writeProtect(base, P, true);
  uffd.claim(base + BigInt(4 * P), P);
  uffd.wake(base, P);
  let done = false;
  kernel.thread(
    (function* (): Program {
      yield write(base, 9);
      yield read(base + BigInt(6 * P));
      done = true;
    })(),
  );
  const handler: FaultHandler = {
    pagefault: ({ kind, page }) =>
      kind === 'missing' ? uffd.zero(page, P) === P : uffd.writeProtect(page, P, false) === P,
  };
  while (!done) {
    kernel.step();
    uffd.poll(handler);
  }
  uffd.unregister(base, 8 * P);
  uffd.release();
  const again: HandlerFactory = (face) => ({
    pagefault: ({ kind, page }) =>
      kind === 'missing' ? face.zero(page, P) === P : face.writeProtect(page, P, false) === P,
  });
  await assertIdentical(bytes());
  await assertIdentical(bytes(), again);
});

test('a handler that throws: recorded, and replayed', async () => {
  const throwing = (uffd: Userfaultfd): FaultHandler => {
    let faults = 0;
    const filler = filling(uffd);
    return {
      ...filler,
      pagefault(fault, face) {
        if (++faults === 3) throw new Error('the third is too many');
        return filler.pagefault(fault, face);
      },
    };
  };
  const kernel = new SimulatedKernel({ seed: 4 });
  const { writer, bytes } = inMemory();
  const uffd = Userfaultfd.open({ kernel, record: writer });
  const base = kernel.map(8);
  uffd.register(base, 8 * P);
  let done = false;
  kernel.thread(
    (function* (): Program {
      for (let page = 0; page < 8; page++) yield read(base + BigInt(page * P));
      done = true;
      uffd.stop();
    })(),
  );
  const handler = throwing(uffd);
  assert.throws(() => uffd.start(handler, { wait: 'block' }), /third/);
  while (!done) uffd.start(handler, { wait: 'block' });
  uffd.close();
  await assertIdentical(bytes());
  await assertIdentical(bytes(), throwing);
});

/** Returns at once, and answers the faults in a later turn of the event loop. */
function later(uffd: Userfaultfd): FaultHandler {
  const claimed: Pagefault[] = [];
  return {
    pagefault(fault) {
      claimed.push(fault);
      sleep(0).then(() => {
        for (const { page } of claimed.splice(0)) if (!uffd.closed) uffd.zero(page, P);
      });
      return true;
    },
  };
}

test('a handler that answers later', async () => {
  const kernel = new SimulatedKernel({ seed: 6 });
  const { writer, bytes } = inMemory();
  const uffd = Userfaultfd.open({ kernel, record: writer });
  const base = kernel.map(16);
  uffd.register(base, 16 * P);
  let living = 2;
  for (let first = 0; first < 2; first++) {
    kernel.thread(
      (function* (): Program {
        for (let page = first; page < 16; page += 2) yield read(base + BigInt(page * P));
        living--;
      })(),
    );
  }
  uffd.start(later(uffd));
  while (living > 0) if (!kernel.step()) await sleep(1);
  uffd.close();
  await assertIdentical(bytes());
  await assertIdentical(bytes(), later);
});

// ---- what differs ------------------------------------------------------------------------------------------

test('a handler that does something else: the error names the call, the fault and the calls before', async () => {
  const bytes = record(new SimulatedKernel({ seed: 1 }), { wait: 'block', removing: false });
  const whole = await assertIdentical(bytes, filling);
  const other: HandlerFactory = (uffd) => {
    let faults = 0;
    const filler = filling(uffd);
    return {
      pagefault: (fault, face) =>
        ++faults === 5 ? uffd.zero(fault.page, P) === P : filler.pagefault(fault, face),
    };
  };
  const result = await replayed(bytes, other);
  assert.equal(result.identical, false);
  const { index, expected, came, before, fault } = result.difference ?? assert.fail();
  assert.match(expected, /^copy\(dst 0x7f[0-9a-f]+, length 4096/);
  assert.match(came, /^zero\(start 0x7f[0-9a-f]+, length 4096/);
  assert.ok(fault && expected.includes(`0x${fault.page.toString(16)},`));
  assert.equal(fault.kind, 'missing');
  assert.equal(result.faults, 5);
  assert.equal(result.records, index);
  assert.ok(index < whole.records);
  assert.equal(before.length, 8);
  assert.ok(before.some((call) => call === 'the handler: answered'));
  assert.match(textOf(bytes)[index] as string, /^48 /);
});

test('each way in which a handler can differ is found', async () => {
  const bytes = record(new SimulatedKernel({ seed: 1 }), { removing: false, touches: 20 });
  const ways: Record<string, [FaultHandlerOf, RegExp, RegExp]> = {
    'it answers not now': [() => () => false, /^copy/, /the handler: not now/],
    'it answers without filling': [() => () => true, /^copy/, /the handler: answered/],
    'it fills more': [
      (uffd) => (fault) => uffd.copy(fault.page - (fault.page % 8192n), new Uint8Array(2 * P)) === 2 * P,
      /length 4096/,
      /length 8192/,
    ],
    'it fills elsewhere': [
      (uffd) => (fault) => uffd.copy(fault.page ^ 4096n, new Uint8Array(P)) === P,
      /^copy/,
      /^copy/,
    ],
    'it fills with other options': [
      (uffd) => (fault) => uffd.copy(fault.page, new Uint8Array(P), P, { dontWake: true }) === P,
      /options 0/,
      /options 1/,
    ],
    'it throws': [
      () => () => {
        throw new Error('no');
      },
      /^copy/,
      /threw/,
    ],
    'it wakes besides': [
      (uffd) => (fault) => {
        uffd.copy(fault.page, new Uint8Array(P));
        uffd.wake(fault.page, P);
      },
      /the handler: answered/,
      /^wake/,
    ],
  };
  for (const [way, [handler, expected, came]] of Object.entries(ways)) {
    const { difference } = await replayed(bytes, (uffd) => ({ pagefault: handler(uffd) }));
    assert.match(difference?.expected ?? 'nothing differs', expected, way);
    assert.match(difference?.came ?? '', came, way);
  }
});

type FaultHandlerOf = (uffd: Userfaultfd) => FaultHandler['pagefault'];

// ---- calls that the trace makes ----------------------------------------------------------------------------

/** Records a program whose handler answers a turn of the event loop later. `ahead`: the program fills pages, too. */
async function recordLater(ahead: boolean): Promise<Uint8Array> {
  const kernel = new SimulatedKernel({ seed: 6 });
  const { writer, bytes } = inMemory();
  const uffd = Userfaultfd.open({ kernel, record: writer });
  const base = kernel.map(16);
  uffd.register(base, 16 * P);
  let done = false;
  kernel.thread(
    (function* (): Program {
      for (let page = 0; page < 6; page++) yield read(base + BigInt(page * P));
      done = true;
    })(),
  );
  uffd.start(later(uffd));
  if (ahead) uffd.zero(base + BigInt(8 * P), 4 * P);
  while (!done) if (!kernel.step()) await sleep(1);
  if (ahead) uffd.wake(base, P);
  uffd.close();
  return bytes();
}

test('a handler that does nothing is not identical, whatever it says that it does', async () => {
  const bytes = await recordLater(false);
  const ways: Record<string, FaultHandler['pagefault']> = {
    nothing: () => {},
    true: () => true,
    'a promise that resolves': async () => {},
    'a promise that never settles': () => new Promise(() => {}),
  };
  for (const [way, pagefault] of Object.entries(ways)) {
    const { identical, difference } = await replayed(bytes, () => ({ pagefault }));
    assert.equal(identical, false, way);
    assert.match(difference?.expected ?? '', /^zero\(start 0x7f/, way);
    assert.equal(difference?.came, 'nothing: the handler has not answered this fault', way);
    assert.ok(
      difference?.fault && difference.expected.includes(`0x${difference.fault.page.toString(16)},`),
      way,
    );
    assert.match(textOf(bytes)[difference.index] as string, /^49 /, way);
  }
});

test('a handler that answers all but the last fault is not identical', async () => {
  const bytes = await recordLater(false);
  let faults = 0;
  const all = await assertIdentical(bytes, later);
  const result = await replayed(bytes, (uffd) => {
    const right = later(uffd);
    return { pagefault: (fault, face) => ++faults < all.faults && right.pagefault(fault, face) !== false };
  });
  assert.equal(result.identical, false);
});

test('calls of the program outside of its handler are made as the trace has them, and counted', async () => {
  const bytes = await recordLater(true);
  const result = await assertIdentical(bytes, later);
  assert.equal(result.performed, 2);
  assert.equal((await assertIdentical(bytes)).performed, 0);
  const { difference } = await replayed(bytes, () => ({ pagefault() {} }));
  assert.match(difference?.came ?? '', /has not answered/);
});

test('an error thrown by a handler is reported with its fault, at once and later', async () => {
  const bytes = record(new SimulatedKernel({ seed: 1 }), { wait: 'poll', removing: false, touches: 20 });
  const planted = new Error('planted');
  const throwing: HandlerFactory = () => ({
    pagefault() {
      throw planted;
    },
  });
  const { difference } = await replayed(bytes, throwing);
  assert.equal(difference?.error, planted);
  assert.ok(difference?.fault && difference.expected.includes(`0x${difference.fault.page.toString(16)},`));
  const rejecting: HandlerFactory = () => ({
    async pagefault() {
      await null;
      throw planted;
    },
  });
  const rejected = await replayed(await recordLater(false), rejecting);
  assert.equal(rejected.identical, false);
  assert.equal(rejected.difference?.error, planted);
  assert.ok(rejected.difference?.fault);
});

test('a promise that rejects: recorded, and replayed with the handler and without', async () => {
  const kernel = new SimulatedKernel({ seed: 6 });
  const { writer, bytes } = inMemory();
  const uffd = Userfaultfd.open({ kernel, record: writer });
  const base = kernel.map(4);
  uffd.register(base, 4 * P);
  kernel.thread(
    (function* (): Program {
      for (let page = 0; page < 4; page++) yield read(base + BigInt(page * P));
    })(),
  );
  const rejecting: HandlerFactory = (face) => {
    let faults = 0;
    return {
      async pagefault({ page }) {
        await null;
        if (++faults === 2) throw new Error('planted');
        face.zero(page, P);
      },
    };
  };
  const handler = rejecting(uffd, { pageSize: P });
  uffd.start(handler);
  const step = async (): Promise<boolean> => {
    const more = kernel.step();
    await sleep(0);
    return more;
  };
  await assert.rejects(async () => {
    while (await step());
  }, /planted/);
  assert.equal(uffd.waiting, false);
  uffd.start(handler);
  while (kernel.threads.some(({ done }) => !done)) await step();
  uffd.close();
  await assertIdentical(bytes());
  await assertIdentical(bytes(), rejecting);
});

test('wrong arguments of replay are named', async () => {
  const bytes = record(new SimulatedKernel({ seed: 1 }), { touches: 3 });
  const given = replay as (...all: unknown[]) => Promise<ReplayResult>;
  await assert.rejects(given(), /reader must be a TraceReader; it is undefined/);
  await assert.rejects(given('run.trace'), /reader must be a TraceReader; it is string/);
  await assert.rejects(given(TraceReader.of(bytes), {}), /factory must be a function; it is object/);
  await assert.rejects(given(TraceReader.of(bytes), filling, null), /options must be an object; it is null/);
  await assert.rejects(
    given(TraceReader.of(bytes), filling, { patienceMs: -1 }),
    /patienceMs must be an integer/,
  );
  for (const made of [undefined, null, 7, {}]) {
    await assert.rejects(
      given(TraceReader.of(bytes), () => made),
      /what factory\(uffd, meta\) returns must be a handler with pagefault/,
    );
  }
});

test('a trace that was cut is identical as far as it goes, for every wait strategy', async () => {
  for (const wait of WAITS) {
    const kernel = new SimulatedKernel({ seed: 2 });
    const bytes = record(kernel, { wait, touches: 6000, threads: 2, pages: 4096 });
    const blocks = TraceReader.of(bytes);
    while (blocks.next());
    assert.ok(blocks.blocks > 2, `${blocks.blocks} blocks`);
    for (const cut of [bytes.subarray(0, bytes.length - 1), bytes.subarray(0, bytes.length - 70_000)]) {
      for (const factory of [undefined, filling]) {
        const result = await replayed(cut, factory);
        assert.equal(result.difference, undefined, wait);
        assert.match(result.damage ?? '', /cut|damaged|no end/);
        assert.ok(result.records > 100);
      }
    }
  }
}, 120_000);

test('the error of a factory is passed on; what open refused is refused again', async () => {
  const bytes = record(new SimulatedKernel({ seed: 1 }), { touches: 3 });
  await assert.rejects(
    replayed(bytes, () => {
      throw new Error('no handler today');
    }),
    /no handler today/,
  );
  const refused = inMemory();
  const kernel = new SimulatedKernel({ seed: 1, version: '4.14', privileged: false });
  assert.throws(() => Userfaultfd.open({ kernel, record: refused.writer }));
  refused.writer.close();
  const result = await replayed(refused.bytes());
  assert.ok(result.identical && result.faults === 0);
});

test('contents of pages: none, a hash of each source, or all of it; a replay needs none', async () => {
  for (const contents of ['none', 'hash', 'full'] as const) {
    const { writer, bytes } = inMemory({ contents });
    const kernel = new SimulatedKernel({ seed: 1 });
    const uffd = Userfaultfd.open({ kernel, record: writer });
    const base = kernel.map(32);
    uffd.register(base, 32 * P);
    const source = Uint8Array.from({ length: 24 * P }, (_, at) => at * 7);
    uffd.copy(base, source);
    uffd.copy(base + BigInt(24 * P), source, P);
    uffd.close();
    const reader = TraceReader.of(bytes());
    const kept: Uint8Array[] = [];
    while (reader.next()) if (reader.call.kind === 20) kept.push(reader.payload.slice());
    if (contents === 'none') assert.equal(kept.length, 0);
    if (contents === 'hash') {
      // FNV-1a of 64 bits.
      let hash = 0xcbf29ce484222325n;
      for (const byte of source) hash = BigInt.asUintN(64, (hash ^ BigInt(byte)) * 0x100000001b3n);
      assert.deepEqual(
        kept.map((one) => new DataView(one.buffer).getBigUint64(0, true)),
        [hash, hash],
      );
    }
    if (contents === 'full') assert.ok(Buffer.concat(kept).equals(Buffer.concat([source, source])));
    const result = await replayed(bytes());
    assert.equal(result.difference, undefined);
  }
});

test('one seed gives one trace, byte by byte, on both builds', async () => {
  const script = `
    import { record } from ${JSON.stringify(new URL('./support/traces.js', import.meta.url).href)};
    import { SimulatedKernel } from ${JSON.stringify(new URL('../../src/sim/index.js', import.meta.url).href)};
    for (const wait of ['poll', 'spin']) process.stdout.write(record(new SimulatedKernel({ seed: 77 }), { wait }));`;
  const once = (conditions: string[]): Buffer =>
    execFileSync(process.execPath, [...conditions, '--input-type=module', '-e', script], {
      cwd: fileURLToPath(new URL('.', import.meta.url)),
    });
  const [release, debug, again] = [once([]), once(['--conditions=uffd-debug']), once([])] as const;
  assert.ok(release.length > 500);
  assert.ok(release.equals(debug) && release.equals(again));
});

test.run();
