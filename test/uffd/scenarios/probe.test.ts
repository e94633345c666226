// The features that a kernel offers: the probe leaves nothing behind. Bits of a newer kernel that this library has no
// name for are kept and can be used.

import * as assert from 'uvu/assert';
import { type Feature, type Operation, UffdError, Userfaultfd } from '../../../src/index.js';
import { suite } from '../../support/harness.js';
import { holdings, kernelWith, map, needKernel, P } from '../../support/real-kernel.js';

const test = suite('probe');
const API = 0x3f;
const REGISTER = 0x00;

/** A simulated newer kernel: it knows features 17 and 40, and allows an operation 9 on every range. */
function newer() {
  const asked: bigint[] = [];
  const kernel = kernelWith((port, memory) => {
    const ioctl = port.ioctl.bind(port);
    const unknown = (1n << 17n) | (1n << 40n);
    return {
      ioctl(fd, request, offset) {
        const words = () => new BigUint64Array(memory.buffer, offset, 4);
        if ((request & 0xffff) === (0xaa00 | API)) {
          const features = words()[1] as bigint;
          asked.push(features);
          words()[1] = features & ~unknown;
          const result = ioctl(fd, request, offset);
          // The kernel reports everything that it can do, not only the requested features.
          words()[1] = (words()[1] as bigint) | unknown;
          words()[2] = (words()[2] as bigint) | (1n << 11n);
          return result;
        }
        const result = ioctl(fd, request, offset);
        if ((request & 0xffff) === (0xaa00 | REGISTER)) words()[3] = (words()[3] as bigint) | (1n << 9n);
        return result;
      },
    };
  });
  return { kernel, asked };
}

test('it says what can be had, and leaves no descriptor behind', () => {
  needKernel();
  const before = holdings();
  const offered = Userfaultfd.probe();
  assert.equal(holdings(), before);
  assert.is(offered.pageSize, P);
  assert.ok(offered.features.has('pagefault-flag-wp'));
  for (const operation of ['register', 'unregister', 'api'] as const)
    assert.ok(offered.operations.has(operation), operation);
  const known = [...offered.features].filter((name) => name !== 'sigbus');
  const uffd = Userfaultfd.open({ features: known });
  assert.equal([...uffd.features].sort(), known.sort(), 'all of it at once');
  uffd.close();
});

test('by each way', () => {
  needKernel();
  for (const via of ['syscall', 'device'] as const) {
    for (const userModeOnly of [true, false]) {
      const offered = Userfaultfd.probe({ via, userModeOnly });
      assert.equal([offered.via, offered.userModeOnly], [via, userModeOnly]);
    }
  }
  const shut = kernelWith(() => ({ userfaultfd: () => -1, openDevice: () => -13 }));
  assert.throws(
    () => Userfaultfd.probe({ kernel: shut }),
    (error: unknown) => error instanceof UffdError && error.code === 'EPERM',
  );
  assert.throws(() => Userfaultfd.probe({ via: 'door' as 'device' }), /^via must be one of/);
});

test('features without a name are reported by their bit, and can be requested', () => {
  needKernel();
  const { kernel, asked } = newer();
  const offered = Userfaultfd.probe({ kernel });
  assert.ok(offered.features.has('bit-17') && offered.features.has('bit-40'));
  assert.ok(offered.features.has('thread-id'));
  assert.ok(offered.operations.has('bit-11'));
  asked.length = 0;
  const uffd = Userfaultfd.open({
    kernel,
    features: ['thread-id', 'bit-40'],
    optional: ['bit-17', 'bit-50'],
  });
  assert.equal([...uffd.features].sort(), ['bit-17', 'bit-40', 'thread-id']);
  assert.is(asked.at(-1), (1n << 8n) | (1n << 17n) | (1n << 40n), 'and that is what the kernel was asked');
  uffd.close();
});

test('where the kernel does not have them, the error names them', () => {
  needKernel();
  assert.throws(() => Userfaultfd.open({ features: ['bit-62', 'thread-id'] }), /lacks 'bit-62'/);
  const uffd = Userfaultfd.open({ optional: ['bit-62', 'thread-id'] });
  assert.ok(uffd.features.has('thread-id') && !uffd.features.has('bit-62'));
  uffd.close();
  for (const name of ['bit-64', 'bit--1', 'bit-', 'bit-1.5', 'bit-100']) {
    assert.throws(() => Userfaultfd.open({ features: [name as Feature] }), /there is no feature/, name);
  }
});

test('a name and its bit are the same feature', () => {
  needKernel();
  const uffd = Userfaultfd.open({ features: ['bit-8'] });
  assert.equal([...uffd.features], ['thread-id']);
  uffd.close();
});

test('operations without a name are kept with their range, also by the next owner', () => {
  needKernel();
  const { kernel } = newer();
  const uffd = Userfaultfd.open({ kernel });
  const base = map(1);
  const has = (operations: ReadonlySet<Operation> | undefined) =>
    operations?.has('bit-9') === true && operations.has('copy');
  assert.ok(has(uffd.register(base, P)));
  const [range] = uffd.ranges;
  assert.ok(range && has(range.operations));
  const next = Userfaultfd.wrap(uffd.release(), { ranges: range ? [range] : [] });
  assert.ok(has(next.ranges[0]?.operations));
  next.close();
});

test.run();
