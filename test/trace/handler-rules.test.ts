// The replay of a foreign handler's trace compares each call with the kernel's rules: what no kernel does is a difference,
// and what a kernel may do is none.

import { strict as assert } from 'node:assert';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { KernelPort } from '../../src/kernel/port.js';
import { REQUEST } from '../../src/sim/abi.js';
import { type ReplayResult, replay, TraceError, TraceReader, TraceWriter } from '../../src/trace/index.js';
import { recordingKernel } from '../../src/trace/recording-port.js';
import { suite } from '../support/harness.js';

const test = suite('trace/handler rules');
const P = 4096;
const FD = 5;
const EAGAIN = -11;
const EEXIST = -17;
const ENODATA = -61;

const folder = mkdtempSync(join(tmpdir(), 'uffd-rules-'));
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
const file = join(folder, 'trace');

/** A call of the handler, and what the kernel has done. */
type Made =
  | { readonly copy: number; readonly pages?: number; readonly result: number; readonly done: number }
  | { readonly removed: number };

/** Records calls, as `recordHandler` does. */
function record(calls: readonly Made[], features: readonly string[] = ['event-remove']): void {
  const words = new BigUint64Array(64);
  let given: () => number = () => 0;
  const inner = {
    now: () => 1,
    ioctl: () => given(),
    read: () => given(),
    close: () => 0,
  } as unknown as KernelPort;
  const origin = { how: 'handler', options: {}, features, ranges: [] };
  const writer = TraceWriter.toFile(file);
  const port = recordingKernel({ pageSize: P, attach: () => inner }, writer, { origin }, true).attach(words);
  for (const call of calls) {
    if ('copy' in call) {
      words.set([BigInt(call.copy * P), 0n, BigInt((call.pages ?? 1) * P), 0n, 0n]);
      given = () => {
        words[4] = BigInt.asUintN(64, BigInt(call.done));
        return call.result;
      };
      port.ioctl(FD, REQUEST.COPY, 0);
    } else {
      given = () => {
        words.set([0x15n, BigInt(call.removed * P), BigInt((call.removed + 1) * P), 0n], 16);
        return 32;
      };
      port.read(FD, 128, 64);
    }
  }
  port.close(FD);
  writer.close();
}

async function replayed(calls: readonly Made[], features?: readonly string[]): Promise<ReplayResult> {
  record(calls, features);
  return replay(TraceReader.fromFile(file));
}

const filled = (copy: number, pages = 1): Made => ({ copy, pages, result: 0, done: pages * P });

test('a page that is filled twice is a difference, unless a removal was read in between', async () => {
  const { identical, difference } = await replayed([filled(3, 4), filled(9), filled(5)]);
  assert.equal(identical, false);
  assert.equal(difference?.index, 2);
  assert.equal(
    difference?.came,
    'EEXIST: call 0 has filled the page at 0x5000, and no removal was read since',
  );
  assert.equal((await replayed([filled(3, 4), { removed: 5 }, filled(5)])).identical, true);
  assert.equal((await replayed([filled(3, 4), { removed: 6 }, filled(5)])).identical, false);
  // The kernel reports no removals.
  assert.equal((await replayed([filled(3), filled(3)], [])).identical, true);
});

test('an output must agree with its result', async () => {
  const fails: Made[] = [
    { copy: 1, pages: 2, result: 0, done: P },
    { copy: 1, result: EEXIST, done: P },
    { copy: 1, result: EAGAIN, done: P },
  ];
  for (const call of fails) assert.match((await replayed([call])).difference?.came ?? '', /agrees/);
  const sound: Made[] = [
    { copy: 1, pages: 2, result: EAGAIN, done: P },
    { copy: 1, result: EEXIST, done: EEXIST },
    { copy: 2, result: EAGAIN, done: EAGAIN },
    { copy: 4, result: ENODATA, done: 0 },
    filled(2),
  ];
  const { identical, difference } = await replayed(sound);
  assert.deepEqual({ identical, difference }, { identical: true, difference: undefined });
});

test('such a trace cannot be replayed with a handler', async () => {
  record([filled(1)]);
  const factory = () => ({ pagefault() {} });
  await assert.rejects(replay(TraceReader.fromFile(file), factory), TraceError);
});

test.run();
