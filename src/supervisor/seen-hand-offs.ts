// The hand-offs that a handler receives, which are looked at in its sockets' queues before it receives them: the regions
// of each userfaultfd.

import { closeDescriptor, kindOf, sameFile } from '../../shim/descriptors.js';
import { hasReceiveTimeout, peek } from '../../shim/socket.js';
import { parseRegions, type Region } from '../serve/handoff-protocol.js';
import { UFFD_LINK } from './caller.js';

const TEXT_MOST = 65_536;
const EAGAIN = -11;
/** Hand-offs whose descriptor is not in use yet. Older ones are forgotten. */
const KEPT_MOST = 16;

interface HandOff {
  readonly fd: number;
  readonly regions: readonly Region[];
}

export class SeenHandOffs {
  readonly #seen: HandOff[] = [];
  readonly #text = Buffer.alloc(TEXT_MOST);

  /** Looks at the next message of a socket. False: there is none yet, and a receiving call would wait for it. */
  look(socket: number, waits: boolean): boolean {
    const { result, fds } = peek(socket, this.#text);
    if (result === EAGAIN) return !waits || hasReceiveTimeout(socket);
    for (const fd of fds) this.#take(fd, this.#text.toString('utf8', 0, Math.max(result, 0)));
    return true;
  }

  #take(fd: number, text: string): void {
    const regions = kindOf(fd) === UFFD_LINK && !this.#has(fd) ? regionsOf(text) : undefined;
    if (regions) this.#seen.push({ fd, regions });
    else closeDescriptor(fd);
    if (this.#seen.length > KEPT_MOST) closeDescriptor((this.#seen.shift() as HandOff).fd);
  }

  #has(fd: number): boolean {
    return this.#seen.some((seen) => sameFile(seen.fd, fd) === true);
  }

  /** The regions of a userfaultfd that is used now; undefined: they are not known. */
  regionsOf(fd: number): readonly Region[] | undefined {
    // Without kcmp(2), the only hand-off must be that of the descriptor.
    const alone = this.#seen.length === 1;
    const index = this.#seen.findIndex((seen) => sameFile(seen.fd, fd) ?? alone);
    const [found] = index < 0 ? [] : this.#seen.splice(index, 1);
    if (found) closeDescriptor(found.fd);
    return found?.regions;
  }

  close(): void {
    for (const { fd } of this.#seen.splice(0)) closeDescriptor(fd);
  }
}

/** Undefined: the text is not a hand-off, or comes in pieces. */
function regionsOf(text: string): Region[] | undefined {
  try {
    return parseRegions(text, Number.MAX_SAFE_INTEGER);
  } catch {
    return undefined;
  }
}
