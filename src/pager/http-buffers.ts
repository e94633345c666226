// Buffers that sockets read into. By default Node allocates 64 KiB for each read of a socket; most of the time of a fast
// transfer then goes into collecting them as garbage.

import type { OnReadOpts, Socket } from 'node:net';

const SIZE = 64 << 10;
/** Most buffers to keep that no socket uses at the moment. */
const MOST_FREE = 32;

export class ReadBuffers {
  readonly #free: Buffer[] = [];
  /** How many bytes the last read into each buffer brought. */
  readonly #filled = new WeakMap<ArrayBufferLike, number>();

  /** For `net.connect` and `tls.connect`. The bytes go on to the socket's readers as usual. */
  readonly onread: OnReadOpts;

  constructor() {
    const filled = this.#filled;
    this.onread = {
      buffer: () => this.#free.pop() ?? Buffer.allocUnsafeSlow(SIZE),
      callback(this: unknown, length, buffer) {
        filled.set(buffer.buffer, length);
        return (this as Socket).push(buffer.subarray(0, length));
      },
    };
  }

  /**
   * Allows a buffer to be used again, after all bytes of a part of a body were copied.
   *
   * The HTTP parser keeps views of headers. So a buffer is used again only if all that one read brought was this part.
   */
  release({ buffer, byteOffset, length }: Uint8Array): void {
    if (byteOffset !== 0 || this.#filled.get(buffer) !== length || this.#free.length >= MOST_FREE) return;
    this.#filled.delete(buffer);
    this.#free.push(Buffer.from(buffer));
  }
}
