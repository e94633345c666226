// The package as it is published, and what is installed beside it from npm; programs in folders where nothing else is.

import { type SpawnSyncReturns, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { root } from '../documents.js';
import { skip } from '../harness.js';

/** Calls `body` with an empty folder, which is gone afterwards. */
export async function inFolder<T>(body: (folder: string) => T | Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), 'uffd-bundle-'));
  try {
    return await body(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The package, packed into a folder: its file, and what is in it. */
export function pack(folder: string): { tarball: string; files: string[]; bytes: number } {
  const said = must('npm', ['pack', '--ignore-scripts', '--json', '--pack-destination', folder], root);
  const [{ filename, files, size }] = JSON.parse(said);
  return {
    tarball: join(folder, filename),
    files: files.map(({ path }: { path: string }) => path),
    bytes: size,
  };
}

/** Makes a project of its own, with packages from npm or from files. Skips where there is no npm to have them from. */
export function project(folder: string, packages: readonly string[], manifest: object = {}): void {
  writeFileSync(join(folder, 'package.json'), JSON.stringify({ private: true, ...manifest }));
  if (packages.length > 0) install(folder, ['npm', 'install', '--no-audit', '--no-fund', ...packages]);
}

/** Runs what installs packages. */
export function install(folder: string, [program, ...args]: readonly string[]): void {
  const { status, stdout, stderr, error } = start(program as string, args, folder, process.env, 240_000);
  if (status === 0) return;
  const why = `${error?.message ?? ''}${stdout}${stderr}`;
  // No program, or no network; a package that lacks a file says ENOENT too, and has failed.
  const missing = (error as NodeJS.ErrnoException | undefined)?.code === 'ENOENT';
  if (missing || /ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENETUNREACH/.test(why)) {
    skip(`${[program, ...args].join(' ')}: ${why.trim().split('\n').at(-1)}`);
  }
  throw new Error(`${[program, ...args].join(' ')}: ${why}`);
}

/** What a program prints; it has to end well, and within a minute. */
export function must(
  program: string,
  args: readonly string[],
  cwd: string,
  env: NodeJS.ProcessEnv = process.env,
): string {
  const { status, signal, stdout, stderr, error } = start(program, args, cwd, env, 60_000);
  if (status === 0) return stdout;
  const why = error?.message ?? signal ?? status;
  throw new Error(`${program} ${args.join(' ')}: ${why}\n${stdout}${stderr}`);
}

export function start(
  program: string,
  args: readonly string[],
  cwd: string,
  env: NodeJS.ProcessEnv,
  timeout: number,
): SpawnSyncReturns<string> {
  return spawnSync(program, args, { cwd, env, encoding: 'utf8', timeout, killSignal: 'SIGKILL' });
}
