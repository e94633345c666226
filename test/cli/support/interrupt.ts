// A module that the command under test preloads: when the progress bar appears, it sends SIGINT to the process group,
// so to the guest too, as Ctrl-C does.

import { isMainThread } from 'node:worker_threads';

const EMPTY = '░';

if (isMainThread && !process.send) {
  const { stderr } = process;
  const write = stderr.write.bind(stderr) as (...args: unknown[]) => boolean;
  let pressed = false;
  stderr.write = (...args: unknown[]): boolean => {
    if (!pressed && String(args[0]).includes(EMPTY)) {
      pressed = true;
      setTimeout(() => process.kill(0, 'SIGINT'), 50);
    }
    return write(...args);
  };
}
