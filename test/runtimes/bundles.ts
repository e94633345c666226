// Bundles the portable tests into single files, from the sources or the build, for runtimes without Node's modules.

import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build, type Plugin } from 'esbuild';

export const ROOT = fileURLToPath(new URL('../../..', import.meta.url));

/** Modules that are replaced, and the stand-in for each. */
const STAND_INS: readonly [pattern: RegExp, standIn: string][] = [
  [/^(node:.*|binaryen)$/, 'stand-ins'],
  // As in bundles of the package for browsers (package.json, `browser`), where handlers cannot be checked.
  [/\/conformance\/suite\.js$/, 'no-kernel'],
  [/\/support\/real-kernel\.js$|^\.\/real\.js$/, 'no-kernel'],
];

/** Replaces these modules by their stand-ins. `extension`: that of the bundled files. */
function standIns(folder: string, extension: 'ts' | 'js'): Plugin {
  const place = (name: string): string => join(folder, 'runtimes', `${name}.${extension}`);
  return {
    name: 'stand-ins',
    setup({ onResolve }) {
      for (const [filter, standIn] of STAND_INS) onResolve({ filter }, () => ({ path: place(standIn) }));
    },
  };
}

/** Bundles an entry into one file. `contents` returns the text of the entry. */
export async function bundle(
  artefact: 'source' | 'bundle',
  contents: (folder: string, extension: string) => string,
): Promise<string> {
  const folder = join(ROOT, artefact === 'source' ? 'test' : 'build/test');
  const extension = artefact === 'source' ? 'ts' : 'js';
  const { outputFiles } = await build({
    stdin: { contents: contents(folder, extension), resolveDir: folder },
    bundle: true,
    write: false,
    format: 'esm',
    platform: 'browser',
    target: 'es2022',
    inject: [join(folder, `runtimes/globals.${extension}`)],
    plugins: [standIns(folder, extension)],
    alias: { '#wasm': join(ROOT, 'build/core/release.js'), '#trace': join(ROOT, 'build/core/trace.js') },
    // Bundled with the options that an application would use.
    minify: artefact === 'bundle',
    keepNames: true,
    logLevel: 'error',
  });
  return outputFiles[0]?.text as string;
}

/** An entry that runs test files one after the other. */
export function running(files: readonly string[]) {
  return (_folder: string, extension: string): string =>
    [
      `import './runtimes/begin.${extension}';`,
      ...files.map((file) => `import './${file}.${extension}';`),
      "import { exec } from 'uvu';",
      'await exec();',
    ].join('\n');
}

/** A program that replays a trace and prints the results. */
export function traceProgram(trace: Uint8Array) {
  const base64 = Buffer.from(trace).toString('base64');
  return (_folder: string, extension: string): string =>
    `import { printResults } from './runtimes/traces.${extension}';\nawait printResults(${JSON.stringify(base64)});`;
}
