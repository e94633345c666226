// fork (docs/kernel.md: FORK), with EVENT_FORK and without: what the child inherits, and the fate of its descriptor.

import { strict as assert } from 'node:assert';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { adopt, Feature, Flag, MISSING, OUTSIDE, openUffd, PROTECT, type Uffd, WP } from './calls.js';
import { bring, type State, stateOf } from './states.js';
import { at, checks, elsewhere, fault, P, type SettingOptions, setting, source } from './support.js';
import type { World } from './world.js';

const check = checks('semantics/fork');

const FORKS: SettingOptions = { features: Feature.eventFork };
const MARKS = Feature.flagWp | Feature.wpUnpopulated | Feature.poison;
const NEEDS = { features: MARKS } as const;
const F_GETFL = 3;
const F_SETFL = 4;

/** Reads the only queued event and returns the child's userfaultfd. */
function childOf(world: World, uffd: Uffd): Uffd {
  const [message, ...others] = uffd.take();
  assert.deepEqual(others, []);
  assert.ok(message?.event === 'fork', `${message?.event}`);
  return adopt(world, message.fd);
}

/** The descriptor numbers of all userfaultfds of this process. */
function userfaultfds(): number[] {
  return readdirSync('/proc/self/fd')
    .filter((fd) => nameOf(fd).includes('userfaultfd'))
    .map(Number);
}

/** The target of a descriptor's link in /proc; '' if the descriptor was closed in the meantime. */
function nameOf(fd: string): string {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    return '';
  }
}

// ---- with the event ---------------------------------------------------------------------------------------

check(
  'fork.event',
  'fork sleeps until the event is read; the child’s descriptor is initialised and watches it',
  (world) => {
    const { uffd, base, thread } = setting(world, FORKS);
    const child = thread.fork();
    assert.equal(thread.outcome(), 'event');
    const theirs = childOf(world, uffd);
    assert.equal(thread.outcome(), child.tid);
    assert.equal(theirs.api()[0], 'EINVAL');
    assert.equal(child.read(base), 'fault');
    assert.deepEqual(uffd.take(), []);
    assert.deepEqual(theirs.take(), [fault(base)]);
    assert.deepEqual(theirs.copy(base, source(world, 1), P), ['ok', P]);
    assert.equal(child.outcome(), 0x61);
    assert.equal(thread.read(base), 'fault', 'the parent’s page is another');
  },
);

check('fork.eagain', 'until it is read fills give EAGAIN', (world) => {
  const { uffd, base, thread } = setting(world, FORKS);
  thread.fork();
  assert.deepEqual(uffd.zeropage(base, P), ['EAGAIN', -11]);
  childOf(world, uffd);
  assert.equal(typeof thread.outcome(), 'number');
  assert.deepEqual(uffd.zeropage(base, P), ['ok', P]);
});

check(
  'fork.flags',
  'the child’s descriptor has the flags of the parent’s creation, not those set later',
  (world) => {
    const { uffd, thread } = setting(world, FORKS);
    assert.equal(uffd.port.fcntl(uffd.fd, F_SETFL, 0), 0);
    thread.fork();
    const theirs = childOf(world, uffd);
    assert.equal(uffd.port.fcntl(uffd.fd, F_GETFL, 0) & Flag.nonblock, 0);
    assert.equal(theirs.port.fcntl(theirs.fd, F_GETFL, 0) & Flag.nonblock, Flag.nonblock);
  },
);

check(
  'fork.per-uffd',
  'one event for each userfaultfd, one after the other; the child waits for all',
  (world) => {
    const { uffd, base, thread } = setting(world, { ...FORKS, mode: 0n });
    const other = openUffd(world, Feature.eventFork);
    assert.equal(uffd.register(base, P, MISSING)[0], 'ok');
    assert.equal(other.register(at(base, 1), P, MISSING)[0], 'ok');
    thread.fork();
    let rounds = 0;
    for (; thread.outcome() === 'event'; rounds++) {
      // The order of the two messages is not specified; the second may arrive as soon as the first is read.
      const first = uffd.take();
      const messages = first.length > 0 ? first : other.take();
      assert.equal(messages.length, 1);
      for (const message of messages) if (message.event === 'fork') adopt(world, message.fd);
    }
    assert.equal(rounds, 2);
  },
);

check('fork.emfile', 'no descriptor free: EMFILE, and the event stays', (world) => {
  const { uffd, thread } = setting(world, FORKS);
  thread.fork();
  world.withoutDescriptors(() => assert.equal(uffd.read(), 'EMFILE'));
  assert.equal(thread.outcome(), 'event');
  childOf(world, uffd);
  assert.equal(typeof thread.outcome(), 'number');
});

