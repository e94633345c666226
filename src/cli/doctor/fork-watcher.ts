// The process that reads the events of another one's fork; see fork-trial.ts. Ends with whoever started it.

import { Userfaultfd } from '../../index.js';

/** Sent when it is about to read, and once more when it is told to end. */
export interface FromForkWatcher {
  forks: number;
}

/** The descriptor's place among those inherited. */
const FD = 4;

/** Runs in a process of its own. */
export function watchForks(): void {
  const uffd = Userfaultfd.wrap(FD, { features: ['event-fork'] });
  let forks = 0;
  const tell = (): void => void process.send?.({ forks } satisfies FromForkWatcher);
  uffd.start({
    pagefault() {},
    forked(child) {
      forks++;
      child.close();
    },
  });
  process.on('disconnect', () => process.exit());
  process.on('message', tell);
  tell();
}
