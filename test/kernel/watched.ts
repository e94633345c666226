// A process that is watched from here: watched.c, started and told what to do. Its userfaultfd is taken over by
// pidfd_getfd(2), so that this process alone has it.

import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { libc } from '../../shim/libc.js';
import { linuxKernel } from '../../shim/linux.js';
import { featureBits } from '../../src/features.js';
import { type Feature, type Kernel, type RegisteredRange, Userfaultfd } from '../../src/index.js';
import { compileProgram, needKernel, P } from './support.js';

const SYS_PIDFD_GETFD = 438;

export interface Watched {
  readonly pid: number;
  readonly base: bigint;
  readonly uffd: Userfaultfd;
  /** Tells it one line; its answer. The answer may wait for a fault's. */
  tell(line: string): Promise<string>;
  /** Tells it what it does not answer. */
  order(line: string): void;
  kill(): void;
  /** Resolves when it has ended and was waited for. */
  readonly ended: Promise<void>;
}

let program: string | undefined;

/** Starts one that has `pages` pages, all watched, and adopts its userfaultfd. */
export async function watched(
  pages: number,
  features: readonly Feature[] = [],
  options: { kernel?: Kernel /** Whether to say whose memory it is. */; withPid?: boolean } = {},
): Promise<Watched> {
  needKernel();
  program ??= compileProgram('watched.c');
  const bits = featureBits(features, 'features');
  const child = spawn(program, [`${pages}`, `${bits}`], { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines = linesOf(child);
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  const stop = (): void => void child.kill('SIGKILL');
  process.once('exit', stop);
  void ended.then(() => process.off('exit', stop));
  const [pid, fd, base] = (await lines()).split(' ') as [string, string, string];
  const order = (line: string): void => void child.stdin?.write(`${line}\n`);
  const tell = (line: string): Promise<string> => {
    order(line);
    return lines();
  };
  const own = takeDescriptor(Number(pid), Number(fd));
  await tell('handed');
  const { withPid = true, ...kernel } = options;
  const uffd = Userfaultfd.wrap(own, {
    ...(withPid ? { pid: Number(pid) } : {}),
    features,
    ranges: [rangeAt(BigInt(base), pages)],
    ...kernel,
  });
  return { pid: Number(pid), base: BigInt(base), uffd, tell, order, kill: stop, ended };
}

/** One line of its output after the other. */
function linesOf(child: ChildProcess): () => Promise<string> {
  const lines = createInterface({ input: child.stdout as NodeJS.ReadableStream })[Symbol.asyncIterator]();
  return async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error('the watched process has ended');
    return value;
  };
}

/** A duplicate of another process's descriptor. */
function takeDescriptor(pid: number, fd: number): number {
  const port = linuxKernel().attach(new WebAssembly.Memory({ initial: 1 }));
  const pidfd = port.pidfd(pid);
  const { koffi, errno } = libc();
  const getfd = koffi.load(null).func('syscall', 'long', ['long', 'int', 'int', 'uint']);
  const own = getfd(SYS_PIDFD_GETFD, pidfd, fd, 0) as number;
  const failure = errno();
  port.close(pidfd);
  if (own < 0) throw new Error(`pidfd_getfd: errno ${failure}`);
  return own;
}

/** What the program has registered, as `wrap` is told. */
export function rangeAt(start: bigint, pages: number): RegisteredRange {
  return {
    start,
    length: pages * P,
    modes: new Set(['missing']),
    operations: new Set(['wake', 'copy', 'zero']),
    pageSize: P,
  };
}
