// A process that has connected: who it is, whether it has exited, and how it is killed.
//
// Rules:
//  - A process is killed only through a pidfd of the process that connected. Where the kernel cannot give one for a socket
//    (before Linux 6.5), a pidfd that was opened by number is used only if that process watches the very memory that was
//    handed over: the number may have become another process's before the connection was accepted.
//  - This process is never killed.

import { closeDescriptor } from '../../shim/descriptors.js';
import { hasExited, openPidfd, SIGKILL, signalPidfd, watchesMissing } from '../../shim/process.js';
import { type Peer, peerPidfd } from '../../shim/socket.js';

/** From older kernels, which do not know the option. */
const ENOPROTOOPT = -92;

/** What came of an attempt to kill a monitor: `killed`, or why not. `gone`: it has exited already. */
export type Killing = { readonly is: 'killed' } | { readonly is: 'gone' | 'alive'; readonly why: string };

const GONE: Killing = { is: 'gone', why: 'it has exited' };
const FAILURES: Readonly<Record<number, Killing>> = {
  0: { is: 'killed' },
  [-1]: {
    is: 'alive',
    why: 'EPERM: the handler has to run as the same user, or with CAP_KILL',
  },
  [-3]: GONE,
  [-22]: { is: 'alive', why: 'EINVAL: it lives in a PID namespace that is out of reach' },
};

export class Monitor {
  readonly peer: Peer;
  /** −1: it has exited, or cannot be seen from here. */
  readonly #pidfd: number;
  /** The pidfd is that of the process which connected, for certain. */
  readonly #certain: boolean;
  #uses = 1;
  /** It has handed over. */
  served = false;

  /** The process at the other end of a connection. To be given up with `leave`. */
  constructor(fd: number, peer: Peer) {
    this.peer = peer;
    const pidfd = peerPidfd(fd);
    this.#certain = pidfd !== ENOPROTOOPT;
    this.#pidfd = Math.max(this.#certain || peer.pid === 0 ? pidfd : openPidfd(peer.pid), -1);
  }

  /** As messages name it. */
  get name(): string {
    return this.peer.pid > 0 ? `pid ${this.peer.pid}` : 'in another PID namespace';
  }

  /** One more needs it. */
  use(): this {
    this.#uses++;
    return this;
  }

  /** One that needed it does so no more. */
  leave(): void {
    if (--this.#uses === 0 && this.#pidfd >= 0) closeDescriptor(this.#pidfd);
  }

  get isThisProcess(): boolean {
    return this.peer.pid === process.pid;
  }

  /** Whether it has exited, with all of its threads; undefined: that cannot be told. */
  get exited(): boolean | undefined {
    return this.#pidfd < 0 ? undefined : hasExited(this.#pidfd);
  }

  /**
   * Kills it.
   *
   * @param watched an address of memory that it has handed over, and which is there still; undefined: nothing is known
   */
  kill(watched: bigint | undefined): Killing {
    const { peer } = this;
    if (this.isThisProcess) return { is: 'alive', why: 'it is the handler itself' };
    if (this.#pidfd < 0) {
      if (this.#certain) return GONE;
      return { is: 'alive', why: 'this kernel cannot tell which process it is (Linux 6.5 can)' };
    }
    if (!this.#certain && (watched === undefined || !watchesMissing(peer.pid, watched))) {
      return { is: 'alive', why: `it may be another process with the same PID (Linux 6.5 can tell)` };
    }
    const result = signalPidfd(this.#pidfd, SIGKILL);
    return FAILURES[result] ?? { is: 'alive', why: `error ${-result}` };
  }
}
