// Programs from npm, in a folder that its owner removes; and programs whose output is wanted.

import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Milliseconds that a program may take. */
const LIMIT_MS = 300_000;

export class Unavailable extends Error {}

/** What a program prints, if all goes well. */
export function run(
  program: string,
  args: readonly string[],
  cwd = fileURLToPath(new URL('../..', import.meta.url)),
): string {
  const { status, stdout, stderr, error } = spawnSync(program, args, {
    cwd,
    encoding: 'utf8',
    timeout: LIMIT_MS,
    killSignal: 'SIGKILL',
    env: { ...process.env, UFFD_CORE: 'release' },
  });
  if (status === 0) return stdout.trim();
  throw new Error(`${program} ${args.join(' ')}: ${error?.message ?? `${stderr}${stdout}`}`);
}

/** Installs packages, with the scripts that fetch their binaries. */
export function install(folder: string, packages: readonly string[]): void {
  writeFileSync(join(folder, 'package.json'), '{ "private": true }');
  try {
    run('npm', ['install', '--no-audit', '--no-fund', '--ignore-scripts=false', ...packages], folder);
  } catch (error) {
    throw new Unavailable(`npm cannot install ${packages.join(' and ')}: ${(error as Error).message}`);
  }
}
