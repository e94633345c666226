import { writeSync } from 'node:fs';
import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { Mapping, Userfaultfd } from 'userfaultfd';

/** Loads a page. The middle page is lost. */
function load(page: number): Uint8Array {
  if (page === 1) throw new Error(`page ${page} cannot be read from its source`);
  return new Uint8Array(4096).fill(65 + page);
}

if (isMainThread) {
  const memory = Mapping.anonymous(3 * 4096);
  const uffd = Userfaultfd.open({ features: ['poison'] });
  uffd.register(memory.address, memory.length);

  // The thread waits until its page is resolved. Zeros would be wrong data; without an answer it would wait forever.
  uffd.start({
    pagefault({ page }) {
      try {
        uffd.copy(page, load(Number(page - memory.address) / 4096));
      } catch (error) {
        console.log((error as Error).message);
        uffd.poison(page, uffd.pageSize);
      }
    },
  });

  const saver = new Worker(new URL(import.meta.url), { workerData: memory.share() });
  saver.on('exit', () => uffd.close());
} else {
  const { bytes } = Mapping.attach(workerData);
  const file = Mapping.memfd(3 * 4096);
  for (let page = 0; page < 3; page++) {
    // A system call that meets a poisoned page fails with EFAULT. A touch from JavaScript would raise SIGBUS.
    try {
      writeSync(file.fd, bytes, page * 4096, 4096);
      console.log(`page ${page} is saved`);
    } catch (error) {
      console.log(`page ${page}: ${(error as NodeJS.ErrnoException).code}`);
    }
  }
}
