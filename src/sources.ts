// The views that faults are answered from: each is kept for as long as the core may copy from it, and no longer.
//
// Rule: the core decides when a source ends (another one there, its memory unregistered, unmapped or moved, no room).
// Whoever makes a call that can end one calls `letGo` behind it.

import type { Core } from './core.js';

/** Numbers of keepers are positive and 31 bits long, as the core takes them. */
const KEEPERS = 0x7fffffff;

export class Sources {
  readonly #core: Core;
  readonly #views = new Map<number, ArrayBufferView>();
  #last = 0;

  constructor(core: Core) {
    this.#core = core;
  }

  /** Names a source. `view`: what has to be kept for it. */
  put(start: bigint, length: number, data: bigint, window: number, view?: ArrayBufferView): void {
    if (view) this.#last = (this.#last % KEEPERS) + 1;
    this.#core.arguments(start, length, data).sourcePut(window, view ? this.#last : 0);
    if (view) this.#views.set(this.#last, view);
    this.letGo();
  }

  /** Lets go of the views whose source has ended. */
  letGo(): void {
    if (this.#views.size === 0) return;
    const { exports } = this.#core;
    for (let keeper = exports.sourceEnded(); keeper !== 0; keeper = exports.sourceEnded())
      this.#views.delete(keeper);
  }

  /** Forgets all of them. */
  clear(): void {
    this.#core.exports.sourcesClear();
    this.#views.clear();
  }
}
