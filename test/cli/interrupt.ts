// Loaded first by the command under test: sends it the signal of Ctrl-C when it hides the cursor for its bar.

import { isMainThread } from 'node:worker_threads';

const HIDE = '\u001b[?25l';

if (isMainThread) {
  const { stderr } = process;
  const write = stderr.write.bind(stderr) as (...args: unknown[]) => boolean;
  stderr.write = (...args: unknown[]): boolean => {
    if (String(args[0]).includes(HIDE)) setTimeout(() => process.kill(process.pid, 'SIGINT'), 50);
    return write(...args);
  };
}
