// A module that the command under test preloads: at the moment at which the command says what UFFD_AT matches, it gets
// the signal UFFD_SIGNAL, or the file UFFD_TRUNCATE is emptied. A test that did that from outside could be too late.

import { truncateSync } from 'node:fs';
import { isMainThread } from 'node:worker_threads';

const { UFFD_AT, UFFD_SIGNAL, UFFD_TRUNCATE } = process.env;

// The guest's process has a channel to its parent.
if (UFFD_AT !== undefined && isMainThread && !process.send) {
  const what = new RegExp(UFFD_AT);
  const { stderr } = process;
  const write = stderr.write.bind(stderr) as (...args: unknown[]) => boolean;
  let said = '';
  stderr.write = (...args: unknown[]): boolean => {
    const before = what.test(said);
    said += args[0];
    if (!before && what.test(said)) {
      if (UFFD_TRUNCATE !== undefined) truncateSync(UFFD_TRUNCATE, 0);
      if (UFFD_SIGNAL !== undefined) process.kill(process.pid, UFFD_SIGNAL);
    }
    return write(...args);
  };
}
