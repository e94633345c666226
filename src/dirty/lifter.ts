// The thread of synchronous tracking: lifts the protection of each page that somebody is about to write, and
// does nothing else. Which pages that were is read off the page tables by whoever asks.

import '../linux.js';
import { parentPort, workerData } from 'node:worker_threads';
import type { Feature } from '../features.js';
import type { RegisteredRange } from '../handler.js';
import { Userfaultfd } from '../userfaultfd.js';

export interface LifterTask {
  /** Belongs to this thread. */
  readonly fd: number;
  readonly features: ReadonlySet<Feature>;
  readonly ranges: readonly RegisteredRange[];
}

/** Runs in a thread of its own, until it is stopped or the memory is gone. */
export function lift(): void {
  const { fd, features, ranges }: LifterTask = workerData;
  const uffd = Userfaultfd.wrap(fd, { features, ranges });
  const pageSize = ranges[0]?.pageSize ?? uffd.pageSize;
  parentPort?.postMessage(uffd.stopHandle);
  try {
    uffd.start({ pagefault: ({ page }) => void uffd.writeProtect(page, pageSize, false) }, { wait: 'block' });
  } catch (error) {
    // Nobody would lift the protection any more: writers must not wait for it.
    for (const { start, length } of uffd.ranges) uffd.unregister(start, length);
    throw error;
  } finally {
    uffd.close();
  }
}
