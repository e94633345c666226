// The monitor's side of a hand-off, for programs that want their memory served, and for tests.

import { closeDescriptor } from '../../shim/descriptors.js';
import { MAP_FIXED, MAP_NORESERVE, MAP_PRIVATE, mmap, PROT_READ, PROT_WRITE } from '../../shim/memory.js';
import { connectUnix, receive, send } from '../../shim/socket.js';
import { watchReadable } from '../../shim/watch.js';
import { checkInteger, checkPageAddress } from '../errors/arguments.js';
import { UffdError } from '../errors/errors.js';
import {
  HandOffError,
  handOffText,
  MEMORY_REQUEST,
  parseMemoryAnswer,
  type Region,
  SYSTEM_PAGE,
} from './handoff-protocol.js';

/** The connection of a hand-off. The memory is still served after the connection is closed. */
export interface HandedOver extends Disposable {
  close(): void;
}

/**
 * Hands a userfaultfd over to the server at a path, as Firecracker does: one message, with the descriptor attached.
 * The caller keeps its own copy, and may close it at any time.
 *
 * @throws UffdError ENOENT, ECONNREFUSED (no process listens), EAGAIN (the queue is full), EBADF
 */
export function handOver(path: string, regions: readonly Region[], fd: number): HandedOver {
  const socket = connectUnix(path);
  if (socket < 0) throw new UffdError(socket, 'connect');
  try {
    sendWhole(socket, handOffText(regions), [fd]);
  } catch (error) {
    closeDescriptor(socket);
    throw error;
  }
  let open = true;
  const close = (): void => {
    if (open) closeDescriptor(socket);
    open = false;
  };
  return { close, [Symbol.dispose]: close };
}

/** @throws UffdError */
function sendWhole(socket: number, bytes: Uint8Array, fds: readonly number[]): void {
  for (let sent = 0; sent < bytes.length; ) {
    const some = send(socket, bytes.subarray(sent), sent === 0 ? fds : []);
    if (some < 0) throw new UffdError(some, 'sendmsg');
    sent += some;
  }
}

/** The server's answers have a few dozen bytes; an error, some hundreds. */
const ANSWER_BYTES = 4096;
const EAGAIN = -11;
/** Milliseconds that the server may take to answer. */
const ANSWER_MS = 5000;

/**
 * Asks the server at a path for the memory that its guests share (`sharePages` of `serve`).
 *
 * Map the answer over the guest's memory (`mapOver`), open a userfaultfd with the features `event-remove` and
 * `minor-shmem`, register the memory in the modes `missing` and `minor`, and hand it over with the answer's `handOver`.
 *
 * @throws UffdError as `handOver`; HandOffError if the server shares no pages, or does not answer within five seconds
 */
export async function requestSharedMemory(path: string): Promise<RequestedMemory> {
  const socket = connectUnix(path);
  if (socket < 0) throw new UffdError(socket, 'connect');
  try {
    sendWhole(socket, Buffer.from(MEMORY_REQUEST), []);
    const { text, fds } = await answerOf(socket);
    try {
      const answer = parseMemoryAnswer(text);
      if ('error' in answer) throw new HandOffError(`the server shares no pages: ${answer.error}`);
      const [fd] = fds;
      if (fd === undefined) throw new HandOffError('the answer came without a descriptor');
      for (const other of fds.splice(1)) closeDescriptor(other);
      return new RequestedMemory(socket, fd, answer.size);
    } catch (error) {
      for (const fd of fds) closeDescriptor(fd);
      throw error;
    }
  } catch (error) {
    closeDescriptor(socket);
    throw error;
  }
}

/** The server sends its answer in one message. */
function answerOf(socket: number): Promise<{ text: string; fds: number[] }> {
  return new Promise((resolve, reject) => {
    const end = (error?: Error): void => {
      clearTimeout(limit);
      watch.close();
      if (error) reject(error);
    };
    const limit = setTimeout(
      () => end(new HandOffError(`the server did not answer within ${ANSWER_MS} ms`)),
      ANSWER_MS,
    );
    const watch = watchReadable(socket, () => {
      const buffer = Buffer.alloc(ANSWER_BYTES);
      const { result, fds } = receive(socket, buffer);
      if (result === EAGAIN) return;
      if (result > 0) {
        end();
        resolve({ text: buffer.toString('utf8', 0, result), fds: [...fds] });
      } else {
        for (const fd of fds) closeDescriptor(fd);
        end(new HandOffError('the server has closed the connection; it may know no shared memory'));
      }
    });
  });
}

/** Memory of an image that the guests of a server share, until it is closed. What is mapped stays mapped. */
export class RequestedMemory implements Disposable {
  /** The memfd. It is sealed: it cannot be written to. */
  readonly fd: number;
  /** Bytes of the guest's memory, in whole pages. */
  readonly bytes: number;
  readonly #socket: number;
  #closed = false;

  /** @internal */
  constructor(socket: number, fd: number, bytes: number) {
    this.#socket = socket;
    this.fd = fd;
    this.bytes = bytes;
  }

  /**
   * Maps a part privately over memory of this process: what is written there stays there. Register the memory in the
   * modes `missing` and `minor` before any thread touches it.
   *
   * @param address page-aligned; what is mapped there is replaced
   * @param length whole pages
   * @param offset of the part in the image; page-aligned
   * @throws RangeError, TypeError, UffdError
   */
  mapOver(address: bigint, length: number, offset: number): void {
    checkPageAddress(address, 'address', SYSTEM_PAGE);
    checkInteger(length, 'length', 1, this.bytes);
    checkInteger(offset, 'offset', 0, this.bytes - length);
    const flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
    const result = mmap(address, length, PROT_READ | PROT_WRITE, flags, this.fd, offset);
    if (result < 0n) throw new UffdError(Number(result), 'mmap', { length });
  }

  /**
   * Hands a userfaultfd over whose regions map this memory, as `handOver` does, on the same connection. It has the features
   * `event-remove` and `minor-shmem`.
   *
   * @throws UffdError
   */
  handOver(regions: readonly Region[], uffd: number): void {
    sendWhole(this.#socket, handOffText(regions.map((region) => ({ ...region, shared: true }))), [uffd]);
  }

  /** Ends the connection, and closes the memfd. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    closeDescriptor(this.fd);
    closeDescriptor(this.#socket);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
