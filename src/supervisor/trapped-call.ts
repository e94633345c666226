// The trapped call that was received last: its thread, its number and its arguments (struct seccomp_notif).

import { type CallName, callNames } from './system-calls.js';

const ID_AT = 0;
const PID_AT = 8;
const NUMBER_AT = 16;
const ARGUMENTS_AT = 32;

export class TrappedCall {
  readonly #words: DataView;

  /** `notification`: where calls are received. */
  constructor(notification: DataView) {
    this.#words = notification;
  }

  /** Undefined: a call that the filter does not trap. */
  get name(): CallName | undefined {
    return callNames.get(this.#words.getInt32(NUMBER_AT, true));
  }

  /** The thread that made it. */
  get pid(): number {
    return this.#words.getUint32(PID_AT, true);
  }

  /** Names the call in its answer. */
  get id(): bigint {
    return this.#words.getBigUint64(ID_AT, true);
  }

  /** An argument that is an address or a length. */
  argument(index: number): number {
    const at = ARGUMENTS_AT + 8 * index;
    return this.#words.getUint32(at + 4, true) * 2 ** 32 + this.#words.getUint32(at, true);
  }

  /** An argument that is an `int`. */
  signed(index: number): number {
    return this.#words.getInt32(ARGUMENTS_AT + 8 * index, true);
  }

  /** An argument that is an `unsigned int`. */
  unsigned(index: number): number {
    return this.#words.getUint32(ARGUMENTS_AT + 8 * index, true);
  }
}
