// A process whose memory this process serves: starts watched-process.c and sends it commands. pidfd_getfd(2) takes over
// its userfaultfd, so that only this process has the descriptor.

import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { libc } from '../../shim/libc.js';
import { linuxKernel } from '../../shim/linux.js';
import { type Feature, type Kernel, type RegisteredRange, Userfaultfd } from '../../src/index.js';
import { featureBits } from '../../src/kernel/features.js';
import { compileProgram, needKernel, P } from './real-kernel.js';

const SYS_PIDFD_GETFD = 438;

export interface Watched {
  readonly pid: number;
  readonly base: bigint;
  readonly uffd: Userfaultfd;
  /** Sends a command and resolves with its answer, which may wait for a fault to be resolved. */
  request(line: string): Promise<string>;
  /** Sends a command that has no answer. */
  order(line: string): void;
  kill(): void;
  /** Resolves when the process has ended and was waited for. */
  readonly ended: Promise<void>;
}

let program: string | undefined;

/** Starts a process with `pages` registered pages, and adopts its userfaultfd. */
export async function watched(
  pages: number,
  features: readonly Feature[] = [],
  options: { kernel?: Kernel /** Whether to pass the process id to `wrap`. */; withPid?: boolean } = {},
): Promise<Watched> {
  needKernel();
  program ??= compileProgram('support/watched-process.c');
  const bits = featureBits(features, 'features');
  const child = spawn(program, [`${pages}`, `${bits}`], { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines = linesOf(child);
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  const stop = (): void => void child.kill('SIGKILL');
  process.once('exit', stop);
  void ended.then(() => process.off('exit', stop));
  const [pid, fd, base] = (await lines()).split(' ') as [string, string, string];
  const order = (line: string): void => void child.stdin?.write(`${line}\n`);
  const request = (line: string): Promise<string> => {
    order(line);
    return lines();
  };
  const own = takeDescriptor(Number(pid), Number(fd));
  await request('handed');
  const { withPid = true, ...kernel } = options;
  const uffd = Userfaultfd.wrap(own, {
    ...(withPid ? { pid: Number(pid) } : {}),
    features,
    ranges: [rangeAt(BigInt(base), pages)],
    ...kernel,
  });
  return { pid: Number(pid), base: BigInt(base), uffd, request, order, kill: stop, ended };
}

/** Returns a function that reads the next line of the process's output. */
function linesOf(child: ChildProcess): () => Promise<string> {
  const lines = createInterface({ input: child.stdout as NodeJS.ReadableStream })[Symbol.asyncIterator]();
  return async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error('the watched process has ended');
    return value;
  };
}

/** Duplicates a descriptor of another process. */
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

/** The range that the program has registered, as an option of `wrap`. */
export function rangeAt(start: bigint, pages: number): RegisteredRange {
  return {
    start,
    length: pages * P,
    modes: new Set(['missing']),
    operations: new Set(['wake', 'copy', 'zero']),
    pageSize: P,
  };
}
