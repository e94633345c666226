// Opening and adopting a userfaultfd, and arguments that the library refuses before any system call.

import { openSync } from 'node:fs';
import * as assert from 'uvu/assert';
import { linuxKernel } from '../../shim/linux.js';
import { FEATURES, Userfaultfd } from '../../src/index.js';
import { suite } from '../support/harness.js';
import { holdings, kernelWith, map, needKernel, openWith, P, pageOf } from '../support/real-kernel.js';

const test = suite('uffd/open');

test('isSupported asks without making a descriptor', () => {
  needKernel();
  const before = holdings();
  for (let n = 0; n < 10; n++) assert.is(Userfaultfd.isSupported(), true);
  assert.equal(holdings(), before);
});

test('by system call and through the device, for both modes and for user mode only', () => {
  needKernel();
  for (const via of ['syscall', 'device'] as const) {
    for (const userModeOnly of [false, true]) {
      const uffd = Userfaultfd.open({ via, userModeOnly });
      assert.is(uffd.via, via);
      assert.is(uffd.userModeOnly, userModeOnly);
      const base = map(1);
      uffd.register(base, P);
      assert.is(uffd.zero(base, P), P);
      uffd.close();
    }
  }
});

test("'auto' takes the next way where one is shut, and says which it took", () => {
  needKernel();
  const noSyscall = kernelWith(() => ({ userfaultfd: () => -1 }));
  const device = Userfaultfd.open({ kernel: noSyscall });
  assert.is(device.via, 'device');
  assert.is(device.userModeOnly, false);
  device.close();

  const unprivileged = kernelWith((port) => {
    const userfaultfd = port.userfaultfd.bind(port);
    return { userfaultfd: (flags) => (flags & 1 ? userfaultfd(flags) : -1), openDevice: () => -13 };
  });
  const userOnly = Userfaultfd.open({ kernel: unprivileged });
  assert.is(userOnly.via, 'syscall');
  assert.is(userOnly.userModeOnly, true);
  userOnly.close();

  const shut = kernelWith(() => ({ userfaultfd: () => -1, openDevice: () => -13 }));
  assert.throws(() => Userfaultfd.open({ kernel: shut }), /EPERM.*CAP_SYS_PTRACE.*\/dev\/userfaultfd/);
  const absent = kernelWith(() => ({ userfaultfd: () => -38, openDevice: () => -2 }));
  assert.throws(() => Userfaultfd.open({ kernel: absent }), /ENOSYS.*CONFIG_USERFAULTFD/);
});

test('features: what was asked for is on; what the kernel lacks is named, with its version', () => {
  const uffd = openWith(['event-remove', 'thread-id']);
  assert.equal([...uffd.features].sort(), ['event-remove', 'thread-id']);
  uffd.close();

  // Linux 5.6 knows no feature bit above 8.
  const old = kernelWith((port, memory) => {
    const ioctl = port.ioctl.bind(port);
    return {
      ioctl(fd, request, offset) {
        if (request !== 0xc018aa3f) return ioctl(fd, request, offset);
        const struct = new DataView(memory.buffer, offset);
        if (struct.getBigUint64(8, true) & ~0x1ffn) return -22;
        const result = ioctl(fd, request, offset);
        struct.setBigUint64(8, 0x1ffn, true);
        return result;
      },
    };
  });
  assert.throws(
    () => Userfaultfd.open({ kernel: old, features: ['event-remove', 'poison', 'move'] }),
    /lacks 'poison' \(Linux 6\.6\), 'move' \(Linux 6\.8\)/,
  );
  const without = Userfaultfd.open({
    kernel: old,
    features: ['event-remove'],
    optional: ['poison', 'thread-id'],
  });
  assert.equal([...without.features].sort(), ['event-remove', 'thread-id']);
  without.close();
});

test('every feature this kernel has can be had under optional', () => {
  needKernel();
  const uffd = Userfaultfd.open({ optional: FEATURES.filter((name) => name !== 'sigbus') });
  assert.ok(uffd.features.has('event-remove'));
  uffd.close();
});

test('wrap refuses what is no userfaultfd, and leaves it to its owner', () => {
  needKernel();
  const file = openSync('/dev/null', 'r');
  assert.throws(() => Userfaultfd.wrap(file), /ENOTTY.*no userfaultfd/);
  assert.throws(() => Userfaultfd.wrap(9999), /EBADF.*no open file descriptor/);
  const raw = linuxKernel().attach(new WebAssembly.Memory({ initial: 1 }));
  const unshaken = raw.userfaultfd(0x80800);
  assert.throws(() => Userfaultfd.wrap(unshaken), /EINVAL.*handshake/);
  assert.is(raw.close(unshaken), 0);
  for (const fd of [-1, 1.5, Number.NaN, 2 ** 31, '3', 3n, null]) {
    assert.throws(() => Userfaultfd.wrap(fd as number), /fd must be/, String(fd));
  }
});

test('a blocking descriptor is made non-blocking, or poll would say error for ever', () => {
  needKernel();
  const port = linuxKernel().attach(new WebAssembly.Memory({ initial: 1 }));
  const opener = Userfaultfd.open();
  const fd = opener.release();
  assert.is(port.fcntl(fd, 4, 0), 0);
  const uffd = Userfaultfd.wrap(fd);
  assert.ok(port.fcntl(fd, 3, 0) & 0x800);
  uffd.close();
});

