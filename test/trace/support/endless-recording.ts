// Serves faults without end, and records them to the given file, until the test kills it.

import { Worker } from 'node:worker_threads';
import { MADV_DONTNEED, madvise } from '../../../shim/memory.js';
import { Mapping, Userfaultfd } from '../../../src/index.js';
import { TraceWriter } from '../../../src/trace/index.js';

const PAGES = 512;

const memory = Mapping.anonymous(PAGES * 4096);
const record = TraceWriter.toFile(process.argv[2] as string);
const uffd = Userfaultfd.open({ record });
uffd.register(memory.address, memory.length);
const bytes = new Uint8Array(uffd.pageSize).fill(1);
let faults = 0;
uffd.start({
  pagefault({ page }) {
    uffd.copy(page, bytes);
    // Without EVENT_REMOVE a removal posts no event: the pages are missing again.
    if (++faults % 64 === 0) madvise(memory.address, memory.length, MADV_DONTNEED);
  },
});
new Worker(new URL('./endless-toucher.js', import.meta.url), { workerData: memory.share() });
