// How a userfaultfd comes to be (kernel-semantics 1: creation, API): flags, privileges, the descriptor, the
// handshake.

import { strict as assert } from 'node:assert';
import { closeSync, fstatSync, readFileSync, readlinkSync, readSync, writeSync } from 'node:fs';
import { errnoName } from '../../src/errors.js';
import { adopt, create, Feature, Flag, MISSING, OUTSIDE, openUffd, REQUESTS, type Request } from './calls.js';
import { checks, P, setting } from './support.js';

const check = checks('semantics/creation');

// ---- flags ------------------------------------------------------------------------------------------------

const FLAGS = [
  ['creation.flags.none', 0, 'ok'],
  ['creation.flags.cloexec', Flag.cloexec, 'ok'],
  ['creation.flags.nonblock', Flag.nonblock, 'ok'],
  ['creation.flags.user-mode-only', Flag.userModeOnly, 'ok'],
  ['creation.flags.all', Flag.cloexec | Flag.nonblock | Flag.userModeOnly, 'ok'],
  ['creation.flags.rdwr', 2, 'EINVAL'],
  ['creation.flags.unknown', 4, 'EINVAL'],
  ['creation.flags.append', 0x400, 'EINVAL'],
  ['creation.flags.unknown-beside-known', Flag.cloexec | Flag.userModeOnly | 8, 'EINVAL'],
] as const;

for (const [id, flags, expected] of FLAGS) {
  check(id, `userfaultfd(0x${flags.toString(16)}): ${expected}`, (world) => {
    const fd = world.kernel.attach(world.memory).userfaultfd(flags);
    if (fd >= 0) adopt(world, fd);
    assert.equal(fd < 0 ? errnoName(-fd) : 'ok', expected);
  });
}

check(
  'creation.device',
  '/dev/userfaultfd: flags by value, a new descriptor',
  (world) => {
    const port = world.kernel.attach(world.memory);
    const device = port.openDevice();
    assert.ok(device >= 0);
    world.defer(() => port.close(device));
    const fd = port.ioctlValue(device, 0xaa00, Flag.cloexec | Flag.nonblock);
    assert.ok(fd > device);
    assert.equal(adopt(world, fd).api()[0], 'ok');
    assert.equal(port.ioctlValue(device, 0xaa00, 4), -22);
  },
  { has: ['device'] },
);
check.run();
