// The portable tests as single files, from the sources or from what was built, for runtimes with nothing of Node.

import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build, type Plugin } from 'esbuild';

export const ROOT = fileURLToPath(new URL('../../..', import.meta.url));

/** Which modules another stands in for. */
const STAND_INS: readonly [pattern: RegExp, standIn: string][] = [
  [/^(node:.*|binaryen)$/, 'stand-ins'],
  [/\/kernel\/support\.js$|^\.\/real\.js$/, 'no-kernel'],
];

/** Puts them in their place; `extension`: of the files that are bundled. */
function standIns(folder: string, extension: 'ts' | 'js'): Plugin {
  const place = (name: string): string => join(folder, 'runtimes', `${name}.${extension}`);
  return {
    name: 'stand-ins',
    setup({ onResolve }) {
      for (const [filter, standIn] of STAND_INS) onResolve({ filter }, () => ({ path: place(standIn) }));
    },
  };
}

/** One file that runs test files and prints their reports, or does what an entry does. */
export async function bundle(
  artefact: 'source' | 'bundle',
  contents: (folder: string, extension: string) => string,
): Promise<string> {
  const folder = join(ROOT, artefact === 'source' ? 'test' : 'dist/test');
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
    // Packed as whoever ships it would.
    minify: artefact === 'bundle',
    keepNames: true,
    // The package says that importing its files does nothing; importing tests does.
    ignoreAnnotations: true,
    logLevel: 'error',
  });
  return outputFiles[0]?.text as string;
}

/** What runs test files one after the other. */
export function running(files: readonly string[]) {
  return (_folder: string, extension: string): string =>
    [
      `import './runtimes/begin.${extension}';`,
      ...files.map((file) => `import './${file}.${extension}';`),
      "import { exec } from 'uvu';",
      'await exec();',
    ].join('\n');
}

/** What tells what comes of a trace. */
export function telling(trace: Uint8Array) {
  const base64 = Buffer.from(trace).toString('base64');
  return (_folder: string, extension: string): string =>
    `import { tell } from './runtimes/traces.${extension}';\nawait tell(${JSON.stringify(base64)});`;
}
