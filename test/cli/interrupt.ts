// Loaded first by the command under test: presses Ctrl-C, so that it and its guest get the signal, when its bar is there.

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
