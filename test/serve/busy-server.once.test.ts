// A server was busy for longer than the hand-off timeout: data that the monitor sent in time waits in the socket, and
// is accepted.

import { strict as assert } from 'node:assert';
import { closeDescriptor } from '../../shim/descriptors.js';
import { connectUnix, send } from '../../shim/socket.js';
import { suite } from '../support/harness.js';
import { map, openWith, P } from '../support/real-kernel.js';
import { serving, until } from './support/server.js';

const test = suite('serve/busy-server');
const LIMIT_MS = 100;

test('a hand-off that came in time is taken, though the server looks at it too late', async () => {
  await serving({ pages: 4, handOffMs: LIMIT_MS, onError: 'leave' }, async ({ server, socket, refusals }) => {
    const uffd = openWith(['event-remove']);
    const base = map(4);
    uffd.register(base, 4 * P);
    const region = { base_host_virt_addr: Number(base), size: 4 * P, offset: 0, page_size: P };
    const text = JSON.stringify([region]);
    // Runs after the event loop has polled the sockets, before its timers: the timeout fires with unread data.
    server.on('connected', () =>
      setImmediate(() => {
        send(connection, Buffer.from(text), [uffd.fd]);
        const end = performance.now() + 2 * LIMIT_MS;
        while (performance.now() < end);
      }),
    );
    const connection = connectUnix(socket);
    try {
      await until(() => server.served > 0 || refusals.length > 0);
      assert.deepEqual(refusals, []);
    } finally {
      closeDescriptor(connection);
      await server.close();
      uffd.close();
    }
  });
}, 30_000);

test.run();
