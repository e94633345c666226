// The handler in Rust (handler.rs), compiled once. Its third word names a fault.

import { spawnSync } from 'node:child_process';
import { chmodSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { leaveOut } from '../../support/harness.js';

let program: string | undefined;

/** The compiled program, in a folder that other users can read. Leaves the test out if there is no Rust compiler. */
export function rustHandler(): string {
  if (program) return program;
  const folder = mkdtempSync(join(tmpdir(), 'uffd-rust-'));
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
  chmodSync(folder, 0o755);
  const source = fileURLToPath(new URL('../../../../test/supervisor/handler.rs', import.meta.url));
  const target = join(folder, 'handler');
  const built = spawnSync('rustc', ['-O', '--edition', '2021', '-o', target, source], { encoding: 'utf8' });
  if (built.error) leaveOut(`there is no Rust compiler: ${built.error.message}`);
  if (built.status !== 0) throw new Error(built.stderr);
  program = target;
  return program;
}
