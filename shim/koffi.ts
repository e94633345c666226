// Loads koffi, the package that makes the system calls. In a bundle that brings koffi's binary, it loads that binary
// alone. It loads koffi at the first call, not at import.

import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isMainThread } from 'node:worker_threads';
import { UnsupportedError } from '../src/kernel/port.js';

export type Koffi = typeof import('koffi');

/** Where koffi's binary is: a file, or its contents. */
export type KoffiBinary = string | URL | Uint8Array;

const RTLD_LAZY_NOLOAD_NODELETE = 0x1005;
/** The major version that the declarations are written for. */
const MAJOR = '3';

let binary: KoffiBinary | undefined;
let loaded: Koffi | undefined;

/** Makes the library load this binary instead of the package. */
export function useKoffi(where: KoffiBinary): void {
  binary = where;
}

export function koffi(): Koffi {
  loaded ??= load();
  return loaded;
}

/** koffi's version; undefined if koffi is missing. An installed package is not loaded for that. */
export function koffiVersion(): string | undefined {
  try {
    if (binary !== undefined) return koffi().version;
    return JSON.parse(readFileSync(join(packageFolder('koffi'), 'package.json'), 'utf8')).version;
  } catch {
    return undefined;
  }
}

/**
 * The file of koffi's binary for this machine, as npm has installed it; copy it next to a bundle.
 *
 * @throws UnsupportedError if koffi is not installed, or has no binary for this machine
 */
export function koffiFile(): string {
  const { platform, arch } = process;
  try {
    const folder = join(packageFolder('koffi'), '../@koromix', `koffi-${platform}-${arch}`);
    // Alpine uses another C library.
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
    if (binary === undefined) return prebuilt() ?? createRequire(import.meta.url)('koffi');
    const native = typeof binary === 'object' && !(binary instanceof URL) ? unpacked(binary) : open(binary);
    if (native.version.split('.')[0] === MAJOR) return native;
    throw new Error(`its version is ${native.version}, but it must be ${MAJOR}`);
  } catch (error) {
    throw refused((error as Error).message, error);
  }
}

/**
 * The binary that npm has installed, if it is for glibc, as on nearly every machine. Finding it through the package's
 * code would take each thread ten times as long. In any other case the package is loaded: it finds other binaries, and
 * reports what is wrong.
 */
function prebuilt(): Koffi | undefined {
  const { platform, arch } = process;
  try {
    const file = join(
      packageFolder('koffi'),
      `../@koromix/koffi-${platform}-${arch}/${platform}_${arch}/koffi.node`,
    );
    const native = open(file);
    return native.version.split('.')[0] === MAJOR ? native : undefined;
  } catch {
    return undefined;
  }
}

function open(file: string | URL): Koffi {
  const module = { exports: {} as Koffi };
  const path = file instanceof URL || file.startsWith('file:') ? fileURLToPath(file) : file;
  process.dlopen(module, path);
  if (!isMainThread) keepLoaded(module.exports, path);
  return module.exports;
}

/**
 * Node unloads a library with the last thread that has loaded it, and then libuv calls koffi's functions that close the
 * thread's handles: the process would end with SIGSEGV.
 */
function keepLoaded(koffi: Koffi, path: string): void {
  koffi.load(null).func('dlopen', 'void *', ['str', 'int'])(path, RTLD_LAZY_NOLOAD_NODELETE);
}

/**
 * Loads a binary from its bytes. A library can only be loaded from a file. Once it is loaded, the file is no longer
 * needed.
 */
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

/** Which option of Node forbids to load koffi, and what to do. Undefined: no option does. */
function forbidden(why: string, cause: unknown): string | undefined {
  const { permission } = process as { permission?: unknown };
  const { code } = (cause ?? {}) as NodeJS.ErrnoException;
  if (code === 'ERR_DLOPEN_DISABLED' || /loading addons is disabled/.test(why)) {
    return permission === undefined
      ? 'Node was started with --no-addons (on its command line or in NODE_OPTIONS). Start it without that option'
      : "Node's permission model forbids addons. Add --allow-addons";
  }
  if (permission === undefined || (code !== 'ERR_ACCESS_DENIED' && code !== 'MODULE_NOT_FOUND'))
    return undefined;
  return "Node's permission model forbids reading it. Add --allow-fs-read for its folder";
}

function refused(why: string, cause?: unknown): UnsupportedError {
  const about = `koffi, which makes the system calls, cannot be loaded on ${process.platform}-${process.arch}`;
  const known = forbidden(why, cause);
  if (known) return new UnsupportedError(`${about}: ${known}`, { cause });
  const way =
    binary === undefined
      ? 'Install it with its optional dependency for this machine (npm install koffi); in a bundle, bring its ' +
        'binary along (docs/guides/embed.md)'
      : 'It should be in the bundle, according to `embed` (docs/guides/embed.md)';
  return new UnsupportedError(`${about}: ${why}. ${way}`, { cause });
}
