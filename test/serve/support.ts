// A server and guests for tests, and memory files to serve.

import { readdirSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { Guest } from '../../src/cli/guest/guest.js';
import type { GuestOptions } from '../../src/cli/guest/protocol.js';
import type { Placement } from '../../src/index.js';
import {
  type ServeOptions,
  type Server,
  type Session,
  type SessionEnd,
  serve,
} from '../../src/serve/index.js';
import { inDirectory } from '../cli/command.js';
import { needKernel } from '../kernel/support.js';

import { P, writeMemory } from './process.js';

export { until } from '../kernel/support.js';
export { P };

/** Where the threads of guests run, if that is forced: UFFD_PLACEMENT=none, follow or awake. */
const FORCED: Partial<ServeOptions> = process.env.UFFD_PLACEMENT
  ? { placement: process.env.UFFD_PLACEMENT as Exclude<Placement, readonly number[]> }
  : {};

/** A memory file of random pages, the same each time. */
export function memoryFile(directory: string, pages: number, pageSize = P, name = 'memory'): string {
  const path = join(directory, name);
  writeMemory(path, (pages * pageSize) / P, pages);
  return path;
}

export interface Scene {
  server: Server;
  socket: string;
  memory: string;
  directory: string;
  /** Sessions that have ended, and how. */
  ends: { session: Session; end: SessionEnd }[];
  /** Why monitors were turned away. */
  refusals: string[];
  /** Starts a guest, and waits until it has handed over. */
  guest(options?: Partial<GuestOptions>): Promise<Guest>;
}

/** Serves a memory file of so many pages; everything is ended and gone afterwards. */
export async function serving(
  options: Partial<ServeOptions> & {
    pages?: number;
    pageSize?: number;
    memory?: (directory: string) => string;
  },
  body: (scene: Scene) => Promise<void>,
): Promise<void> {
  needKernel();
  const { pages = 256, pageSize = P, memory: make, ...rest } = options;
  await inDirectory(async (directory) => {
    const memory = make?.(directory) ?? memoryFile(directory, pages, pageSize);
    const socket = join(directory, 'socket');
    const server = await serve({ vms: [{ socket, memory }], ...FORCED, ...rest });
    const scene: Scene = {
      ...{ server, socket, memory, directory, ends: [], refusals: [] },
      async guest(guestOptions = {}) {
        const guest = new Guest({ socket, memory, pageSize, ...guestOptions });
        guests.add(guest);
        // Kept no longer than it lives: a soak has hundreds of them, and looks at what this process grows by.
        void guest.ended.then(() => guests.delete(guest));
        await guest.handedOver;
        return guest;
      },
    };
    const guests = new Set<Guest>();
    server.on('ended', (session, end) => scene.ends.push({ session, end }));
    server.on('refused', (error) => scene.refusals.push(error.message));
    const kill = (): void => {
      for (const guest of guests) guest.kill();
    };
    process.once('exit', kill);
    try {
      await body(scene);
    } finally {
      kill();
      process.off('exit', kill);
      await Promise.all([...guests].map(({ ended }) => ended));
      await server.close();
    }
  });
}

/** Descriptors of a process, but for those that each thread has of its own, whatever it does. */
export function descriptors(pid: number | 'self' = 'self'): number {
  return readdirSync(`/proc/${pid}/fd`).filter((fd) => {
    try {
      return !/^(anon_inode:\[event(poll|fd)\]|pipe:)/.test(readlinkSync(`/proc/${pid}/fd/${fd}`));
    } catch {
      return false;
    }
  }).length;
}
