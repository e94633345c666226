// The handlers that serve guests: `uffd serve`, and handlers with the same policy in other languages (bench/peers/),
// built from their sources and registries when the benchmark starts. A handler that cannot be built is left out, with
// the reason.
//
// Rule: builds are kept, in a folder below the system's temporary folder, because a build takes longer than a run.

import { spawnSync } from 'node:child_process';
import { cpSync, lstatSync, mkdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { compileC } from './native.js';

/** The handler that all others are compared with. */
export const YARDSTICK = 'C';
/** The handlers that are compared with the yardstick. */
export const SERVERS = [
  'uffd serve',
  'uffd serve, auto placement',
  'uffd serve, adaptive window',
  'uffd serve, spin',
  'C, spin',
  'Rust',
  'Go',
] as const;
/** The handler in C under `uffd record-handler`. It is measured only if it is asked for. */
export const RECORDED = 'C, recorded';
export type ServerName = typeof YARDSTICK | (typeof SERVERS)[number] | typeof RECORDED;

/** A program that takes `--socket`, `--memory` and `--window`, and writes a line when it is ready. */
export interface Server {
  readonly name: ServerName;
  readonly command: readonly string[];
}

/** The command `uffd` as it is published. */
export const UFFD = [
  process.execPath,
  fileURLToPath(new URL('../../dist/uffd.js', import.meta.url)),
  'serve',
];
/** The command `uffd` as it is built for tests, one module for each source. */
const MAIN = fileURLToPath(new URL('../src/cli/main.js', import.meta.url));
const BUILT = [process.execPath, MAIN, 'serve'];
const SOURCES = fileURLToPath(new URL('../../bench/peers/', import.meta.url));
const BUILD_LIMIT_MS = 300_000;

/** The requested handlers that are available, the yardstick first. */
export function servers(
  wanted: readonly string[],
  say: (text: string) => void = () => {},
): { servers: Server[]; leftOut: string[] } {
  const folder = cache();
  const c = join(folder, 'c-handler');
  const reason = compileC(join(SOURCES, 'c/handler.c'), c, ['-O2']);
  if (reason !== undefined) throw new Error(reason);
  const all: [ServerName, () => readonly string[]][] = [
    [YARDSTICK, () => [c]],
    ['C, spin', () => [c, '--wait', 'spin']],
    [RECORDED, () => [process.execPath, MAIN, 'record-handler', '--trace', join(folder, 'c.trace'), '--', c]],
    ['uffd serve', () => BUILT],
    ['uffd serve, auto placement', () => [...BUILT, '--placement', 'auto']],
    ['uffd serve, adaptive window', () => BUILT],
    ['uffd serve, spin', () => [...BUILT, '--wait', 'spin']],
    ['Rust', () => [rust(folder)]],
    ['Go', () => [go(folder)]],
  ];
  const found: Server[] = [];
  const leftOut: string[] = [];
  for (const [name, command] of all) {
    if (name !== YARDSTICK && !wanted.includes(name)) continue;
    if (['Rust', 'Go'].includes(name)) say(`building the handler in ${name}`);
    try {
      found.push({ name, command: command() });
    } catch (error) {
      leftOut.push(`the handler in ${name}: ${(error as Error).message}`);
    }
  }
  return { servers: found, leftOut };
}

/** A folder that no other user can write to. */
function cache(): string {
  const folder = join(tmpdir(), `uffd-bench-${process.getuid?.() ?? ''}`);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const { uid, mode } = lstatSync(folder);
  if (uid !== process.getuid?.() || mode & 0o022) throw new Error(`${folder} belongs to another user`);
  return folder;
}

function rust(folder: string): string {
  const project = join(folder, 'rust');
  // Cargo writes its lock file beside the manifest.
  cpSync(join(SOURCES, 'rust'), project, { recursive: true, preserveTimestamps: true });
  build('cargo', ['build', '--release', '--quiet'], project);
  return join(project, 'target/release/handler');
}

function go(folder: string): string {
  const program = join(folder, 'go-handler');
  build('go', ['build', '-mod=readonly', '-buildvcs=false', '-o', program, '.'], join(SOURCES, 'go'));
  return program;
}

function build(tool: string, args: readonly string[], cwd: string): void {
  const env = { ...process.env, CGO_ENABLED: '0' };
  const { error, status, stderr } = spawnSync(tool, args, {
    cwd,
    env,
    encoding: 'utf8',
    timeout: BUILD_LIMIT_MS,
  });
  if (error && 'code' in error && error.code === 'ENOENT') throw new Error(`there is no ${tool}`);
  if (error) throw error;
  if (status !== 0) throw new Error(`${tool} could not build it: ${gist(stderr)}`);
}

/** The line of a build's output that says why the build failed. */
function gist(text: string): string {
  const lines = text.split('\n').map((line) => line.trim());
  const said =
    lines.find((line) => /^unable|not found/i.test(line)) ?? lines.find((line) => /error/.test(line));
  return (said ?? lines[0] ?? '').slice(0, 200);
}
