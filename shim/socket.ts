// Unix sockets that can pass descriptors, which Node's sockets cannot. All are non-blocking and close-on-exec. A
// function that fails returns −errno.
//
// Rule: every descriptor that came with a message is in the result, even if the message is bad otherwise. The caller
// owns these descriptors.

import { constants, openSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { libc, O_PATH, orErrno } from './libc.js';

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOCK_DGRAM = 2;
const SOCK_NONBLOCK_CLOEXEC = 0x80800;
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const SO_PEERCRED = 17;
const SO_RCVTIMEO = 20;
const SO_PEERPIDFD = 77;
const MSG_PEEK = 2;
const MSG_CTRUNC = 8;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x40000000;
const ENAMETOOLONG = -36;
const EPERM = -1;
const ENOENT = -2;
const EPROTOTYPE = -91;
const ECONNREFUSED = -111;

/** struct sockaddr_un: the family, and a path of 108 bytes that need not end in zero. */
const PATH_MOST = 108;
const PATH_AT = 2;
/** struct msghdr and struct iovec with pointers of 64 bits. */
const MSGHDR_BYTES = 56;
const IOVEC_BYTES = 16;
/** struct cmsghdr: the length as a size_t, then level and type. The data follows, padded to a multiple of 8 bytes. */
const CMSG_HEAD = 16;
const BACKLOG = 64;
/** More connections than the queue of a listener can hold, which is one more than its backlog. */
const QUEUED_MOST = 2 * BACKLOG;
const SHUT_WR = 1;
const SHUT_RDWR = 2;
/** SCM_MAX_FD: no message carries more descriptors. */
const FDS_MOST = 253;

/** Credentials of the process at the other end, as of the time it connected. */
export interface Peer {
  /** 0: the process lives in a PID namespace that is not visible from here. */
  readonly pid: number;
  readonly uid: number;
  readonly gid: number;
}

/** What `receive` brought. */
export interface Received {
  /** Bytes received; 0: the other end has closed. Or −errno, which is EAGAIN if there is no message. */
  readonly result: number;
  /** Descriptors that came with the message, in order. */
  readonly fds: readonly number[];
  /** Some descriptors did not fit, or could not be installed (ulimit -n), and are lost. */
  readonly truncated: boolean;
}

/** Makes a socket that listens at a path. The path must not exist yet. */
export function listenUnix(path: string): number {
  const c = libc();
  const fd = c.socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK_CLOEXEC, 0);
  if (fd < 0) return -c.errno();
  const address = addressOf(path);
  if (address === undefined) return closed(fd, ENAMETOOLONG);
  if (c.bind(fd, address, address.length) < 0) return closed(fd, -c.errno());
  if (c.listen(fd, BACKLOG) < 0) return closed(fd, -c.errno());
  return fd;
}

/** Makes two sockets that are connected to each other. Both are −errno if that fails. */
export function socketPair(): [number, number] {
  const c = libc();
  const fds = new Int32Array(2);
  if (c.socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK_CLOEXEC, 0, fds) < 0) fds.fill(-c.errno());
  return [...fds] as [number, number];
}

/**
 * Connects to the listener at a path of any length. ECONNREFUSED: no process listens; EAGAIN: the listener's queue is
 * full.
 */
export function connectUnix(path: string): number {
  return connected(path, SOCK_STREAM);
}

function connected(path: string, kind: number): number {
  const folder = Buffer.byteLength(path) < PATH_MOST || isAbstract(path) ? undefined : openFolder(path);
  if (folder === undefined) return connectedTo(path, kind);
  if (folder < 0) return folder;
  return closed(folder, connectedTo(`/proc/self/fd/${folder}/${basename(path)}`, kind));
}

/**
 * Opens the folder of a path that is too long for an address. A shorter path leads through the folder's descriptor.
 * −errno.
 */
function openFolder(path: string): number {
  try {
    return openSync(dirname(path), O_PATH | constants.O_DIRECTORY);
  } catch (error) {
    return (error as NodeJS.ErrnoException).errno ?? ENAMETOOLONG;
  }
}

