// The units of docs/systemd work under a real systemd. They are installed unchanged, with all options: root's user
// manager supports every line. Only the programs differ: this build of `uffd`, and in place of Firecracker a monitor
// that ignores SIGTERM, like one whose signal thread hangs.

import { existsSync, mkdirSync, readFileSync, readlinkSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { seed, suite } from '../support/harness.js';
import { compileProgram, needKernelFaults } from '../support/real-kernel.js';
import { writeMemory } from './support/serve-process.js';
import { Manager, needSystemd, UFFD } from './support/systemd.js';

const test = suite('serve/units');
const start = seed();

const PAGES = 2048;
const SERVER = 'uffd-serve@vm.service';
const MONITOR = 'microvm@vm.service';
const SOCKET = '/run/uffd/vm/socket';
/** Rounds of the guest's threads over all pages: until it ends soon, and so many that it outlasts the test. */
const SOON = 2;
const NEVER = 1000;
const LIMIT_MS = 300_000;
const CAP_KILL = 1n << 5n;

const HOW = `-b -t 2 -r \${ROUNDS} -s ${start} -l 3600 /run/uffd/%i/socket /var/lib/vm/%i/memory`;

let program: string | undefined;

/** The monitor's unit without BindsTo=, because a drop-in cannot remove a dependency. */
const UNBOUND = unit('microvm@').replace(/^BindsTo=.*\n/m, '');

function unit(name: string): string {
  return readFileSync(new URL(`../../../docs/systemd/${name}.service`, import.meta.url), 'utf8');
}

/** A drop-in that makes a unit start another command. */
function starting(command: string): string {
  return `[Service]\nExecStart=\nExecStart=${command}\n`;
}

/** Calls `body` with a manager that has both units, and a memory file for the guest. */
async function managed(body: (manager: Manager) => Promise<void>, monitor = unit('microvm@')): Promise<void> {
  needKernelFaults();
  needSystemd();
  program ??= compileProgram('guest/monitor.c');
  const server = unit('uffd-serve@');
  const options = /^ExecStart=\/usr\/bin\/uffd (.*)$/m.exec(server)?.[1];
  const units = {
    'uffd-serve@.service': server,
    'uffd-serve@.service.d/start.conf': starting(`${UFFD} ${options}`),
    'microvm@.service': monitor,
    'microvm@.service.d/start.conf': starting(`/bin/sh -c 'trap "" TERM; exec ${program} ${HOW}'`),
  };
  await Manager.with(units, async (manager) => {
    mkdirSync(manager.path('/var/lib/vm/vm'), { recursive: true });
    writeMemory(manager.path('/var/lib/vm/vm/memory'), PAGES, start);
    await body(manager);
  });
}

/** Starts both units, calls `meanwhile`, and waits until the guest is served. Returns the monitor's process ID. */
async function startMonitor(
  manager: Manager,
  rounds: number,
  meanwhile?: (monitor: number) => Promise<void>,
): Promise<number> {
  const before = guests(manager);
  await manager.systemctl('set-environment', `ROUNDS=${rounds}`);
  await manager.systemctl('start', SERVER);
  await manager.systemctl('start', MONITOR);
  const monitor = await manager.mainPid(MONITOR);
  await meanwhile?.(monitor);
  await manager.until('a guest to be served', () => guests(manager) > before);
  return monitor;
}

function guests(manager: Manager): number {
  return manager.said.split('a guest is served').length - 1;
}

/** Waits until the guest has ended; none of its pages may be wrong. */
async function untilGuestEnds(manager: Manager): Promise<void> {
  await manager.untilIs(MONITOR, 'ActiveState', 'inactive');
  assert.is(await manager.show(MONITOR, 'ExecMainStatus'), '0');
  const printed = /^\{"pages":.*\}$/m.exec(manager.said)?.[0] ?? '{}';
  assert.equal(
    { ...JSON.parse(printed), removed: 0 },
    { pages: PAGES, touched: 4 * PAGES, removed: 0, wrong: 0 },
  );
}

/** Waits until SIGKILL has ended the monitor. systemd calls that a failure, even if it sent the signal itself. */
async function untilEnded(manager: Manager, monitor: number): Promise<void> {
  await manager.untilIs(MONITOR, 'ActiveState', 'failed');
  assert.is(await manager.show(MONITOR, 'ExecMainStatus'), '9');
  assert.is(manager.proc(monitor, 'status'), '');
}

/** Waits until the server has ended with success; systemd must not have restarted it. */
async function untilServerEnds(manager: Manager): Promise<void> {
  await manager.untilIs(SERVER, 'ActiveState', 'inactive');
  const outcome = ['Result', 'ExecMainStatus', 'NRestarts'].map((name) => manager.show(SERVER, name));
  assert.equal(await Promise.all(outcome), ['success', '0', '0']);
}

/**
 * Stops the server. Returns whether two threads of the guest wait for it. If all pages were present at that moment, no
 * thread ever waits: the balloon cannot remove pages while the server is stopped.
 */
async function haltedWithSleepers(manager: Manager, server: number, monitor: number): Promise<boolean> {
  await manager.halt(server);
  for (let look = 0; look < 100 && manager.asleep(monitor).length < 2; look++) await sleep(10);
  return manager.asleep(monitor).length >= 2;
}

/**
 * Kills the server while threads of the monitor sleep in faults that only this server could answer, and waits until
 * systemd has restarted it. Returns these threads.
 */
async function killServer(manager: Manager, monitor: number): Promise<string[]> {
  const server = await manager.mainPid(SERVER);
  while (!(await haltedWithSleepers(manager, server, monitor))) await manager.signal(server, 'CONT');
  const asleep = manager.asleep(monitor);
  await manager.signal(server, 'KILL');
  await manager.untilIs(SERVER, 'NRestarts', '1');
  await manager.untilIs(SERVER, 'ActiveState', 'active');
  assert.is.not(await manager.mainPid(SERVER), server);
  assert.ok(existsSync(manager.path(SOCKET)), 'the server that was started anew listens');
  return asleep;
}

/** Starts both units and stops the monitor at its first fault. The guest is served, and its monitor stays stopped. */
async function startStopped(manager: Manager): Promise<number> {
  await manager.systemctl('start', SERVER);
  const server = await manager.mainPid(SERVER);
  await manager.halt(server);
  return startMonitor(manager, SOON, async (pid) => {
    await manager.until('a thread to sleep in a fault', () => manager.asleep(pid).length > 0);
    await manager.signal(pid, 'STOP');
    await manager.signal(server, 'CONT');
  });
}

test(
  'the server is started when it listens, confined as its unit says; a monitor’s pages are right',
  () =>
    managed(async (manager) => {
      await manager.systemctl('start', SERVER);
      assert.ok(existsSync(manager.path(SOCKET)), 'it listens when systemctl returns');
      assert.is(await manager.show(SERVER, 'StatusText'), `listening at ${SOCKET}`);
      const server = await manager.mainPid(SERVER);
      const field = (name: string): string =>
        new RegExp(`^${name}:\\s*(\\S+)$`, 'm').exec(manager.proc(server, 'status'))?.[1] ?? '';
      assert.is(BigInt(`0x${field('CapBnd')}`), CAP_KILL);
      assert.is(BigInt(`0x${field('CapEff')}`), CAP_KILL);
      assert.is(field('NoNewPrivs'), '1');
      assert.match(manager.proc(server, 'mountinfo'), /^\S+ \S+ \S+ \S+ \/ ro[, ]/m);
      const network = (pid: number): string => readlinkSync(manager.path(`/proc/${pid}/ns/net`));
      assert.is.not(network(server), network(1));

      await startMonitor(manager, SOON);
      await untilGuestEnds(manager);
      assert.is(await manager.show(SERVER, 'ActiveState'), 'active');
    }),
  LIMIT_MS,
);

test(
  'the server is killed: its monitor, which hangs, is ended; the server comes back, and serves the next',
  () =>
    managed(async (manager) => {
      const monitor = await startMonitor(manager, NEVER);
      await killServer(manager, monitor);
      await untilEnded(manager, monitor);
      await startMonitor(manager, SOON);
      await untilGuestEnds(manager);
    }),
  LIMIT_MS,
);

test(
  'without BindsTo=, a monitor whose server was killed hangs; SIGKILL ends it',
  () =>
    managed(async (manager) => {
      const monitor = await startMonitor(manager, NEVER);
      const before = await killServer(manager, monitor);
      assert.is(await manager.show(MONITOR, 'ActiveState'), 'active');
      assert.is(await manager.mainPid(MONITOR), monitor);
      const after = manager.asleep(monitor);
      assert.ok(
        before.every((thread) => after.includes(thread)),
        `${before} sleep still: ${after}`,
      );
      await manager.systemctl('stop', MONITOR);
      await untilEnded(manager, monitor);
    }, UNBOUND),
  LIMIT_MS,
);

test(
  'systemctl stop, without BindsTo=: the guest goes on to its end, then the server ends',
  () =>
    managed(async (manager) => {
      const monitor = await startStopped(manager);
      await manager.systemctl('stop', '--no-block', SERVER);
      await manager.until('the socket to be gone', () => !existsSync(manager.path(SOCKET)));
      assert.is(await manager.show(SERVER, 'ActiveState'), 'deactivating');
      assert.is(await manager.show(MONITOR, 'ActiveState'), 'active');
      await manager.signal(monitor, 'CONT');
      await untilGuestEnds(manager);
      await untilServerEnds(manager);
    }, UNBOUND),
  LIMIT_MS,
);

for (const verb of ['stop', 'kill'] as const) {
  test(
    `systemctl ${verb}: the monitor is ended, then the server ends`,
    () =>
      managed(async (manager) => {
        const monitor = await startMonitor(manager, NEVER);
        await manager.systemctl(verb, SERVER);
        await untilServerEnds(manager);
        await untilEnded(manager, monitor);
      }),
    LIMIT_MS,
  );
}

test.run();