test('bad arguments are refused by name, before the kernel is asked', () => {
  let asked = 0;
  const counting = kernelWith((port) => {
    const ioctl = port.ioctl.bind(port);
    return {
      ioctl(...args) {
        asked++;
        return ioctl(...args);
      },
    };
  });
  needKernel();
  const uffd = Userfaultfd.open({ kernel: counting });
  const base = map(4);
  const page = pageOf(1);
  uffd.register(base, 4 * P);
  asked = 0;
  const cases: [string, () => unknown, RegExp][] = [
    ['length 0', () => uffd.register(base, 0), /^length must be a positive multiple of the page size/],
    ['length −P', () => uffd.zero(base, -P), /^length must be/],
    ['length NaN', () => uffd.zero(base, Number.NaN), /^length must be.*NaN/],
    ['length P+1', () => uffd.wake(base, P + 1), /^length must be/],
    ['length Infinity', () => uffd.unregister(base, Number.POSITIVE_INFINITY), /^length must be/],
    ['length bigint', () => uffd.zero(base, 4096n as unknown as number), /^length must be a number/],
    ['length missing', () => uffd.zero(base, undefined as unknown as number), /^length must be a number/],
    ['start unaligned', () => uffd.zero(base + 1n, P), /^start must be a multiple of the page size/],
    [
      'start number',
      () => uffd.zero(Number(base) as unknown as bigint, P),
      /^start must be an address, a bigint/,
    ],
    ['start negative', () => uffd.register(-4096n, P), /^start must be an address/],
    ['start too high', () => uffd.register(1n << 63n, P), /^start must be an address/],
    ['range too high', () => uffd.register((1n << 56n) - 4096n, 2 * P), /^start \+ length must be/],
    ['dst unaligned', () => uffd.copy(base + 8n, page), /^dst must be a multiple/],
    ['src too short', () => uffd.copy(base, page, 2 * P), /^length must be at most what src holds, 4096/],
    ['src no pages', () => uffd.copy(base, new Uint8Array(100)), /^length must be a positive multiple/],
    ['src no view', () => uffd.copy(base, 'text' as unknown as Uint8Array), /^src must be a Buffer/],
    ['src null', () => uffd.copy(base, null as unknown as Uint8Array), /^src must be a Buffer/],
    ['src without length', () => uffd.copy(base, base), /^length must be a number/],
    ['move src unaligned', () => uffd.move(base, base + 1n, P), /^src must be a multiple/],
    [
      'mode unknown',
      () => uffd.register(base, P, 'sometimes' as 'missing'),
      /^mode: there is no mode 'sometimes'/,
    ],
    ['mode empty', () => uffd.register(base, P, []), /^mode: at least one/],
    ['window 0', () => uffd.window(base, 0), /^pages must be an integer from 1/],
    ['wait unknown', () => uffd.start({ pagefault() {} }, { wait: 'nap' as 'spin' }), /^wait must be one of/],
    ['handler without pagefault', () => uffd.start({} as never), /^handler.pagefault must be a function/],
    [
      'feature unknown',
      () => Userfaultfd.open({ features: ['x' as 'sigbus'] }),
      /^features: there is no feature 'x'/,
    ],
    ['via unknown', () => Userfaultfd.open({ via: 'door' as 'device' }), /^via must be one of/],
    [
      'userModeOnly unknown',
      () => Userfaultfd.open({ userModeOnly: 1 as never }),
      /^userModeOnly must be one of/,
    ],
  ];
  for (const [name, act, message] of cases) {
    assert.throws(
      act,
      (error: Error & { code?: string }) => {
        assert.match(error.message, message, name);
        assert.ok(error instanceof RangeError || error instanceof TypeError, `${name}: ${error.name}`);
        return /^ERR_(OUT_OF_RANGE|INVALID_ARG_(TYPE|VALUE))$/.test(error.code ?? '');
      },
      name,
    );
  }
  assert.is(asked, 0, 'the kernel was not asked');
  uffd.close();
});

test('a closed descriptor is refused with EBADF, whatever is asked', () => {
  const uffd = openWith();
  const base = map(1);
  uffd.register(base, P);
  uffd.close();
  const calls = [
    () => uffd.register(base, P),
    () => uffd.unregister(base, P),
    () => uffd.copy(base, pageOf(1)),
    () => uffd.zero(base, P),
    () => uffd.wake(base, P),
    () => uffd.poll({ pagefault() {} }),
    () => uffd.release(),
  ];
  for (const call of calls) assert.throws(call, (error: { code: string }) => error.code === 'EBADF');
});

test('what the kernel refuses says which call, where, and what to do', () => {
  const uffd = openWith();
  const other = openWith();
  const base = map(2);
  uffd.register(base, P);
  const refusals: [() => unknown, string, RegExp][] = [
    [
      () => other.register(base, P),
      'EBUSY',
      /UFFDIO_REGISTER at 0x[0-9a-f]+, 4096 bytes failed: another userfaultfd/,
    ],
    [() => uffd.register(4096n, P), 'EINVAL', /UFFDIO_REGISTER.*nothing is mapped/],
    [() => uffd.register(base, P, 'minor'), 'EINVAL', /'minor' needs shared memory/],
  ];
  for (const [act, code, message] of refusals) {
    assert.throws(act, (error: Error & { code: string; errno: number; syscall: string }) => {
      assert.is(error.code, code);
      assert.ok(error.errno < 0);
      assert.is(error.syscall, 'UFFDIO_REGISTER');
      return message.test(error.message);
    });
  }
  uffd.close();
  other.close();
});

test.run();