function connectedTo(path: string, kind: number): number {
  const c = libc();
  const fd = c.socket(AF_UNIX, kind | SOCK_NONBLOCK_CLOEXEC, 0);
  if (fd < 0) return -c.errno();
  const address = addressOf(path);
  if (address === undefined) return closed(fd, ENAMETOOLONG);
  return c.connect(fd, address, address.length) < 0 ? closed(fd, -c.errno()) : fd;
}

/** Accepts a connection. */
export function acceptUnix(listener: number): number {
  return orErrno(libc().accept4(listener, 0, 0, SOCK_NONBLOCK_CLOEXEC));
}

/**
 * Stops listening: no process can connect any more. Returns the connections in the queue, as descriptors. The caller
 * closes the listener. Its queue is empty by then, so that closes no connection.
 */
export function stopListening(listener: number): number[] {
  libc().shutdown(listener, SHUT_RDWR);
  const queued: number[] = [];
  for (let fd = acceptUnix(listener); fd >= 0 && queued.length < QUEUED_MOST; fd = acceptUnix(listener)) {
    queued.push(fd);
  }
  return queued;
}

/** Ends the sending half of a connection: the other end reads its end. */
export function shutdownSending(fd: number): number {
  return orErrno(libc().shutdown(fd, SHUT_WR));
}

export function peerOf(fd: number): Peer | undefined {
  const credentials = new Int32Array(3);
  if (readOption(fd, SO_PEERCRED, credentials) < 0) return undefined;
  const [pid = 0, uid = 0, gid = 0] = credentials;
  return { pid, uid: uid >>> 0, gid: gid >>> 0 };
}

/**
 * A pidfd, close-on-exec, of the process that connected, even if another process has its PID by now (Linux 6.5).
 * −errno: ENOPROTOOPT on older kernels; ESRCH or EINVAL if it has exited.
 */
export function peerPidfd(fd: number): number {
  const pidfd = new Int32Array([-1]);
  const result = readOption(fd, SO_PEERPIDFD, pidfd);
  return result < 0 ? result : (pidfd[0] as number);
}

function readOption(fd: number, name: number, into: Int32Array): number {
  const { koffi, getsockopt } = libc();
  const length = new Uint32Array([into.byteLength]);
  return orErrno(getsockopt(fd, SOL_SOCKET, name, koffi.address(into), koffi.address(length)));
}

/** Receives as many bytes of a message as fit, with its descriptors. */
export function receive(fd: number, into: Uint8Array): Received {
  return received(fd, into, MSG_CMSG_CLOEXEC);
}

/** As `receive`, but the message stays in the queue, and the descriptors are duplicates. It never waits. */
export function peek(fd: number, into: Uint8Array): Received {
  return received(fd, into, MSG_CMSG_CLOEXEC | MSG_PEEK | MSG_DONTWAIT);
}

/** Whether a receiving call that waits for a message has a time limit (SO_RCVTIMEO). */
export function hasReceiveTimeout(fd: number): boolean {
  const time = new Int32Array(4);
  return readOption(fd, SO_RCVTIMEO, time) === 0 && time.some((word) => word !== 0);
}

function received(fd: number, into: Uint8Array, flags: number): Received {
  const message = new Message(into, new Uint8Array(CMSG_HEAD + 4 * FDS_MOST + 4));
  const result = orErrno(libc().recvmsg(fd, message.address, flags));
  if (result < 0) return { result, fds: [], truncated: false };
  return { result, fds: message.descriptors(), truncated: message.truncated };
}

/** Sends bytes, and descriptors with them. Returns how many bytes were sent. */
export function send(fd: number, bytes: Uint8Array, fds: readonly number[] = []): number {
  const message = new Message(bytes, controlOf(fds));
  return orErrno(libc().sendmsg(fd, message.address, MSG_NOSIGNAL));
}

/** Sends a datagram to a path, or to an abstract name that begins with '@'. */
export function sendDatagram(path: string, text: string): number {
  const fd = connected(path, SOCK_DGRAM);
  if (fd < 0) return fd;
  const result = send(fd, Buffer.from(text));
  return closed(fd, result < 0 ? result : 0);
}

