// Tells whoever started the command that it listens, and that it is about to end.

import { closeSync, writeSync } from 'node:fs';
import { notifySystemd, type Vm } from '../../serve/index.js';
import { printable } from '../text.js';

/** In all of the ways. */
export function announce(vms: readonly Vm[], readyFd: number | undefined): void {
  const lines = vms.map(({ socket }) => `ready: ${printable(socket)}\n`).join('');
  process.stdout.write(lines);
  if (readyFd !== undefined) {
    writeSync(readyFd, lines);
    closeSync(readyFd);
  }
  notifySystemd(`READY=1\nSTATUS=listening at ${vms.map(({ socket }) => printable(socket)).join(', ')}`);
}

export function announceStopping(): void {
  notifySystemd('STOPPING=1');
}
