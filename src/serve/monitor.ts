// A connected process: its peer credentials, whether it has exited, and how it is killed.
//
// Rules:
//  - A process is killed only through a pidfd of the process that connected. If the kernel cannot give one for a socket
//    (before Linux 6.5), a pidfd that was opened by PID is used only if that process has registered memory at the
//    address that was handed over. Without this check, the PID may belong to another process by now.
//  - This process is never killed.

import { closeDescriptor } from '../../shim/descriptors.js';
import { watchesMissing } from '../../shim/memory.js';
import { hasExited, openPidfd, SIGKILL, signalPidfd } from '../../shim/process.js';
import { type Peer, peerPidfd } from '../../shim/socket.js';

/** The result on older kernels, which do not know the socket option. */
const ENOPROTOOPT = -92;

/** The result of an attempt to kill a monitor: `killed`, or why not. `gone`: it had exited already. */
export type KillResult = { readonly is: 'killed' } | { readonly is: 'gone' | 'alive'; readonly why: string };

const GONE: KillResult = { is: 'gone', why: 'it has exited' };
const FAILURES: Readonly<Record<number, KillResult>> = {
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
  /** −1: the process has exited, or is not visible from here. */
  readonly #pidfd: number;
  /** Whether the pidfd certainly is that of the process that connected. */
  readonly #certain: boolean;
  #holders = 1;
  /** Whether it has handed over a userfaultfd. */
  served = false;

  /** The process at the other end of a connection. Release it with `release`. */
  constructor(fd: number, peer: Peer) {
    this.peer = peer;
    const pidfd = peerPidfd(fd);
    this.#certain = pidfd !== ENOPROTOOPT;
    this.#pidfd = Math.max(this.#certain || peer.pid === 0 ? pidfd : openPidfd(peer.pid), -1);
  }

  /** The monitor's name in messages. */
  get name(): string {
    return this.peer.pid > 0 ? `pid ${this.peer.pid}` : 'in another PID namespace';
  }

  /** Adds a user of this object. */
  hold(): this {
    this.#holders++;
    return this;
  }

  /** Removes a user of this object. */
  release(): void {
    if (--this.#holders === 0 && this.#pidfd >= 0) closeDescriptor(this.#pidfd);
  }

  get isThisProcess(): boolean {
    return this.peer.pid === process.pid;
  }

  /** Whether it has exited, with all of its threads; undefined if that is unknown. */
  get exited(): boolean | undefined {
    return this.#pidfd < 0 ? undefined : hasExited(this.#pidfd);
  }

  /**
   * Kills it.
   *
   * @param watched an address of memory that it has handed over and still has; undefined if none is known
   */
  kill(watched: bigint | undefined): KillResult {
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
