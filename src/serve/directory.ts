// A directory held by a descriptor. Operations act on that directory even if its path changes: other users may be
// allowed to rename, replace and link its entries at any moment.

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

/** At most this many links are followed. The kernel has the same limit. */
const LINKS_MOST = 40;
const ROOT = 0;

/** The path of a directory leads through a link that another user can change. */
export class UntrustedPathError extends Error {}

export class Directory {
  readonly fd: number;

  private constructor(fd: number) {
    this.fd = fd;
  }

  /**
   * Opens a directory. As root it follows only links that root owns: other users can change their own links during the
   * lookup.
   *
   * @throws UntrustedPathError; the errors of open(2)
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
        if (++links > LINKS_MOST) throw new UntrustedPathError('its path leads through too many links');
        if (target.startsWith('/')) directory = directory.#replacedBy(openPath('/'));
        names.unshift(...target.split('/'));
      } catch (error) {
        directory.close();
        throw error;
      }
    }
    return directory;
  }

  /** The path of an entry, through the descriptor. */
  at(name: string): string {
    return `/proc/self/fd/${this.fd}/${name}`;
  }

  /** The status of an entry itself, not that of a link's target. Undefined if there is no such entry. */
  stat(name: string): Stats | undefined {
    return lstatSync(this.at(name), { throwIfNoEntry: false });
  }

  /** Whether no other user can change its entries. */
  get isPrivate(): boolean {
    const { uid, mode } = fstatSync(this.fd);
    return uid === process.geteuid?.() && (mode & 0o022) === 0;
  }

  /** Runs the body with a private directory inside of this one, which is removed afterwards. */
  withPrivate<T>(body: (privateDirectory: Directory) => T): T {
    const name = `.uffd-${randomBytes(8).toString('hex')}`;
    mkdirSync(this.at(name), 0o700);
    const privateDirectory = new Directory(openPath(this.at(name), constants.O_DIRECTORY));
    try {
      const { uid, mode } = fstatSync(privateDirectory.fd);
      if (uid !== process.geteuid?.() || (mode & 0o077) !== 0) {
        throw new UntrustedPathError('another process has replaced a directory that was just made there');
      }
      return body(privateDirectory);
    } finally {
      privateDirectory.close();
      try {
        rmdirSync(this.at(name));
      } catch {
        // Another process has moved it away.
      }
    }
  }

  /**
   * Removes an entry if `isExpected` accepts it. It is checked twice, the second time in a private directory, where no
   * other user can replace it; a wrong entry is put back.
   */
  removeIf(name: string, isExpected: (stat: Stats, path: string) => boolean): void {
    const seen = this.stat(name);
    if (!seen || !isExpected(seen, this.at(name))) return;
    this.withPrivate((privateDirectory) => {
      renameSync(this.at(name), privateDirectory.at(name));
      let expected = false;
      try {
        expected = isExpected(privateDirectory.stat(name) as Stats, privateDirectory.at(name));
      } finally {
        if (expected) privateDirectory.unlink(name);
        else this.#putBack(privateDirectory, name);
      }
    });
  }

  #putBack(privateDirectory: Directory, name: string): void {
    if (privateDirectory.stat(name)?.isDirectory()) {
      renameSync(privateDirectory.at(name), this.at(name));
      return;
    }
    // A link does not replace an entry that was made meanwhile.
    privateDirectory.link(name, this, name);
    privateDirectory.unlink(name);
  }

  /** Links an entry to a second name in another directory. @throws EEXIST if that name is taken */
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

/** A descriptor that refers to a file without opening it. */
export function openPath(path: string, flags = 0): number {
  return openSync(path, O_PATH | constants.O_NOFOLLOW | flags);
}

/** The target of a link, if the entry is a link. */
function linkTarget(directory: Directory, name: string): string | undefined {
  const fd = openPath(directory.at(name));
  try {
    const stat = fstatSync(fd);
    if (!stat.isSymbolicLink()) return undefined;
    if (process.geteuid?.() === ROOT && stat.uid !== ROOT) {
      throw new UntrustedPathError(`its path leads through ${name}, a link that user ${stat.uid} can change`);
    }
    return readLink(fd);
  } finally {
    closeSync(fd);
  }
}
