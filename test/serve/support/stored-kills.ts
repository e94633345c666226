// Kills servers of a snapshot in a store, the store, and monitors, again and again, while two servers fill one cache: a
// short run in the tests, a long one in `npm run soak`.
//
// Invariants:
//  - No monitor ever finds a wrong page. One whose server was killed hangs, and is killed.
//  - A guest whose server runs gets every page, although the store or the other server was killed meanwhile.
//  - At the end each file of the cache holds the bytes that its name stands for.

import { strict as assert } from 'node:assert';
import { mkdirSync, readFileSync, rmSync } from 'node:fs';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { idOf } from '../../../src/store/index.js';
import { commandLine } from '../../cli/support/command.js';
import { freePort } from '../../support/free-port.js';
import { generator } from '../../support/harness.js';
import { compileProgram } from '../../support/real-kernel.js';
import { Running } from './serve-process.js';
import { cachedFiles, withSnapshot } from './snapshot-store.js';

const STORE = fileURLToPath(new URL('store-program.js', import.meta.url));
/** Most milliseconds of an answer of the store, and from the start of the guests to a kill. */
const ANSWER_MS = 8;
const KILL_MS = 60;
/** Seconds after which a monitor that is served gives up. */
const LIMIT_S = 60;
const VICTIMS = ['server', 'store', 'monitor'] as const;

export type Killed = Record<(typeof VICTIMS)[number], number>;

/** Returns how many of each were killed before they were done. */
export async function killsWhileStored(kills: number, first: number): Promise<Killed> {
  const killed: Killed = { server: 0, store: 0, monitor: 0 };
  const monitor = compileProgram('guest/monitor.c');
  const below = generator(first);
  await withSnapshot(async ({ directory, memory, index, chunks, cache }) => {
    const port = await freePort();
    const sockets = ['one', 'other'].map((name) => join(directory, name));
    const startStore = async (): Promise<Running> => {
      const words = [chunks, port, ANSWER_MS, below(1000)].map(String);
      const store = new Running([process.execPath, STORE, ...words]);
      await store.says('listens\n');
      return store;
    };
    const startServer = async (socket: string): Promise<Running> => {
      // A killed server leaves its socket.
      rmSync(socket, { force: true });
      const places = ['--store', `http://127.0.0.1:${port}`, '--cache', cache, '--on-error', 'leave'];
      const server = new Running(commandLine(['serve', '--socket', socket, '--memory', index, ...places]));
      await server.says(`ready: ${socket}\n`);
      return server;
    };
    const startGuest = (socket: string): Running =>
      new Running([
        monitor,
        '-t',
        '2',
        '-r',
        '1',
        '-s',
        `${below(1000)}`,
        '-l',
        `${LIMIT_S}`,
        socket,
        memory,
      ]);
    let store = await startStore();
    const servers = await Promise.all(sockets.map(startServer));
    try {
      for (let kill = 0; kill < kills; kill++) {
        if (below(2) === 0) rmSync(cache, { recursive: true, force: true });
        const guests = sockets.map(startGuest) as [Running, Running];
        const who = VICTIMS[kill % VICTIMS.length] as keyof Killed;
        const which = below(2);
        const victim = { server: servers[which], store, monitor: guests[which] }[who] as Running;
        await sleep(below(KILL_MS));
        victim.kill();
        const survivors = who === 'store' ? guests : guests.filter((_, at) => at !== which);
        if (who === 'store') {
          await victim.ended;
          store = await startStore();
        }
        for (const guest of survivors) await isRight(guest);
        if (who === 'server') {
          await victim.ended;
          guests[which]?.kill();
          servers[which] = await startServer(sockets[which] as string);
        }
        if (who !== 'store') {
          const { code, stdout, stderr } = await (guests[which] as Running).ended;
          assert.ok(!/^page \d/m.test(stderr), stderr);
          if (code !== 0) killed[who]++;
          else assert.match(stdout, /"wrong":\s*0\b/);
        } else killed.store++;
      }
      for (const socket of sockets) await isRight(startGuest(socket));
      for (const server of servers) assert.ok(!/damaged/.test(server.output.stderr), server.output.stderr);
    } finally {
      for (const process of [store, ...servers]) process.kill();
      await Promise.all([store, ...servers].map(({ ended }) => ended));
    }
    // A server that has mapped everything does not make it again.
    mkdirSync(cache, { recursive: true });
    for (const file of cachedFiles(cache))
      assert.equal(idOf(readFileSync(file), 'sha512-256'), basename(file), 'a file of the cache is damaged');
  });
  return killed;
}

async function isRight(guest: Running): Promise<void> {
  const { code, stdout, stderr } = await guest.ended;
  assert.equal(code, 0, `${stdout}${stderr}`);
  assert.match(stdout, /"wrong":\s*0\b/);
}
