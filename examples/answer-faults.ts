import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { Mapping, Userfaultfd } from 'userfaultfd';

if (isMainThread) {
  const memory = Mapping.anonymous(4 * 4096);
  const uffd = Userfaultfd.open();
  uffd.register(memory.address, memory.length);

  // This thread decides what the memory contains, at the moment another thread touches it.
  uffd.start({
    pagefault({ page, access }) {
      const index = Number(page - memory.address) / uffd.pageSize;
      console.log(`${access} of page ${index}`);
      uffd.copy(page, new Uint8Array(uffd.pageSize).fill(65 + index));
    },
  });

  const reader = new Worker(new URL(import.meta.url), { workerData: memory.share() });
  reader.on('exit', () => uffd.close());
} else {
  const { bytes } = Mapping.attach(workerData);
  console.log(String.fromCharCode(...[2, 0, 3].map((page) => bytes[page * 4096] ?? 0)));
}
