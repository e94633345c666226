// The views that faults are answered from. Each view is kept alive exactly as long as the core may copy from it.
//
// Rule: the core decides when a source ends (replaced, unregistered, unmapped, moved, or evicted). After every call
// that can end a source, the caller calls `releaseEnded`.

import type { SourceKind } from '../bindings/core.js';
import type { Core } from './core.js';

/** The largest number of a view. The core takes positive numbers of 31 bits. */
const KEEPERS = 0x7fffffff;

export class Sources {
  readonly #core: Core;
  readonly #views = new Map<number, ArrayBufferView>();
  #last = 0;

  constructor(core: Core) {
    this.#core = core;
  }

  /** Adds a source. `view`: the object to keep alive for it. */
  put(
    start: bigint,
    length: number,
    kind: SourceKind,
    data: bigint,
    window: number,
    view?: ArrayBufferView,
  ): void {
    if (view) this.#last = (this.#last % KEEPERS) + 1;
    this.#core.arguments(start, length, data).sourcePut(kind, window, view ? this.#last : 0);
    if (view) this.#views.set(this.#last, view);
    this.releaseEnded();
  }

  /** Releases the views whose source has ended. */
  releaseEnded(): void {
    if (this.#views.size === 0) return;
    const { exports } = this.#core;
    for (let keeper = exports.sourceEnded(); keeper !== 0; keeper = exports.sourceEnded())
      this.#views.delete(keeper);
  }

  /** Forgets all sources. */
  clear(): void {
    this.#core.exports.sourcesClear();
    this.#views.clear();
  }
}
