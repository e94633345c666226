// Node's cache of compiled code (since 22.8): the command starts sooner when it was run before.
//
// Rule: code is only taken from a folder that no other user can change. Without such a folder there is no cache. There
// is no message either, because the command works the same.

import { mkdirSync, statSync } from 'node:fs';
import Module from 'node:module';
import { homedir } from 'node:os';
import { isAbsolute, join } from 'node:path';

/** The mode bits that let other users write to a folder. A folder with one of them is not used. */
const WRITE_BY_OTHERS = 0o022;

/** Turns the cache on, unless Node's own variables do so or forbid it. */
export function useCompileCache(): void {
  // The types are those of the oldest Node that is supported.
  const { enableCompileCache } = Module as { enableCompileCache?: (folder: string) => unknown };
  const { NODE_COMPILE_CACHE, NODE_DISABLE_COMPILE_CACHE } = process.env;
  if (!enableCompileCache || NODE_COMPILE_CACHE || NODE_DISABLE_COMPILE_CACHE) return;
  try {
    const folder = ownFolder();
    if (folder !== undefined) enableCompileCache(folder);
  } catch {
    // The folder cannot be made, or is not allowed to be used.
  }
}

/** The folder for the cache, made if it is missing; undefined if other users could change it. */
function ownFolder(): string | undefined {
  const { XDG_CACHE_HOME = '' } = process.env;
  const home = isAbsolute(XDG_CACHE_HOME) ? XDG_CACHE_HOME : homedir();
  const names = isAbsolute(XDG_CACHE_HOME) ? ['userfaultfd'] : ['.cache', 'userfaultfd'];
  if (!isOwn(home)) return undefined;
  let folder = home;
  for (const name of names) {
    folder = join(folder, name);
    if (!statSync(folder, { throwIfNoEntry: false })) mkdirSync(folder, { mode: 0o700 });
    if (!isOwn(folder)) return undefined;
  }
  return folder;
}

/** Whether a folder belongs to this user, and only this user can change it. */
function isOwn(folder: string): boolean {
  const { uid, mode } = statSync(folder);
  return uid === process.geteuid?.() && (mode & WRITE_BY_OTHERS) === 0;
}