/**
 * Whether a process has bound the socket at a path, even if it does not listen; −errno if that cannot be determined.
 * That process does not notice, because connecting a datagram socket queues no connection.
 */
export function isBound(path: string): boolean | number {
  const fd = connected(path, SOCK_DGRAM);
  if (fd >= 0) return closed(fd, 0) === 0;
  // The socket is of another type, or accepts datagrams from one peer only.
  if (fd === EPROTOTYPE || fd === EPERM) return true;
  return fd === ECONNREFUSED || fd === ENOENT ? false : fd;
}

/** Abstract names begin with '@' or a zero character. */
function isAbstract(path: string): boolean {
  return path.startsWith('@') || path.startsWith('\0');
}

function closed(fd: number, result: number): number {
  libc().close(fd);
  return result;
}

/** A struct sockaddr_un that ends with its path; undefined if the path does not fit. */
function addressOf(path: string): Uint8Array | undefined {
  const name = Buffer.from(path);
  if (name.length >= PATH_MOST) return undefined;
  const abstract = isAbstract(path);
  const address = Buffer.alloc(PATH_AT + name.length + (abstract ? 0 : 1));
  address.writeUInt16LE(AF_UNIX);
  name.copy(address, PATH_AT);
  if (abstract) address[PATH_AT] = 0;
  return address;
}

/** The control bytes that pass descriptors; empty if there are none. */
function controlOf(fds: readonly number[]): Uint8Array {
  if (fds.length === 0) return new Uint8Array();
  const control = Buffer.alloc((CMSG_HEAD + 4 * fds.length + 7) & ~7);
  control.writeBigUInt64LE(BigInt(CMSG_HEAD + 4 * fds.length));
  control.writeInt32LE(SOL_SOCKET, 8);
  control.writeInt32LE(SCM_RIGHTS, 12);
  for (const [index, fd] of fds.entries()) control.writeInt32LE(fd, CMSG_HEAD + 4 * index);
  return control;
}

/** A struct msghdr over some bytes and some control bytes. */
class Message {
  readonly address: bigint;
  readonly #header = new DataView(new ArrayBuffer(MSGHDR_BYTES));
  readonly #control: DataView;
  /** A field keeps it alive, because the header only holds its address. */
  readonly #vector = new BigUint64Array(IOVEC_BYTES / 8);

  constructor(bytes: Uint8Array, control: Uint8Array) {
    const { koffi } = libc();
    this.#control = new DataView(control.buffer, control.byteOffset, control.byteLength);
    this.#vector[0] = bytes.length === 0 ? 0n : koffi.address(bytes);
    this.#vector[1] = BigInt(bytes.length);
    this.#header.setBigUint64(16, koffi.address(this.#vector), true);
    this.#header.setBigUint64(24, 1n, true);
    this.#header.setBigUint64(32, control.length === 0 ? 0n : koffi.address(control), true);
    this.#header.setBigUint64(40, BigInt(control.length), true);
    this.address = koffi.address(this.#header);
  }

  get truncated(): boolean {
    return (this.#header.getInt32(48, true) & MSG_CTRUNC) !== 0;
  }

  /** The descriptors in the control bytes. */
  descriptors(): number[] {
    const control = this.#control;
    const end = Number(this.#header.getBigUint64(40, true));
    const fds: number[] = [];
    for (let at = 0; at + CMSG_HEAD <= end; ) {
      const length = Number(control.getBigUint64(at, true));
      if (length < CMSG_HEAD) break;
      const rights =
        control.getInt32(at + 8, true) === SOL_SOCKET && control.getInt32(at + 12, true) === SCM_RIGHTS;
      for (let fd = at + CMSG_HEAD; rights && fd + 4 <= Math.min(at + length, end); fd += 4) {
        fds.push(control.getInt32(fd, true));
      }
      at += (length + 7) & ~7;
    }
    return fds;
  }
}
