// The thread of synchronous tracking: removes the protection of each page that is about to be written, and does
// nothing else. The tracker reads the written pages from the page tables.

import '../kernel/linux.js';
import { parentPort, workerData } from 'node:worker_threads';
import type { Feature } from '../kernel/features.js';
import type { RegisteredRange } from '../uffd/registered-range.js';
import { Userfaultfd } from '../uffd/userfaultfd.js';

export interface UnprotectTask {
  /** The userfaultfd; it belongs to this thread. */
  readonly fd: number;
  readonly features: ReadonlySet<Feature>;
  readonly ranges: readonly RegisteredRange[];
}

/** The main function of the thread: runs until it is stopped or the memory is gone. */
export function unprotectPages(): void {
  const { fd, features, ranges }: UnprotectTask = workerData;
  const uffd = Userfaultfd.wrap(fd, { features, ranges });
  const pageSize = ranges[0]?.pageSize ?? uffd.pageSize;
  parentPort?.postMessage(uffd.stopHandle);
  try {
    uffd.start({ pagefault: ({ page }) => void uffd.writeProtect(page, pageSize, false) }, { wait: 'block' });
  } catch (error) {
    // No thread would remove the protection any more, so writers must not wait for that.
    for (const { start, length } of uffd.ranges) uffd.unregister(start, length);
    throw error;
  } finally {
    uffd.close();
  }
}
