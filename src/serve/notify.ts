// Reports the state of a service to systemd: sd_notify(3), a datagram to the socket in NOTIFY_SOCKET.

import { sendDatagram } from '../../shim/socket.js';

/** Sends a state, like `READY=1`, if the variable is set. Returns whether it was sent. */
export function notifySystemd(state: string): boolean {
  const { NOTIFY_SOCKET: socket } = process.env;
  return socket !== undefined && socket !== '' && sendDatagram(socket, state) === 0;
}
