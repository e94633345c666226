// The trial of 'event-fork'. A process that forks with the C library, as Node does, holds locks until the event is
// read, so a thread of the same process might never get to read it. So another process reads the event. It inherits the
// descriptor. It is started while no memory is registered, so its own start causes no event.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { startProcess } from '../../embed.js';
import { Mapping, Userfaultfd } from '../../index.js';
import { COMMAND } from '../command-file.js';

/** The descriptor's number in the reading process. */
const FD = 4;

/** How many forks are reported when this process starts one; 0 if this Node starts processes without a fork. */
export async function forksReported(uffd: Userfaultfd): Promise<number> {
  const stdio = ['ignore', 'ignore', 'inherit', 'ipc', uffd.fd] as const;
  const reader = startProcess('fork-reader', [], { stdio: [...stdio] }, COMMAND);
  const ended = once(reader, 'exit').then(() =>
    Promise.reject(new Error('the process that reads has ended')),
  );
  const forks = async (): Promise<number> => (await Promise.race([once(reader, 'message'), ended]))[0];
  try {
    await forks();
    using memory = Mapping.anonymous(uffd.pageSize);
    uffd.register(memory.address, memory.length);
    // `spawn` does not return before the reader has read the event.
    await once(spawn(process.execPath, ['--version'], { stdio: 'ignore' }), 'exit');
    reader.send('count');
    return await forks();
  } finally {
    reader.kill('SIGKILL');
  }
}

/** The main function of the reading process: sends how many forks it has read, at the start and at each request. */
export function playForkReader(): void {
  const uffd = Userfaultfd.wrap(FD, { features: ['event-fork'] });
  let forks = 0;
  uffd.start({
    pagefault() {},
    forked(child) {
      forks++;
      child.close();
    },
  });
  process.on('disconnect', () => process.exit());
  process.on('message', () => process.send?.(forks));
  process.send?.(forks);
}
