// A listening socket, and its name in the file system.
//
// Rules:
//  - Other users may be able to change the directory at any moment. So the socket is made, gets its owner and mode, and
//    listens in a private directory; only then does it get its name. No later step uses that name.
//  - Only a socket that no process has bound is replaced. It is checked again in the private directory, where no other
//    user can replace it, before it is removed; anything else is put back.

import { chmodSync, chownSync, closeSync, fstatSync, type Stats } from 'node:fs';
import { basename, dirname } from 'node:path';
import { closeDescriptor } from '../../shim/descriptors.js';
import { isBound, listenUnix } from '../../shim/socket.js';
import { UffdError } from '../errors/errors.js';
import { Directory, openPath, UntrustedPathError } from './directory.js';

/** A socket cannot be made at its path. */
export class SocketError extends Error {
  override readonly name = 'SocketError';
  readonly code = 'ERR_UFFD_SOCKET';
}

/** Which users may connect. Default: the process's user, and the mode that its umask leaves. */
export interface SocketAccess {
  readonly mode: number | undefined;
  readonly owner: { readonly uid: number; readonly gid: number } | undefined;
}

const ENAMETOOLONG = -36;
/** Most bytes of a name to which a client can connect: it must fit a struct sockaddr_un. */
const NAME_MOST = 107;
/**
 * A socket with a longer name is bound as `socket`, so that the path in the private directory is short enough. Tools
 * that list sockets then do not show its name.
 */
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
      throw error instanceof SocketError
        ? error
        : new SocketError(`cannot listen at ${path}: ${messageOf(error)}`);
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
      removeStaleSocket(directory, name, path);
      return directory.withPrivate((privateDirectory) => {
        const inside = bytes > SHOWN_MOST ? 'socket' : name;
        const fd = listening(privateDirectory.at(inside));
        try {
          const stat = explainingEperm(access, () => {
            const socketStat = setOwnerAndMode(privateDirectory.at(inside), access);
            publish(privateDirectory, inside, directory, name, path);
            return socketStat;
          });
          return new ListeningSocket(fd, name, directory, stat);
        } catch (error) {
          closeDescriptor(fd);
          throw error;
        } finally {
          privateDirectory.unlink(inside);
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

  /** Stops listening, and removes the socket's name if it still refers to this socket. */
  close(): void {
    const [directory, own] = [this.#directory, this.#stat];
    if (directory && own) {
      const isOwn = ({ dev, ino }: Stats): boolean => dev === own.dev && ino === own.ino;
      try {
        const stat = directory.stat(this.#name);
        // No server of this user replaces a socket that is bound. Nothing else is made in the folder, which may be removed
        // at the same moment.
        if (directory.isPrivate && stat && isOwn(stat)) directory.unlink(this.#name);
        else directory.removeIf(this.#name, isOwn);
      } catch {
        // The directory is gone or read-only: the next server replaces a socket that no process has bound.
      }
      directory.close();
    }
    // Close last: until then no other file can get this socket's inode number.
    closeDescriptor(this.fd);
  }
}

function listening(path: string): number {
  const fd = listenUnix(path);
  if (fd < 0) throw new UffdError(fd, 'bind');
  return fd;
}

/** Sets owner and mode of a socket, by its inode. */
function setOwnerAndMode(path: string, { mode, owner }: SocketAccess): Stats {
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

/**
 * Says which privilege is missing, because the kernel's EPERM does not. Linking a socket of another owner needs
 * privilege, too.
 */
function explainingEperm<T>({ owner }: SocketAccess, body: () => T): T {
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

function publish(
  privateDirectory: Directory,
  inside: string,
  directory: Directory,
  name: string,
  path: string,
): void {
  try {
    privateDirectory.link(inside, directory, name);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    throw new SocketError(`cannot listen at ${path}: another process has just made something there`);
  }
}

/** Removes a socket that no process has bound; leaves anything else. */
function removeStaleSocket(directory: Directory, name: string, path: string): void {
  directory.removeIf(name, (stat, where) => {
    if (!stat.isSocket()) throw new SocketError(`${path} is there already, and is no socket`);
    const bound = isBound(where);
    if (typeof bound === 'number') throw new UffdError(bound, 'connect');
    if (bound) throw new SocketError(`a process already listens at ${path}`);
    return true;
  });
}

function messageOf(error: unknown): string {
  if (error instanceof UffdError || error instanceof UntrustedPathError) return error.message;
  const { errno, message } = error as NodeJS.ErrnoException;
  return errno === undefined ? message : new UffdError(errno, 'bind').message;
}
