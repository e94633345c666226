import { pathToFileURL } from 'node:url';
import type { FaultHandler } from 'userfaultfd';
import { explore, SimulationError } from 'userfaultfd/testing';

/** Fetches a page from a remote store. */
export type Fetch = (page: bigint) => Promise<Uint8Array>;

/** Fills pages from the store. It is wrong, but passes every test on a real kernel. */
export function hasty(fetch: Fetch): FaultHandler {
  return {
    async pagefault({ page }, uffd) {
      const size = uffd.pageSize;
      if (uffd.pageState(page) === 'removed') {
        if (uffd.zero(page, size) < size) uffd.wake(page, size);
        return;
      }
      const data = await fetch(page);
      // A short fill met a mapping change: wake the thread, so that it asks again.
      if (uffd.copy(page, data) < size) uffd.wake(page, size);
    },
  };
}

/** The same, but it checks the state again after the fetch. */
export function careful(fetch: Fetch): FaultHandler {
  return {
    async pagefault({ page }, uffd) {
      const size = uffd.pageSize;
      const data = uffd.pageState(page) === 'missing' ? await fetch(page) : undefined;
      const due = data && uffd.pageState(page) === 'missing';
      const done = due ? uffd.copy(page, data) : uffd.zero(page, size);
      if (done < size) uffd.wake(page, size);
    },
  };
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  for (const handler of [hasty, careful]) {
    try {
      const { runs } = await explore({
        seeds: 300,
        inject: { held: 0.1, repeat: 0.05, wake: 0.01 },
        handler: (world) => handler((page) => world.fetch(page)),
      });
      console.log(`${handler.name}: nothing is broken in ${runs} worlds`);
    } catch (error) {
      if (!(error instanceof SimulationError)) throw error;
      console.log(`${handler.name}: ${error.message}`);
    }
  }
}
