import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { Mapping, Userfaultfd } from 'userfaultfd';

if (isMainThread) {
  // Pages are prepared in one mapping, and moved to the other at their first touch. No byte is copied.
  const staging = Mapping.anonymous(3 * 4096);
  const memory = Mapping.anonymous(3 * 4096);
  const prepared = staging.bytes;
  for (let page = 0; page < 3; page++) prepared.fill(65 + page, page * 4096, (page + 1) * 4096);

  const uffd = Userfaultfd.open({ features: ['move'] });
  uffd.register(memory.address, memory.length);
  uffd.start({
    pagefault({ page }) {
      const offset = page - memory.address;
      console.log(`page ${offset / 4096n} moves`);
      uffd.move(page, staging.address + offset, uffd.pageSize);
    },
  });

  const reader = new Worker(new URL(import.meta.url), { workerData: memory.share() });
  reader.on('exit', () => {
    uffd.close();
    console.log('left behind:', ...[0, 1, 2].map((page) => prepared[page * 4096]));
  });
} else {
  const { bytes } = Mapping.attach(workerData);
  console.log('read:', ...[2, 0].map((page) => bytes[page * 4096]));
}
