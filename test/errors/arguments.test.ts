// Wrong arguments of public functions: the error has a code, and its message names the argument and the value.

import { strict as assert } from 'node:assert';
import { Mapping, Userfaultfd } from '../../src/index.js';
import { decodeMessages } from '../../src/portable.js';
import { serve } from '../../src/serve/index.js';
import * as sim from '../../src/sim/index.js';
import { perfettoJson, summarize, TraceReader, TraceWriter } from '../../src/trace/index.js';
import { suite } from '../support/harness.js';

const test = suite('errors/arguments');

type Call = (value: never) => unknown;
const open = (options: object): unknown => sim.Userfaultfd.open(options);
const kernel = new sim.SimulatedKernel();

/** Calls, wrong arguments for each, and the beginning of the message. */
const WRONG: Readonly<Record<string, readonly [call: Call, values: readonly unknown[], message: string]>> = {
  open: [Userfaultfd.open, [null, 'x', 5], 'options must be an object; it is'],
  probe: [Userfaultfd.probe, [null, 'x', 5], 'options must be an object; it is'],
  wrap: [(value) => Userfaultfd.wrap(0, value), [null, 'x', 5], 'options must be an object; it is'],
  features: [
    (features) => open({ kernel, features }),
    ['event-remove', 5],
    'features must be a list of names',
  ],
  optional: [
    (optional) => open({ kernel, optional }),
    ['event-remove', 5],
    'optional must be a list of names',
  ],
  kernel: [(given) => open({ kernel: given }), [{}, 'x', null], 'kernel must be a kernel to run on; it is'],
  record: [
    (record) => open({ kernel, record }),
    [{}, 'a.trace', null],
    'record must be a TraceWriter; it is',
  ],
  ranges: [
    (ranges) => Userfaultfd.wrap(0, { kernel, ranges }),
    [{}, 5],
    'ranges must be a list of ranges; it is',
  ],
  'ranges: each': [
    (range) => Userfaultfd.wrap(0, { kernel, ranges: [range] }),
    [null, undefined, 'x'],
    'ranges: each must be an object; it is',
  ],
  anonymous: [
    (options) => Mapping.anonymous(4096, options),
    [null, 'x', 5],
    'options must be an object; it is',
  ],
  attach: [Mapping.attach, [undefined, null, 'x'], 'shared must be an object; it is'],
  serve: [serve, [undefined, null, 'x'], 'options must be an object; it is'],
  SimulatedKernel: [
    (value) => new sim.SimulatedKernel(value),
    [null, 'x', 5],
    'options must be an object; it is',
  ],
  version: [
    (version) => new sim.SimulatedKernel({ version }),
    ['x', 5, {}],
    "version must be a kernel's version",
  ],
  seed: [(seed) => new sim.SimulatedKernel({ seed }), ['x', null], 'seed must be a number; it is'],
  thread: [
    (program) => kernel.thread(program),
    [function* () {}, 5],
    'program must be a generator that was called',
  ],
  TraceReader: [
    (source) => new TraceReader(source),
    [undefined, null, {}, 'x'],
    'source must be a TraceSource; it is',
  ],
  'TraceReader.of': [TraceReader.of, [undefined, null, 'x'], 'bytes must be a Uint8Array; it is'],
  TraceWriter: [(sink) => new TraceWriter(sink), [undefined, null, 'x'], 'sink must be a TraceSink; it is'],
  summarize: [summarize, [undefined, null, {}, 'x'], 'reader must be a TraceReader; it is'],
  perfettoJson: [
    (reader) => [...perfettoJson(reader)],
    [undefined, {}, 'x'],
    'reader must be a TraceReader; it is',
  ],
  decodeMessages: [decodeMessages, [undefined, null, 'x'], 'bytes must be a Uint8Array; it is'],
};

test('wrong arguments are errors that name them', async () => {
  for (const [what, [call, values, message]] of Object.entries(WRONG)) {
    for (const value of values) {
      await assert.rejects(
        async () => call(value as never),
        (error: Error & { code?: string }) => {
          assert.ok(error.message.startsWith(message), `${what}, ${String(value)}: ${error.message}`);
          assert.match(error.code ?? '', /^ERR_(INVALID_ARG|OUT_OF_RANGE)/, what);
          return true;
        },
      );
    }
  }
});

test('wrong options of calls on a userfaultfd are errors that name them', () => {
  const memory = kernel.map(1);
  const uffd = sim.Userfaultfd.open({ kernel });
  uffd.register(memory, 4096);
  const page = new Uint8Array(4096);
  const calls: Readonly<Record<string, (options: never) => unknown>> = {
    register: (options) => uffd.register(memory, 4096, 'missing', options),
    copy: (options) => uffd.copy(memory, page, 4096, options),
    zero: (options) => uffd.zero(memory, 4096, options),
    answerFrom: (options) => uffd.answerFrom(memory, 4096, page, options),
    start: (options) => uffd.start({ pagefault() {} }, options),
    poll: (options) => uffd.poll({ pagefault() {} }, options),
  };
  for (const [what, call] of Object.entries(calls)) {
    for (const value of [null, 'x', 5])
      assert.throws(() => call(value as never), /^TypeError: options must be an object; it is/, what);
  }
  assert.throws(
    () => uffd.writeProtect(memory, 4096, undefined as never),
    /on must be true or false; it is undefined/,
  );
  assert.equal(uffd.pageState(memory), 'missing');
  uffd.close();
});

test.run();
