// A directory held by a descriptor. What is done in it is done in that directory, whatever becomes of the path that led
// there: other users may be allowed to rename, replace and link its entries at any moment.

import { randomBytes } from 'node:crypto';
import {
  closeSync,
  constants,
  fstatSync,
  linkSync,
  lstatSync,
  mkdirSync,
  openSync,
  renameSync,
  rmdirSync,
  type Stats,
  unlinkSync,
} from 'node:fs';
import { readLink } from '../../shim/descriptors.js';
import { O_PATH } from '../../shim/libc.js';

/** As many as the kernel follows. */
const LINKS_MOST = 40;
const ROOT = 0;

/** A directory's path leads through a link that another user can change. */
export class UntrustedLink extends Error {}

export class Directory {
  readonly fd: number;

  private constructor(fd: number) {
    this.fd = fd;
  }

  /**
   * Opens a directory. Run by root, it follows links only if they are root's: others can be changed while it looks.
   *
   * @throws UntrustedLink; the errors of open(2)
   */
  static open(path: string): Directory {
    let directory = new Directory(openPath(path.startsWith('/') ? '/' : '.'));
    const names = path.split('/');
    for (let links = 0; names.length > 0; ) {
      const name = names.shift() as string;
      if (name === '' || name === '.') continue;
      try {
        const target = linkTarget(directory, name);
        if (target === undefined) {
          directory = directory.#replacedBy(openPath(directory.at(name), constants.O_DIRECTORY));
          continue;
        }
        if (++links > LINKS_MOST) throw new UntrustedLink('its path leads through too many links');
        if (target.startsWith('/')) directory = directory.#replacedBy(openPath('/'));
        names.unshift(...target.split('/'));
      } catch (error) {
        directory.close();
        throw error;
      }
    }
    return directory;
  }

  /** A path of an entry that leads through the descriptor. */
  at(name: string): string {
    return `/proc/self/fd/${this.fd}/${name}`;
  }

  /** What an entry is, links themselves included; undefined: there is none. */
  stat(name: string): Stats | undefined {
    return lstatSync(this.at(name), { throwIfNoEntry: false });
  }

  /** Runs with a directory inside of this one that no other user can change. It is removed afterwards. */
  withPrivate<T>(body: (room: Directory) => T): T {
    const name = `.uffd-${randomBytes(8).toString('hex')}`;
    mkdirSync(this.at(name), 0o700);
    const room = new Directory(openPath(this.at(name), constants.O_DIRECTORY));
    try {
      const { uid, mode } = fstatSync(room.fd);
      if (uid !== process.geteuid?.() || (mode & 0o077) !== 0) {
        throw new UntrustedLink('somebody has replaced a directory that was just made there');
      }
      return body(room);
    } finally {
      room.close();
      try {
        rmdirSync(this.at(name));
      } catch {
        // Somebody has moved it away.
      }
    }
  }

  /**
   * Removes an entry if it is right. That is asked twice, the second time where nobody can replace it; what is not right then
   * is put back.
   */
  removeIf(name: string, isRight: (stat: Stats, path: string) => boolean): void {
    const seen = this.stat(name);
    if (!seen || !isRight(seen, this.at(name))) return;
    this.withPrivate((room) => {
      renameSync(this.at(name), room.at(name));
      let right = false;
      try {
        right = isRight(room.stat(name) as Stats, room.at(name));
      } finally {
        if (right) room.unlink(name);
        else this.#putBack(room, name);
      }
    });
  }

  #putBack(room: Directory, name: string): void {
    if (room.stat(name)?.isDirectory()) {
      renameSync(room.at(name), this.at(name));
      return;
    }
    // A link replaces nothing that was put there meanwhile.
    room.link(name, this, name);
    room.unlink(name);
  }

  /** Gives an entry a second name in another directory. @throws EEXIST if that name is taken */
  link(name: string, to: Directory, newName: string): void {
    linkSync(this.at(name), to.at(newName));
  }

  unlink(name: string): void {
    unlinkSync(this.at(name));
  }

  close(): void {
    closeSync(this.fd);
  }

  #replacedBy(fd: number): Directory {
    this.close();
    return new Directory(fd);
  }
}

/** A descriptor that stands for a file without opening it. */
export function openPath(path: string, flags = 0): number {
  return openSync(path, O_PATH | constants.O_NOFOLLOW | flags);
}

/** Where a link leads, if the entry is one. */
function linkTarget(directory: Directory, name: string): string | undefined {
  const fd = openPath(directory.at(name));
  try {
    const stat = fstatSync(fd);
    if (!stat.isSymbolicLink()) return undefined;
    if (process.geteuid?.() === ROOT && stat.uid !== ROOT) {
      throw new UntrustedLink(`its path leads through ${name}, a link that user ${stat.uid} can change`);
    }
    return readLink(fd);
  } finally {
    closeSync(fd);
  }
}
