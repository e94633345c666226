// Chooses what the operator sees of a server. Its packages are loaded when they are needed.

import type { Server } from '../../serve/index.js';

export interface Display {
  say(text: string): void;
  /** Stops drawing. May be called more than once. */
  end(): void;
}

/** Loads the display before the server listens, so that it misses no event. */
export async function loadDisplay(): Promise<(server: Server) => Display> {
  const live = await loadLiveDisplay();
  if (live) return live;
  const { LogDisplay } = await import('./log-display.js');
  return (server) => new LogDisplay(server);
}

/** Loads the live lines; undefined if the stream is no terminal. */
export async function loadLiveDisplay(
  stream = process.stderr,
): Promise<((server: Server) => Display) | undefined> {
  if (!stream.isTTY || process.env.TERM === 'dumb') return undefined;
  const { LiveDisplay } = await import('./live-display.js');
  return (server) => new LiveDisplay(server, stream);
}
