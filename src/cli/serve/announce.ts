// Tells whoever started the command that it listens, and that it is about to end.

import { closeSync, writeSync } from 'node:fs';
import { sendDatagram } from '../../../shim/socket.js';
import type { Vm } from '../../serve/index.js';
import { printable } from '../text.js';

/** All of the ways; systemd's is sd_notify(3): a datagram to the socket in NOTIFY_SOCKET. */
export function announce(vms: readonly Vm[], readyFd: number | undefined): void {
  const lines = vms.map(({ socket }) => `ready: ${printable(socket)}\n`).join('');
  process.stdout.write(lines);
  if (readyFd !== undefined) {
    writeSync(readyFd, lines);
    closeSync(readyFd);
  }
  notify(`READY=1\nSTATUS=listening at ${vms.map(({ socket }) => printable(socket)).join(', ')}`);
}

export function announceStopping(): void {
  notify('STOPPING=1');
}

function notify(text: string): void {
  const { NOTIFY_SOCKET: socket } = process.env;
  if (socket) sendDatagram(socket, text);
}
