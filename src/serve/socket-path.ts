// A socket that listens, and its place in the file system.
//
// Rules:
//  - Other users may be able to change the directory at any moment. The socket is made, given its owner and mode, and
//    listens, in a directory that is private; only then does it get its name. Nothing is done by that name afterwards.
//  - Only a socket that no process has bound makes room for another. It is looked at again in the private directory, where
//    nobody can replace it, before it is removed; what turns out to be something else is put back.

import { chmodSync, chownSync, closeSync, fstatSync, type Stats } from 'node:fs';
import { basename, dirname } from 'node:path';
import { closeDescriptor } from '../../shim/descriptors.js';
import { isBound, listenUnix } from '../../shim/socket.js';
import { UffdError } from '../errors.js';
import { Directory, openPath, UntrustedLink } from './directory.js';

/** A socket's path cannot be had. */
export class SocketError extends Error {
  override readonly name = 'SocketError';
  readonly code = 'ERR_UFFD_SOCKET';
}

/** Who may connect. Left out: the process's user, and what its umask leaves. */
export interface SocketAccess {
  readonly mode: number | undefined;
  readonly owner: { readonly uid: number; readonly gid: number } | undefined;
}

const ENAMETOOLONG = -36;
/** Bytes of a name that a client can still connect to: it goes into a struct sockaddr_un. */
const NAME_MOST = 107;
/** A longer name is not shown by tools that list sockets, so that it fits behind the private directory's. */
const SHOWN_MOST = 80;

export class ListeningSocket {
  readonly fd: number;
  readonly #directory: Directory | undefined;
  readonly #name: string;
  readonly #stat: Stats | undefined;

  private constructor(fd: number, name: string, directory?: Directory, stat?: Stats) {
    this.fd = fd;
    this.#name = name;
    this.#directory = directory;
    this.#stat = stat;
  }

  /**
   * Listens at a path, or at an abstract name: one that begins with '@' or a zero character.
   *
   * @throws SocketError
   */
  static listen(path: string, access: SocketAccess): ListeningSocket {
    try {
      if (/^[@\0]/.test(path)) return ListeningSocket.#listenAbstract(path, access);
      return ListeningSocket.#listenAt(path, access);
    } catch (error) {
      throw error instanceof SocketError ? error : new SocketError(`cannot listen at ${path}: ${why(error)}`);
    }
  }

  static #listenAt(path: string, access: SocketAccess): ListeningSocket {
    const name = basename(path);
    const bytes = Buffer.byteLength(name);
    if (name === '' || path.includes('\0'))
      throw new SocketError(`${JSON.stringify(path)} is no path of a socket`);
    if (bytes > NAME_MOST) {
      const reason = `${name} has ${bytes} bytes; ${NAME_MOST} are the most`;
      throw new UffdError(ENAMETOOLONG, 'bind', { reason });
    }
    const directory = Directory.open(dirname(path));
    try {
      makeRoom(directory, name, path);
      return directory.withPrivate((room) => {
        const inside = bytes > SHOWN_MOST ? 'socket' : name;
        const fd = listening(room.at(inside));
        try {
          const stat = privileged(access, () => {
            const given = give(room.at(inside), access);
            publish(room, inside, directory, name, path);
            return given;
          });
          return new ListeningSocket(fd, name, directory, stat);
        } catch (error) {
          closeDescriptor(fd);
          throw error;
        } finally {
          room.unlink(inside);
        }
      });
    } catch (error) {
      directory.close();
      throw error;
    }
  }

  static #listenAbstract(path: string, { mode, owner }: SocketAccess): ListeningSocket {
    const name = `@${path.slice(1)}`;
    const bytes = Buffer.byteLength(name);
    if (bytes === 1) throw new SocketError('an abstract name has at least one byte behind the @');
    if (bytes > NAME_MOST) throw new SocketError(`${name} has ${bytes} bytes; ${NAME_MOST} are the most`);
    if (mode !== undefined || owner) {
      throw new SocketError(
        `${name} is an abstract name, which has neither owner nor mode: any user may connect; allowUids (--allow-uid) says who is served`,
      );
    }
    return new ListeningSocket(listening(name), name);
  }

  /** Listens no more, and removes the socket's name if it is still this socket's. */
  close(): void {
    const [directory, own] = [this.#directory, this.#stat];
    if (directory && own) {
      const isOwn = ({ dev, ino }: Stats): boolean => dev === own.dev && ino === own.ino;
      try {
        directory.removeIf(this.#name, isOwn);
      } catch {
        // The directory is gone, or cannot be written any more: a socket that no process has bound makes room.
      }
      directory.close();
    }
    // Last: the inode's number is this socket's until then.
    closeDescriptor(this.fd);
  }
}

function listening(path: string): number {
  const fd = listenUnix(path);
  if (fd < 0) throw new UffdError(fd, 'bind');
  return fd;
}

/** Sets owner and mode of a socket, by its inode. */
function give(path: string, { mode, owner }: SocketAccess): Stats {
  const fd = openPath(path);
  try {
    const self = `/proc/self/fd/${fd}`;
    if (owner) chownSync(self, owner.uid, owner.gid);
    if (mode !== undefined) chmodSync(self, mode);
    return fstatSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** Says which privilege is missing: the kernel's EPERM does not. A socket that was given away needs one to be linked, too. */
function privileged<T>({ owner }: SocketAccess, body: () => T): T {
  try {
    return body();
  } catch (error) {
    if (!owner || (error as NodeJS.ErrnoException).code !== 'EPERM') throw error;
    throw new Error(
      'EPERM: to give the socket to another user needs CAP_CHOWN and CAP_FOWNER; without them, make it in a setgid directory ' +
        "of that user's group, with socketMode (--socket-mode) 660",
    );
  }
}

function publish(room: Directory, inside: string, directory: Directory, name: string, path: string): void {
  try {
    room.link(inside, directory, name);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    throw new SocketError(`cannot listen at ${path}: somebody has put something there at this moment`);
  }
}

/** Removes a socket that no process has bound; anything else there is left. */
function makeRoom(directory: Directory, name: string, path: string): void {
  directory.removeIf(name, (stat, where) => {
    if (!stat.isSocket()) throw new SocketError(`${path} is there already, and is no socket`);
    const bound = isBound(where);
    if (typeof bound === 'number') throw new UffdError(bound, 'connect');
    if (bound) throw new SocketError(`somebody listens at ${path} already`);
    return true;
  });
}

function why(error: unknown): string {
  if (error instanceof UffdError || error instanceof UntrustedLink) return error.message;
  const { errno, message } = error as NodeJS.ErrnoException;
  return errno === undefined ? message : new UffdError(errno, 'bind').message;
}
