// The monitor's side of a hand-off, for programs that want their memory served, and for tests.

import { closeDescriptor } from '../../shim/descriptors.js';
import { connectUnix, send } from '../../shim/socket.js';
import { UffdError } from '../errors/errors.js';
import { handOffText, type Region } from './handoff-protocol.js';

/** The connection of a hand-off. The memory is still served after the connection is closed. */
export interface HandedOver extends Disposable {
  close(): void;
}

/**
 * Hands a userfaultfd over to the server at a path, as Firecracker does: one message, with the descriptor attached.
 * The caller keeps its own copy, and may close it at any time.
 *
 * @throws UffdError ENOENT, ECONNREFUSED (no process listens), EAGAIN (the queue is full), EBADF
 */
export function handOver(path: string, regions: readonly Region[], fd: number): HandedOver {
  const socket = connectUnix(path);
  if (socket < 0) throw new UffdError(socket, 'connect');
  const bytes = handOffText(regions);
  for (let sent = 0; sent < bytes.length; ) {
    const some = send(socket, bytes.subarray(sent), sent === 0 ? [fd] : []);
    if (some < 0) {
      closeDescriptor(socket);
      throw new UffdError(some, 'sendmsg');
    }
    sent += some;
  }
  let open = true;
  const close = (): void => {
    if (open) closeDescriptor(socket);
    open = false;
  };
  return { close, [Symbol.dispose]: close };
}