check(
  'fork.efault-leaks',
  'a buffer that cannot be written loses the event, and leaves the child’s descriptor open',
  (world) => {
    const { uffd, thread } = setting(world, FORKS);
    thread.fork();
    const before = userfaultfds();
    assert.equal(uffd.read(32, OUTSIDE), 'EFAULT');
    assert.equal(typeof thread.outcome(), 'number', 'the fork went through');
    assert.deepEqual(uffd.take(), []);
    const leaked = userfaultfds()
      .filter((fd) => !before.includes(fd))
      .map((fd) => adopt(world, fd));
    assert.equal(leaked.length, 1);
    assert.equal(leaked[0]?.api()[0], 'EINVAL', 'initialised');
  },
  { has: ['descriptors'] },
);

const KEPT: readonly (readonly [id: string, state: State, after: string])[] = [
  ['fork.keeps.page', 'page', 'shared a'],
  ['fork.keeps.page-wp', 'page+wp', 'shared+wp a'],
  ['fork.keeps.zero', 'zero', 'zero'],
  ['fork.keeps.wp-marker', 'wp-marker', 'wp-marker'],
  ['fork.keeps.poison', 'poison', 'poison'],
];

for (const [id, state, after] of KEPT) {
  check(
    id,
    `with the event a page that is ${state} is ${after} in the child`,
    (world) => {
      const features = MARKS | Feature.eventFork;
      const { uffd, base, thread } = setting(world, { mode: MISSING | WP, features });
      bring(state, base, { uffd, thread, bytes: source(world, 1) });
      const child = thread.fork();
      childOf(world, uffd);
      thread.outcome();
      assert.equal(stateOf(base, child), after);
    },
    NEEDS,
  );
}

check(
  'fork.child-wp',
  'the child’s write to a protected page is a fault of its own descriptor',
  (world) => {
    const features = Feature.flagWp | Feature.eventFork;
    const { uffd, base, thread } = setting(world, { mode: WP, features, filled: 0x61 });
    assert.equal(uffd.writeprotect(base, P, PROTECT), 'ok');
    const child = thread.fork();
    const theirs = childOf(world, uffd);
    thread.outcome();
    assert.equal(child.write(base, 1), 'fault');
    assert.deepEqual(theirs.take(), [fault(base, 3)]);
    assert.equal(theirs.writeprotect(base, P, 0n), 'ok');
    assert.equal(child.outcome(), 0);
  },
  { features: Feature.flagWp },
);

// ---- without it -------------------------------------------------------------------------------------------

const DROPPED: readonly (readonly [id: string, state: State, after: string])[] = [
  ['fork.drops.page', 'page', 'shared a'],
  ['fork.drops.page-wp', 'page+wp', 'shared a'],
  ['fork.drops.zero', 'zero', 'zero'],
  ['fork.drops.zero-wp', 'zero+wp', 'zero'],
  ['fork.drops.wp-marker', 'wp-marker', 'none'],
  ['fork.drops.poison', 'poison', 'poison'],
];

for (const [id, state, after] of DROPPED) {
  check(
    id,
    `without the event a page that is ${state} is ${after} in the child`,
    (world) => {
      const { uffd, base, thread } = setting(world, { mode: MISSING | WP, features: MARKS });
      bring(state, base, { uffd, thread, bytes: source(world, 1) });
      assert.equal(stateOf(base, thread.fork()), after);
      assert.deepEqual(uffd.take(), []);
    },
    NEEDS,
  );
}

check('fork.unregistered', 'without the event the child’s memory is not registered', (world) => {
  const { uffd, base, thread } = setting(world);
  assert.equal(thread.fork().read(base), 0);
  assert.deepEqual(uffd.take(), []);
  assert.equal(thread.read(base), 'fault');
});

// ---- pitfalls ---------------------------------------------------------------------------------------------

check(
  'fork.close-pending',
  'close with the event unread does not let the fork go: the child to be has the descriptor',
  (world) => {
    const { uffd, process } = elsewhere(world, FORKS);
    process.fork('copied');
    assert.equal(process.outcome(), 'event');
    uffd.close();
    assert.equal(process.outcome(), 'event');
  },
);

check(
  'fork.close-pending-shared',
  'where parent and child share descriptors close does let it go',
  (world) => {
    const { uffd, thread } = setting(world, FORKS);
    thread.fork('shared');
    assert.equal(thread.outcome(), 'event');
    uffd.close();
    assert.equal(typeof thread.outcome(), 'number');
  },
);

/** Whether the main thread of a process sleeps until its event is read. */
function waitsForReader(process: ChildProcess): boolean {
  return readFileSync(`/proc/${process.pid}/wchan`, 'utf8').includes('userfaultfd_event_wait');
}

check(
  'fork.child-process',
  'Node’s child_process really forks: it blocks the calling thread until the event is read',
  async () => {
    const script = fileURLToPath(new URL('./spawner.js', import.meta.url));
    const spawner = spawn(process.execPath, [script], { stdio: ['ignore', 'ignore', 'inherit'] });
    try {
      while (!waitsForReader(spawner)) {
        assert.equal(spawner.exitCode, null, 'it got through');
        await sleep(2);
      }
    } finally {
      spawner.kill('SIGKILL');
      if (spawner.exitCode === null && spawner.signalCode === null) await once(spawner, 'exit');
    }
  },
  { has: ['child-process'], features: Feature.eventFork },
);

check.run();
