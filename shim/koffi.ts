// koffi, which makes the system calls: the package that is installed, or its binary alone, where a bundle has brought
// that. It is loaded at the first call, not at import.

import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { UnsupportedError } from '../src/kernel.js';

export type Koffi = typeof import('koffi');

/** Where koffi's binary is: a file, or what is in it. */
export type KoffiBinary = string | URL | Uint8Array;

/** What the declarations are written for. */
const MAJOR = '3';

let binary: KoffiBinary | undefined;
let loaded: Koffi | undefined;

/** Has the binary loaded instead of the package. */
export function useKoffi(where: KoffiBinary): void {
  binary = where;
}

export function koffi(): Koffi {
  loaded ??= load();
  return loaded;
}

/** koffi's version; undefined where there is none. It is not loaded for that, where it is a package. */
export function koffiVersion(): string | undefined {
  try {
    if (binary !== undefined) return koffi().version;
    return JSON.parse(readFileSync(join(packageFolder('koffi'), 'package.json'), 'utf8')).version;
  } catch {
    return undefined;
  }
}

/**
 * The file of koffi's binary for this machine, as npm has installed it: to be put beside a bundle.
 *
 * @throws UnsupportedError where koffi is not installed, or has no binary for this machine
 */
export function koffiFile(): string {
  const { platform, arch } = process;
  try {
    const folder = join(packageFolder('koffi'), '../@koromix', `koffi-${platform}-${arch}`);
    // Alpine's C library is another one.
    const musl = platform === 'linux' && !('glibcVersionRuntime' in reportHeader());
    const file = join(folder, `${musl ? 'musl' : platform}_${arch}`, 'koffi.node');
    if (existsSync(file)) return file;
  } catch (error) {
    throw refused((error as Error).message, error);
  }
  throw refused('it has no binary for this machine');
}

function reportHeader(): object {
  return (process.report?.getReport() as { header?: object } | undefined)?.header ?? {};
}

function packageFolder(name: string): string {
  return dirname(createRequire(import.meta.url).resolve(name));
}

function load(): Koffi {
  try {
    if (binary === undefined) return createRequire(import.meta.url)('koffi');
    const native = typeof binary === 'object' && !(binary instanceof URL) ? unpacked(binary) : open(binary);
    if (native.version.split('.')[0] === MAJOR) return native;
    throw new Error(`its version is ${native.version}, and has to be ${MAJOR}`);
  } catch (error) {
    throw refused((error as Error).message, error);
  }
}

function open(file: string | URL): Koffi {
  const module = { exports: {} as Koffi };
  process.dlopen(module, file instanceof URL || file.startsWith('file:') ? fileURLToPath(file) : file);
  return module.exports;
}

/** A library can be loaded from a file only; once it is, the file is needed no longer. */
function unpacked(bytes: Uint8Array): Koffi {
  const folder = mkdtempSync(join(tmpdir(), 'userfaultfd-'));
  try {
    const file = join(folder, 'koffi.node');
    writeFileSync(file, bytes);
    return open(file);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** What of Node keeps it from being loaded, and the way out; undefined: nothing of the kind. */
function forbidden(why: string, cause: unknown): string | undefined {
  const { permission } = process as { permission?: unknown };
  const { code } = (cause ?? {}) as NodeJS.ErrnoException;
  if (code === 'ERR_DLOPEN_DISABLED' || /loading addons is disabled/.test(why)) {
    return permission === undefined
      ? 'Node was started with --no-addons (on its command line or in NODE_OPTIONS). Start it without'
      : "Node's permission model forbids addons. Start it with --allow-addons as well";
  }
  if (permission === undefined || (code !== 'ERR_ACCESS_DENIED' && code !== 'MODULE_NOT_FOUND'))
    return undefined;
  return "Node's permission model forbids to read it. Start it with --allow-fs-read for its folder as well";
}

function refused(why: string, cause?: unknown): UnsupportedError {
  const about = `koffi, which makes the system calls, cannot be loaded on ${process.platform}-${process.arch}`;
  const known = forbidden(why, cause);
  if (known) return new UnsupportedError(`${about}: ${known}`, { cause });
  const way =
    binary === undefined
      ? 'Install it with its optional dependency for this machine (npm install koffi); in a bundle, bring its ' +
        'binary along (docs/embedding.md)'
      : 'It was said to be in the bundle (docs/embedding.md)';
  return new UnsupportedError(`${about}: ${why}. ${way}`, { cause });
}
