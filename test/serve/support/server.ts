// Runs a server in this process, with guests and memory files.

import { readdirSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { Guest } from '../../../src/cli/guest/guest.js';
import type { GuestOptions } from '../../../src/cli/guest/protocol.js';
import type { Placement } from '../../../src/index.js';
import {
  type ServeOptions,
  type Server,
  type Session,
  type SessionEnd,
  serve,
} from '../../../src/serve/index.js';
import { inDirectory } from '../../cli/support/command.js';
import { needKernel } from '../../support/real-kernel.js';

import { P, writeMemory } from './serve-process.js';

export { until } from '../../support/real-kernel.js';
export { P };

/** Where the sessions' threads run, if UFFD_PLACEMENT (none, follow or awake) forces it. */
const FORCED: Partial<ServeOptions> = process.env.UFFD_PLACEMENT
  ? { placement: process.env.UFFD_PLACEMENT as Exclude<Placement, readonly number[]> }
  : {};

/** Writes a memory file of random pages, which are the same each time. */
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
  /** Sessions that have ended, and how each ended. */
  ends: { session: Session; end: SessionEnd }[];
  /** Why the server refused monitors. */
  refusals: string[];
  /** Starts a guest, and waits until it has handed its memory over. */
  guest(options?: Partial<GuestOptions>): Promise<Guest>;
}

/** Serves a memory file of `pages` pages. Server and guests have ended when this resolves. */
export async function serving(
  options: Partial<ServeOptions> & {
    pages?: number;
    pageSize?: number;
    memory?: (directory: string) => string;
    /** Makes diff snapshots on top of the memory file. */
    layers?: (directory: string) => readonly string[];
  },
  body: (scene: Scene) => Promise<void>,
): Promise<void> {
  needKernel();
  const { pages = 256, pageSize = P, memory: make, layers: makeLayers, ...rest } = options;
  await inDirectory(async (directory) => {
    const memory = make?.(directory) ?? memoryFile(directory, pages, pageSize);
    const socket = join(directory, 'socket');
    const layers = makeLayers?.(directory);
    const server = await serve({ vms: [{ socket, memory, ...(layers && { layers }) }], ...FORCED, ...rest });
    const scene: Scene = {
      ...{ server, socket, memory, directory, ends: [], refusals: [] },
      async guest(guestOptions = {}) {
        const guest = new Guest({ socket, memory, pageSize, ...guestOptions });
        guests.add(guest);
        // Ended guests are forgotten: a soak test has hundreds, and measures how much this process grows.
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

/** Counts the descriptors of a process, without those that each thread has of its own. */
export function descriptors(pid: number | 'self' = 'self'): number {
  return readdirSync(`/proc/${pid}/fd`).filter((fd) => {
    try {
      return !/^(anon_inode:\[event(poll|fd)\]|pipe:)/.test(readlinkSync(`/proc/${pid}/fd/${fd}`));
    } catch {
      return false;
    }
  }).length;
}
