// Block devices for tests: loop devices of files.

import { execFileSync } from 'node:child_process';
import { leaveOut, skip } from './harness.js';

/** Calls `body` with the path of a block device whose data is in a file. Skips the test if none can be made. */
export async function withLoopDevice(
  file: string,
  body: (device: string) => void | Promise<void>,
  options: readonly string[] = [],
): Promise<void> {
  if (process.getuid?.() !== 0) skip('only root can make a block device');
  let device: string;
  try {
    device = execFileSync('losetup', ['--find', '--show', ...options, file], {
      encoding: 'utf8',
      stdio: 'pipe',
    }).trim();
  } catch (error) {
    leaveOut(`there is no loop device here: ${(error as Error).message}`);
  }
  try {
    await body(device);
  } finally {
    execFileSync('losetup', ['--detach', device]);
  }
}
