// The calls in which a handler waits for descriptors, as they are in its memory: poll, select, epoll and their kin.

import { interestsOf, kindOf, memory } from './caller.js';
import type { CallName } from './system-calls.js';

const POLLIN = 1;
const POLLFD_BYTES = 8;
/** Most descriptors of a poll, and bytes of a select's set, that are looked at. */
const POLLFDS_MOST = 256;
const SET_BYTES_MOST = 512;

/** The arguments of the call that was received last. */
interface CallArguments {
  argument(index: number): number;
  signed(index: number): number;
}

/** How a handler waits: for which descriptors, and how long at most (virtual milliseconds; −1: for ever). */
export interface Waiting {
  readonly pid: number;
  /** Whether all other descriptors are sockets. */
  readonly known: boolean;
  readonly limitMs: number;
  /** Writes the result of a wait whose time is over. Returns the call's result. */
  readonly inVain: () => number;
}

export class Waits {
  readonly #call: CallArguments;
  /** The link of the pipe that stands for the userfaultfd. */
  #pipe = '';

  constructor(call: CallArguments) {
    this.#call = call;
  }

  /** A struct timespec in milliseconds. An address of 0: −1. Undefined: it cannot be read. */
  milliseconds(pid: number, address: number, unit = 1e6): number | undefined {
    if (address === 0) return -1;
    const time = new BigInt64Array(2);
    if (memory.read(pid, address, new Uint8Array(time.buffer)) < 0) return undefined;
    return Number(time[0]) * 1000 + Number(time[1]) / unit;
  }

  /** What a handler waits for; undefined: not for the userfaultfd. */
  of(name: CallName, pid: number, pipe: string): Waiting | undefined {
    this.#pipe = pipe;
    switch (name) {
      case 'poll':
        return this.#polling(pid, this.#call.signed(2));
      case 'ppoll':
        return this.#polling(pid, this.milliseconds(pid, this.#call.argument(2)));
      case 'select':
        return this.#selecting(pid, this.milliseconds(pid, this.#call.argument(4), 1e3));
      case 'pselect6':
        return this.#selecting(pid, this.milliseconds(pid, this.#call.argument(4)));
      case 'epoll_wait':
      case 'epoll_pwait':
        return this.#epolling(pid, this.#call.signed(3));
      case 'epoll_pwait2':
        return this.#epolling(pid, this.milliseconds(pid, this.#call.argument(3)));
      default:
        return undefined;
    }
  }

  /** The wait for some descriptors; undefined: the userfaultfd is not among them. */
  #waitFor(
    pid: number,
    fds: readonly number[],
    limitMs: number | undefined,
    inVain: () => number,
  ): Waiting | undefined {
    const kinds = fds.map((fd) => kindOf(pid, fd, this.#pipe));
    if (limitMs === undefined || !kinds.includes('uffd')) return undefined;
    return { pid, known: !kinds.includes('other'), limitMs: limitMs < 0 ? -1 : limitMs, inVain };
  }

  #polling(pid: number, limitMs: number | undefined): Waiting | undefined {
    const [address, count] = [this.#call.argument(0), this.#call.argument(1)];
    if (count === 0 || count > POLLFDS_MOST) return undefined;
    const entries = new DataView(new ArrayBuffer(POLLFD_BYTES * count));
    const bytes = new Uint8Array(entries.buffer);
    if (memory.read(pid, address, bytes) < 0) return undefined;
    const wanted = Array.from({ length: count }, (_, index) => POLLFD_BYTES * index)
      .filter((at) => (entries.getInt16(at + 4, true) & POLLIN) !== 0)
      .map((at) => entries.getInt32(at, true))
      .filter((fd) => fd >= 0);
    return this.#waitFor(pid, wanted, limitMs, () => {
      for (let index = 0; index < count; index++) entries.setInt16(POLLFD_BYTES * index + 6, 0, true);
      return memory.write(pid, address, bytes);
    });
  }

  #selecting(pid: number, limitMs: number | undefined): Waiting | undefined {
    const length = Math.min(SET_BYTES_MOST, Math.ceil(this.#call.argument(0) / 64) * 8);
    const sets = [this.#call.argument(1), this.#call.argument(2), this.#call.argument(3)];
    const set = new Uint8Array(length);
    if (sets[0] === 0 || memory.read(pid, sets[0] as number, set) < 0) return undefined;
    const wanted = Array.from({ length: 8 * length }, (_, fd) => fd).filter(
      (fd) => ((set[fd >> 3] as number) & (1 << (fd & 7))) !== 0,
    );
    return this.#waitFor(pid, wanted, limitMs, () => {
      for (const address of sets) if (address !== 0) memory.write(pid, address, new Uint8Array(length));
      return 0;
    });
  }

  #epolling(pid: number, limitMs: number | undefined): Waiting | undefined {
    return this.#waitFor(pid, interestsOf(pid, this.#call.signed(0)), limitMs, () => 0);
  }
}
