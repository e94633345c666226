// The trial of 'event-fork'. A process that forks with the C library, as Node does, holds locks until the
// event is read, so a thread of the same process might never get to read it. Here another process reads: it
// inherits the descriptor, and is started while nothing is registered, so its own start is no event.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { startProcess } from '../../embed.js';
import { COMMAND } from '../command-file.js';
import type { FromForkWatcher } from './fork-watcher.js';
import { expect, NotTried, type Scene } from './scene.js';
import { watchedPages } from './scratch.js';

export async function forkIsTold({ open }: Scene): Promise<void> {
  using uffd = open(['event-fork']);
  const watcher = startProcess(
    'fork-watcher',
    [],
    {
      // The descriptor becomes number 4 there.
      stdio: ['ignore', 'ignore', 'inherit', 'ipc', uffd.fd],
    },
    COMMAND,
  );
  const heard = async (): Promise<FromForkWatcher> => {
    const gone = once(watcher, 'exit').then(() =>
      Promise.reject(new Error('the process that reads has ended')),
    );
    const [message] = (await Promise.race([once(watcher, 'message'), gone])) as [FromForkWatcher];
    return message;
  };
  try {
    await heard();
    using _memory = watchedPages(uffd);
    // Does not return before the watcher has read the event.
    const child = spawn(process.execPath, ['--version'], { stdio: 'ignore' });
    await once(child, 'exit');
    const counted = heard();
    watcher.send('end');
    const { forks } = await counted;
    if (forks === 0) throw new NotTried('this Node starts processes without a fork');
    expect('forks that were told', forks, 1);
  } finally {
    watcher.kill('SIGKILL');
  }
}
