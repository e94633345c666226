// Starts `uffd serve` as an operator does, for tests of the command.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import * as assert from 'uvu/assert';
import { Guest } from '../../../src/cli/guest/guest.js';
import { memoryFile } from '../../serve/support/server.js';
import { commandLine, inDirectory, needKernel } from './command.js';

/** Pages of the memory file. */
export const PAGES = 64;

export interface Served {
  child: ChildProcess;
  socket: string;
  memory: string;
  directory: string;
  stdout: () => string;
  /** The command's log: each line is an object. */
  log: () => Record<string, unknown>[];
  /** The exit code, or the signal that ended the process. */
  ended: Promise<number | string>;
}

/** Starts the command with more arguments, and calls `body` when it is ready. */
export async function served(
  args: readonly string[],
  body: (it: Served) => Promise<void>,
  options: { env?: NodeJS.ProcessEnv; stdio?: 'pipe'[] } = {},
): Promise<void> {
  needKernel();
  await inDirectory(async (directory) => {
    const memory = memoryFile(directory, PAGES);
    const socket = join(directory, 'socket');
    const [program, ...rest] = commandLine(['serve', '--socket', socket, '--memory', memory, ...args]);
    const child = spawn(program, rest, {
      cwd: directory,
      env: { ...process.env, ...options.env },
      stdio: ['ignore', 'pipe', 'pipe', ...(options.stdio ?? [])],
    });
    const kill = (): void => void child.kill('SIGKILL');
    process.once('exit', kill);
    let [stdout, stderr] = ['', ''];
    child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      stdout += text;
    });
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    const ended = once(child, 'close').then(([code, signal]) => (code ?? signal) as number | string);
    try {
      while (!stdout.includes('ready: ') && child.exitCode === null) await sleep(2);
      const log = (): Record<string, unknown>[] =>
        stderr
          .split('\n')
          .filter(Boolean)
          .map((line) => JSON.parse(line));
      await body({ child, socket, memory, directory, stdout: () => stdout, log, ended });
    } finally {
      kill();
      process.off('exit', kill);
      await ended;
    }
  });
}

export async function touchAll({ socket, memory }: Served): Promise<void> {
  const guest = new Guest({ socket, memory });
  await guest.handedOver;
  const { wrongCount, touches } = await guest.touch({ threads: 2, order: 'random', seed: 1 });
  assert.equal([wrongCount, touches], [0, PAGES]);
  await guest.end();
}
