// Packs the package as it is published, installs packages from npm, and runs programs in otherwise empty folders.

import { type SpawnSyncReturns, spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { root } from '../../support/documents.js';
import { skip } from '../../support/harness.js';

/** Calls `body` with an empty folder, and removes the folder afterwards. */
export async function inFolder<T>(body: (folder: string) => T | Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), 'uffd-bundle-'));
  try {
    return await body(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The package, packed once for all tests of a file. */
let packed: { name: string; bytes: Buffer; files: string[] } | undefined;

/** The package, packed into a folder: the tarball's path, and the names of the files in it. */
export function pack(folder: string): { tarball: string; files: readonly string[] } {
  if (packed === undefined) {
    const said = must('npm', ['pack', '--ignore-scripts', '--json', '--pack-destination', folder], root);
    const [{ filename, files }] = JSON.parse(said);
    packed = {
      name: filename,
      bytes: readFileSync(join(folder, filename)),
      files: files.map(({ path }: { path: string }) => path),
    };
  }
  const tarball = join(folder, packed.name);
  writeFileSync(tarball, packed.bytes);
  return { tarball, files: packed.files };
}

/** Makes a project with packages from npm or from files. Skips the test if npm or the network is missing. */
export function project(folder: string, packages: readonly string[], manifest: object = {}): void {
  writeFileSync(join(folder, 'package.json'), JSON.stringify({ private: true, ...manifest }));
  if (packages.length > 0) install(folder, ['npm', 'install', '--no-audit', '--no-fund', ...packages]);
}

/** A registry that is busy, or a connection that breaks. */
const PASSES = /ECONNRESET|EPIPE|socket hang up|ERR_SOCKET_TIMEOUT|EAI_AGAIN|\b(429|50[0234])\b/;
const TRIES = 3;

/** Runs a program that installs packages. Skips the test if the program or the network is missing. */
export function install(folder: string, [program, ...args]: readonly string[]): void {
  let why = '';
  let error: Error | undefined;
  for (let tries = 0; tries === 0 || (tries < TRIES && PASSES.test(why)); tries++) {
    const ended = start(program as string, args, folder, process.env, 240_000);
    if (ended.status === 0) return;
    error = ended.error;
    why = `${error?.message ?? ''}${ended.stdout}${ended.stderr}`;
  }
  // Only a missing program or network skips. A package that lacks a file also prints ENOENT, and is a failure.
  const missing = (error as NodeJS.ErrnoException | undefined)?.code === 'ENOENT';
  if (missing || /ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ETIMEDOUT|ENETUNREACH/.test(why)) {
    skip(`${[program, ...args].join(' ')}: ${why.trim().split('\n').at(-1)}`);
  }
  throw new Error(`${[program, ...args].join(' ')}: ${why}`);
}

/** Returns the output of a program. Throws unless the program ends with exit code 0 in time. */
export function must(
  program: string,
  args: readonly string[],
  cwd: string,
  env: NodeJS.ProcessEnv = process.env,
): string {
  const { status, signal, stdout, stderr, error } = start(program, args, cwd, env, 180_000);
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
