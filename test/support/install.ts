// Installs programs from npm into a folder, which the caller removes; runs programs and returns their output.

import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** Time limit of a program, in milliseconds. */
const LIMIT_MS = 300_000;

export class Unavailable extends Error {}

/** Runs a program and returns its output; throws if it fails. */
export function run(
  program: string,
  args: readonly string[],
  cwd = fileURLToPath(new URL('../../..', import.meta.url)),
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

/** Installs packages, and runs their scripts, which fetch binaries. */
export function install(folder: string, packages: readonly string[]): void {
  writeFileSync(join(folder, 'package.json'), '{ "private": true }');
  try {
    run('npm', ['install', '--no-audit', '--no-fund', '--ignore-scripts=false', ...packages], folder);
  } catch (error) {
    throw new Unavailable(`npm cannot install ${packages.join(' and ')}: ${(error as Error).message}`);
  }
}
