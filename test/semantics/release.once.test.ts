// The end of the watched process, and the close of the descriptor (docs/kernel.md: after exit/exec, close). `order`
// tests that fills then return ESRCH; `registration` tests that REGISTER and UNREGISTER then return ENOMEM.

import { strict as assert } from 'node:assert';
import { Feature, Flag, PROTECT, WP } from './calls.js';
import { stateOf } from './states.js';
import { at, checks, elsewhere, orphan, P, type SettingOptions, setting, source } from './support.js';

const check = checks('semantics/release');

// ---- exit and exec ----------------------------------------------------------------------------------------

check('gone.exit', 'after exit read answers EAGAIN, poll 0 without POLLHUP', (world) => {
  const { uffd } = orphan(world);
  assert.equal(uffd.read(), 'EAGAIN');
  assert.equal(uffd.poll(), 0);
});

check('gone.exec', 'after exec the same; fills answer ESRCH, while the process lives', (world) => {
  const { uffd, base, process } = elsewhere(world);
  assert.equal(process.exec(), 'gone');
  assert.equal(uffd.read(), 'EAGAIN');
  assert.equal(uffd.poll(), 0);
  assert.deepEqual(uffd.copy(base, source(world, 1), P), ['ESRCH', 'untouched']);
  assert.equal(uffd.wake(base, P), 'ok');
});

check('gone.waiter', 'a waiter that is killed takes its message with it', (world) => {
  const { uffd, base, process } = elsewhere(world);
  assert.equal(process.read(base), 'fault');
  assert.equal(uffd.queue().pending, 1);
  process.kill();
  assert.equal(uffd.read(), 'EAGAIN');
  assert.deepEqual(uffd.queue(), { pending: 0, total: 0 });
});

check('gone.blocking-read', 'a read that waits goes on waiting when the process exits', (world) => {
  const { uffd, process } = elsewhere(world, { flags: Flag.cloexec });
  const buffer = world.map('anonymous', 1).address;
  const reader = world.thread().fork();
  assert.equal(reader.readInto(uffd.fd, buffer, 32), 'read');
  assert.equal(process.exit(), 'gone');
  assert.equal(reader.outcome(), 'read');
});

// ---- close ------------------------------------------------------------------------------------------------

check('close.wakes', 'close wakes all; missing memory is filled with zeros from then on', (world) => {
  const { uffd, base, thread } = setting(world);
  const other = world.thread();
  assert.equal(thread.read(base), 'fault');
  assert.equal(other.write(at(base, 1), 1), 'fault');
  uffd.take(1);
  uffd.close();
  assert.equal(thread.outcome(), 0);
  assert.equal(other.outcome(), 0);
  assert.equal(thread.read(at(base, 2)), 0);
});

check(
  'close.wakes-wp',
  'close wakes a thread that waits to write a protected page, and lifts all protection',
  (world) => {
    const how: SettingOptions = { mode: WP, features: Feature.flagWp, filled: 0x61 };
    const { uffd, base, thread } = setting(world, how);
    assert.equal(uffd.writeprotect(base, 2 * P, PROTECT), 'ok');
    assert.equal(thread.write(base, 0x78), 'fault');
    uffd.close();
    assert.equal(thread.outcome(), 0);
    assert.equal(stateOf(base, thread), 'page x');
    assert.equal(stateOf(at(base, 1), thread), 'page a');
  },
  { features: Feature.flagWp },
);

check('close.blocked-read', 'close does not interrupt a read that waits', (world) => {
  const { uffd } = setting(world, { flags: Flag.cloexec });
  const buffer = world.map('anonymous', 1).address;
  const reader = world.thread().fork();
  assert.equal(reader.readInto(uffd.fd, buffer, 32), 'read');
  uffd.close();
  assert.equal(reader.outcome(), 'read');
});

check('close.inherited', 'an inherited descriptor keeps it alive; the last close lets all go', (world) => {
  const { uffd, base, thread } = setting(world);
  const heir = world.thread().fork('copied');
  uffd.close();
  assert.equal(thread.read(base), 'fault');
  heir.kill();
  assert.equal(thread.outcome(), 0);
});

check('close.mutator', 'close wakes a thread that waits for its event to be read', (world) => {
  const { uffd, base, thread } = setting(world, { features: Feature.eventRemove, filled: 0x61 });
  assert.equal(thread.madvise(base, P, 4), 'event');
  uffd.close();
  assert.equal(thread.outcome(), 0);
  assert.equal(thread.read(base), 0);
});

check.run();
