// The monitor's side of a hand-off: for programs that want their memory served, and for tests.

import { closeDescriptor } from '../../shim/descriptors.js';
import { connectUnix, send } from '../../shim/socket.js';
import { UffdError } from '../errors.js';
import type { Region } from './handoff.js';

/** The connection that a hand-off went over. Closing it ends nothing: what was handed over goes on being served. */
export interface HandedOver extends Disposable {
  close(): void;
}

/**
 * Hands a userfaultfd over to whoever listens at a path, as Firecracker does: one message, with the descriptor beside
 * it. The caller keeps its own copy, and closes it when it likes.
 *
 * @throws UffdError ENOENT, ECONNREFUSED (nobody listens), EAGAIN (its queue is full), EBADF
 */
export function handOver(path: string, regions: readonly Region[], fd: number): HandedOver {
  const socket = connectUnix(path);
  if (socket < 0) throw new UffdError(socket, 'connect');
  const told = regions.map(({ start, length, offset, pageSize }) => ({
    base_host_virt_addr: Number(start),
    size: length,
    offset,
    page_size: pageSize,
    // The older name; it holds bytes in the original, too.
    page_size_kib: pageSize,
  }));
  const bytes = Buffer.from(JSON.stringify(told));
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
