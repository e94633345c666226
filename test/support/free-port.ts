// A port for a server that a test starts in another process.

import { once } from 'node:events';
import { createServer } from 'node:net';

/** Below the ports that the kernel gives to sockets that ask for any: no other socket gets one of these by chance. */
const [FIRST, COUNT] = [10_000, 20_000];

export async function freePort(): Promise<number> {
  for (;;) {
    const port = FIRST + Math.floor(Math.random() * COUNT);
    const server = createServer();
    try {
      await once(server.listen(port, '127.0.0.1'), 'listening');
    } catch {
      // Another socket has it.
      continue;
    }
    server.close();
    await once(server, 'close');
    return port;
  }
}
