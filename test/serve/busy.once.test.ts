// A server that was busy for longer than a monitor may take: what the monitor sent in time is in the socket, and counts.

import { strict as assert } from 'node:assert';
import { closeDescriptor } from '../../shim/descriptors.js';
import { connectUnix, send } from '../../shim/socket.js';
import { suite } from '../harness.js';
import { map, openWith, P } from '../kernel/support.js';
import { serving, until } from './support.js';

const test = suite('serve/busy');
const LIMIT_MS = 100;

test('a hand-off that came in time is taken, though the server looks at it too late', async () => {
  await serving({ pages: 4, handOffMs: LIMIT_MS, onError: 'leave' }, async ({ server, socket, refusals }) => {
    const uffd = openWith(['event-remove']);
    const base = map(4);
    uffd.register(base, 4 * P);
    const region = { base_host_virt_addr: Number(base), size: 4 * P, offset: 0, page_size: P };
    const text = JSON.stringify([region]);
    // Behind the look at the sockets, before the timers.
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
