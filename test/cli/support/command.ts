// Runs the built command as a user's shell would, in a process of its own, on the core that is being tested.

import { spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Userfaultfd } from '../../../src/index.js';
import { skip } from '../../support/harness.js';

const BUILT = fileURLToPath(new URL('../../../src/cli/main.js', import.meta.url));
/** The same command, bundled into few files. */
export const BUNDLED = fileURLToPath(new URL('../../../command/main.js', import.meta.url));
const PUBLISHED = fileURLToPath(new URL('../../../../dist/uffd.js', import.meta.url));
const CONDITIONS = process.execArgv.filter((argument) => argument.startsWith('--conditions'));

/** The start of a command line that runs the rest as a user without privileges. */
export const UNPRIVILEGED = ['setpriv', '--reuid', '65534', '--regid', '65534', '--clear-groups'];

/**
 * The program and arguments that run `uffd <args…>`: the published command, or with a core given by --conditions this
 * build's bundle, which starts sooner than separate files. With `preload` the modules are separate files, because the
 * preloaded module changes some of them.
 */
export function commandLine(
  args: readonly string[],
  { preload }: Pick<RunOptions, 'preload'> = {},
): [string, ...string[]] {
  const main = preload !== undefined ? BUILT : CONDITIONS.length > 0 ? BUNDLED : PUBLISHED;
  return [process.execPath, ...CONDITIONS, main, ...args];
}

type Saw = (what: RegExp, where?: 'stderr' | 'stdout') => Promise<RegExpExecArray>;

export interface RunOptions {
  env?: NodeJS.ProcessEnv;
  /** A program and arguments that start `uffd`: its command line is appended to them. */
  under?: readonly string[];
  /** A module of this directory that every thread of the command loads first. */
  preload?: string;
  cwd?: string;
  /** Called once the process runs. `saw` waits until the output matches: on stderr, or on stdout if that is said. */
  started?: (pid: number, saw: Saw) => void | Promise<void>;
}

export interface Ended {
  /** The exit code, or the signal that ended the process. */
  code: number | string;
  stdout: string;
  stderr: string;
}

/** Runs `uffd <args…>` to its end. */
export function uffd(args: readonly string[], options: RunOptions = {}): Promise<Ended> {
  return run([...(options.under ?? []), ...commandLine(args, options)], options);
}

/** Runs `uffd <args…>` to its end in a terminal of that many columns, whose output is in `stdout`. */
export function uffdOnTerminal(
  args: readonly string[],
  columns: number,
  options: RunOptions = {},
): Promise<Ended> {
  // `env` sets the variables after the shell has started, since a shell may set COLUMNS itself.
  const variables = Object.entries(options.env ?? {}).map(([name, value]) => `${name}=${value}`);
  const words = ['env', ...variables, ...commandLine(args, options)].map((word) => `'${word}'`);
  const command = `stty cols ${columns} rows 24; exec ${words.join(' ')}`;
  const env = { NO_COLOR: undefined, COLUMNS: undefined, TERM: 'xterm' };
  return run(['script', '-qec', command, '/dev/null'], { ...options, env });
}

async function run([program, ...rest]: readonly string[], options: RunOptions): Promise<Ended> {
  const env: NodeJS.ProcessEnv = { ...process.env, NO_COLOR: '1', ...options.env };
  if (options.preload) env.NODE_OPTIONS = `--import=${new URL(options.preload, import.meta.url)}`;
  const child = spawn(program as string, rest, { env, cwd: options.cwd, stdio: ['ignore', 'pipe', 'pipe'] });
  const ended: Ended = { code: '', stdout: '', stderr: '' };
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    ended.stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    ended.stderr += text;
  });
  const closed = new Promise<number | string>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code, signal) => resolve(code ?? signal ?? ''));
  });
  const kill = (): void => {
    child.kill('SIGKILL');
  };
  process.once('exit', kill);
  const saw: Saw = async (what, where = 'stderr') => {
    for (;;) {
      const found = what.exec(ended[where]);
      if (found) return found;
      const over = await Promise.race([
        once(child[where], 'data').then(() => false),
        closed.then(() => true),
      ]);
      if (over) throw new Error(`it never said ${what}: ${ended[where]}`);
    }
  };
  if (options.started && child.pid !== undefined) await options.started(child.pid, saw);
  ended.code = await closed;
  process.off('exit', kill);
  return ended;
}

/** Skips the test if no userfaultfd can be opened. */
export function needKernel(): void {
  if (!Userfaultfd.isSupported()) skip('this system has no userfaultfd');
  try {
    Userfaultfd.open().close();
  } catch (error) {
    skip((error as Error).message);
  }
}

/** Skips the test unless the command can run as another user, who must be able to read this build. */
export function needUnprivileged(): void {
  if (process.getuid?.() !== 0) skip('only root can run the command as another user');
  const [program, ...args] = [...UNPRIVILEGED, ...commandLine(['--version'])] as [string, ...string[]];
  const tried = spawnSync(program, args, { encoding: 'utf8' });
  if (tried.status !== 0)
    skip(`the user 65534 cannot run the command: ${tried.error?.message ?? tried.stderr}`);
}

/** Calls `body` with a directory that is removed afterwards. */
export async function inDirectory(body: (directory: string) => void | Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'uffd-cli-'));
  try {
    await body(directory);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** Writes a file of these bytes, or of this many zeros that take no room on the disk. */
export function fileOf(directory: string, name: string, content: Uint8Array | number): string {
  const path = join(directory, name);
  writeFileSync(path, typeof content === 'number' ? '' : content);
  if (typeof content === 'number') truncateSync(path, content);
  return path;
}

export function sha256(path: string): string {
  return createHash('sha256').update(readFileSync(path)).digest('hex');
}
