import { isMainThread, Worker, workerData } from 'node:worker_threads';
import { Mapping, Userfaultfd } from 'userfaultfd';

if (isMainThread) {
  // The memory has two addresses: the reader's is registered with the userfaultfd, the alias is not.
  const memory = Mapping.memfd(3 * 4096);
  const alias = Buffer.from(memory.alias().bytes.buffer);
  for (const [index, word] of ['alpha', 'bravo', 'gamma'].entries()) alias.write(word, index * 4096);

  const uffd = Userfaultfd.open({ features: ['minor-shmem'] });
  uffd.register(memory.address, memory.length, 'minor');

  // The page is in the page cache, but not mapped for the reader. Edit it before `continue` maps it.
  uffd.start({
    pagefault({ page, kind }) {
      const offset = Number(page - memory.address);
      console.log(`${kind} fault of page ${offset / 4096}`);
      alias.write(alias.toString('latin1', offset, offset + 5).toUpperCase(), offset);
      uffd.continue(page, uffd.pageSize);
    },
  });

  const reader = new Worker(new URL(import.meta.url), { workerData: memory.share() });
  reader.on('exit', () => uffd.close());
} else {
  const bytes = Buffer.from(Mapping.attach(workerData).bytes.buffer);
  for (const page of [2, 0]) console.log(bytes.toString('latin1', page * 4096, page * 4096 + 5));
}
