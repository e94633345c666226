// The steps of a build: one step makes each file or folder, from files of the repository or of other steps.

import { execFile } from 'node:child_process';
import { chmodSync, copyFileSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { promisify } from 'node:util';
import { type BuildOptions, build, type Metafile, type Plugin } from 'esbuild';
import { writeBindings, writePagerBindings, writeTraceBindings } from './bindings.js';
import { bundleTypes } from './declarations.js';
import { writeErrorCatalog } from './error-catalog.js';
import type { Step } from './incremental.js';
import { inline } from './inline.js';
import { licenses, packagesOf } from './licenses.js';
import { bundledUndici } from './undici.js';

const execute = promisify(execFile);
const { version, engines, dependencies } = JSON.parse(readFileSync('package.json', 'utf8'));

/** Packages that are installed with this one. All other packages are bundled into its files. */
const RUN_TIME = Object.keys(dependencies);

/** The command's bundle uses packages that are CommonJS, and these call `require`. */
const REQUIRE = `import { createRequire as requireFrom } from 'node:module'; const require = requireFrom(import.meta.url);`;

/** What all bundles and modules have in common. */
const NODE: BuildOptions = {
  format: 'esm',
  platform: 'node',
  target: 'node20',
  logLevel: 'warning',
  define: { UFFD_VERSION: JSON.stringify(version), UFFD_NODE: JSON.stringify(engines.node) },
};
/** White space is half of the library's size, so it is removed. Names stay, for stack traces and profiles. */
const SMALL: BuildOptions = { minifyWhitespace: true, minifySyntax: true, lineLimit: 120 };

/** Options of wasm-opt for the release core: which functions are worth inlining was measured (docs/benchmarks.md). */
const OPTIMIZE = [
  ...['-O3', '--converge', '--always-inline-max-function-size=6', '--flexible-inline-max-function-size=70'],
  ...['--one-caller-inline-max-function-size=300', '--enable-bulk-memory', '--enable-sign-ext'],
  ...['--enable-nontrapping-float-to-int', '--enable-mutable-globals'],
];

/** Runs a program of a development dependency. */
async function run(program: string, args: readonly string[]): Promise<void> {
  await execute(join('node_modules/.bin', program), args);
}

/** A WebAssembly module, built by AssemblyScript with a target of asconfig.json. */
function wasm(target: string, source: string): Step {
  const file = `build/core/${target}.wasm`;
  return {
    name: `wasm ${target}`,
    inputs: ['assembly', 'asconfig.json'],
    outputs: [file, `build/core/${target}.js`],
    async run() {
      await run('asc', [source, '--target', target]);
      if (target === 'release') await run('wasm-opt', [file, ...OPTIMIZE, '-o', file]);
      inline([file], 'build/core');
    },
  };
}

const WASM: Step[] = [
  wasm('release', 'assembly/index.ts'),
  wasm('debug', 'assembly/index.ts'),
  wasm('trace', 'assembly/trace.ts'),
  wasm('trace-debug', 'assembly/trace.ts'),
  wasm('pager', 'assembly/pager/index.ts'),
  wasm('pager-debug', 'assembly/pager/index.ts'),
];

/** The TypeScript bindings of the core. */
const BINDINGS: Step = {
  name: 'bindings',
  inputs: ['assembly'],
  outputs: ['src/bindings/core.ts'],
  run: () => writeBindings('src/bindings/core.ts'),
};

/** The TypeScript bindings of the codec of traces. */
const TRACE_BINDINGS: Step = {
  name: 'bindings trace',
  inputs: ['assembly'],
  outputs: ['src/bindings/trace.ts'],
  run: () => writeTraceBindings('src/bindings/trace.ts'),
};

/** The TypeScript bindings of the pager's state machine. */
const PAGER_BINDINGS: Step = {
  name: 'bindings pager',
  inputs: ['assembly'],
  outputs: ['src/bindings/pager.ts'],
  run: () => writePagerBindings('src/bindings/pager.ts'),
};

/** The texts of errors. */
const ERROR_CATALOG: Step = {
  name: 'bindings errors',
  inputs: ['docs/errors.md'],
  outputs: ['src/bindings/errors.ts'],
  run: async () => writeErrorCatalog('src/bindings/errors.ts'),
};

/** The sources of the entries of package.json, by the names that the entries have in dist/. */
export const ENTRIES: Readonly<Record<string, string>> = {
  index: 'src/index',
  core: 'src/portable',
  dirty: 'src/dirty/index',
  embed: 'src/embed',
  pager: 'src/pager/index',
  serve: 'src/serve/index',
  sim: 'src/sim/index',
  store: 'src/store/index',
  testing: 'src/testing/index',
  trace: 'src/trace/index',
};

/**
 * Each source as a module of its own, in the same folder as in the repository. Tests and benchmarks run these modules.
 */
const JS: Step = {
  name: 'js',
  inputs: ['src', 'shim', 'test', 'bench', 'examples'],
  outputs: ['src', 'shim', 'test', 'bench', 'examples', 'command', 'package.json'].map(
    (name) => `build/${name}`,
  ),
  async run() {
    for (const output of this.outputs) rmSync(output, { recursive: true, force: true });
    const modules: BuildOptions = { ...NODE, outdir: 'build', outbase: '.' };
    await Promise.all([
      build({ ...modules, ...SMALL, entryPoints: ['src/**/*.ts', 'shim/*.ts'] }),
      build({ ...modules, entryPoints: ['test/**/*.ts', 'bench/**/*.ts', 'examples/*.ts'] }),
      // The command in few files, so that the many threads and processes of the tests start sooner.
      build({
        ...COMMAND_BUNDLE,
        ...{ entryPoints: ['src/cli/main.ts'], outdir: 'build/command', splitting: true, alias: UNUSED },
        external: [...RUN_TIME, ...Object.keys(BUNDLED)],
      }),
    ]);
    writeFileSync('build/package.json', `${JSON.stringify(MODULES_MANIFEST, undefined, 2)}\n`);
  },
};

/** The names by which these modules import each other, and the core that they use. */
const MODULES_MANIFEST = {
  name: 'userfaultfd',
  type: 'module',
  exports: Object.fromEntries(
    Object.entries(ENTRIES).map(([name, file]) => [name === 'index' ? '.' : `./${name}`, `./${file}.js`]),
  ),
  // As in package.json: a bundle for a browser has no processes.
  browser: { './src/conformance/suite.js': false },
  imports: {
    '#wasm': { 'uffd-debug': './core/debug.js', default: './core/release.js' },
    '#trace': { 'uffd-debug': './core/trace-debug.js', default: './core/trace.js' },
    '#pager': { 'uffd-debug': './core/pager-debug.js', default: './core/pager.js' },
    '#report': './report/assets.js',
  },
};

/** The files that these names resolve to in bundles. */
const BUNDLED = {
  '#wasm': './build/core/release.js',
  '#trace': './build/core/trace.js',
  '#pager': './build/core/pager.js',
  '#report': './build/report/assets.js',
};

/** The page that shows a trace: its script and its style sheet as texts, for the command to put together. */
const REPORT: Step = {
  name: 'report',
  inputs: ['src'],
  outputs: ['build/report'],
  async run() {
    await build({
      entryPoints: ['src/report/page.ts', 'src/report/style.css'],
      outdir: 'build/report',
      outExtension: { '.js': '.txt' },
      bundle: true,
      minify: true,
      format: 'esm',
      target: 'es2022',
      alias: { '#wasm': './src/report/wasm.ts', '#trace': './src/report/trace-wasm.ts' },
      logLevel: 'warning',
    });
    await build({
      stdin: {
        contents: `export { default as page } from './page.txt'; export { default as style } from './style.css';`,
        resolveDir: 'build/report',
      },
      outfile: 'build/report/assets.js',
      bundle: true,
      loader: { '.css': 'text' },
      format: 'esm',
      logLevel: 'warning',
    });
  },
};

/**
 * The WebAssembly modules that the command puts into a report. They are separate files, so that the package contains
 * each only once.
 */
const MODULES = { 'core-wasm': '#wasm', 'codec-wasm': '#trace' } as const;

const BUNDLE: BuildOptions = { ...NODE, ...SMALL, bundle: true, alias: BUNDLED };
const BUNDLE_INPUTS = ['src', 'shim', 'build/core/release.js', 'build/core/trace.js', 'build/core/pager.js'];
/** Packages of which a part is compiled into the core, or inlined into the page of a report. */
const IN_ALL = ['assemblyscript', 'uplot'];

/**
 * The library as it is published: a file for each entry, one that runs threads, and files of the code that they share.
 */
const LIBRARY: Step = {
  name: 'library',
  inputs: BUNDLE_INPUTS,
  outputs: ['dist/lib', 'build/packages/library.json'],
  async run() {
    rmSync('dist/lib', { recursive: true, force: true });
    const files = Object.entries({
      ...{ ...ENTRIES, entry: 'src/workers/entry' },
      // A file of its own, so that package.json can leave it out of bundles for browsers.
      conformance: 'src/conformance/suite',
    });
    const { metafile } = await build({
      ...BUNDLE,
      entryPoints: [
        ...files.map(([out, file]) => ({ out, in: `${file}.ts` })),
        ...Object.entries(MODULES).map(([out, name]) => ({ out, in: BUNDLED[name] })),
      ],
      outdir: 'dist/lib',
      splitting: true,
      external: RUN_TIME,
      plugins: [bundledUndici],
      metafile: true,
    });
    writePackages('library', metafile);
  },
};

/**
 * Packages that are imported only for features that the command does not use: spans and summaries in metrics, threads
 * that log.
 */
const UNUSED = Object.fromEntries(
  ['@opentelemetry/api', 'tdigest', 'thread-stream'].map((name) => [name, './tools/nothing.ts']),
);

/**
 * Also replaces unused files of the metrics' package: metrics of Node itself, summaries, several processes, pushing.
 */
const withoutUnused: Plugin = {
  name: 'without what is not used',
  setup({ onLoad }) {
    const filter = /prom-client\/lib\/(cluster|defaultMetrics|pushgateway|summary)\.js$/;
    onLoad({ filter }, () => ({ contents: 'module.exports = {};' }));
  },
};

const COMMAND_BUNDLE = {
  ...BUNDLE,
  plugins: [withoutUnused, bundledUndici],
  alias: { ...BUNDLED, ...UNUSED },
  banner: { js: REQUIRE },
  minify: true,
  metafile: true,
} satisfies BuildOptions;

/**
 * The command as it is published, beside the library: a file that starts it, and a folder with the modules that the
 * subcommands and parts load, the packages that they need included.
 */
const COMMAND: Step = {
  name: 'command',
  inputs: [...BUNDLE_INPUTS, 'build/report'],
  outputs: ['dist/uffd.js', 'dist/command', 'build/packages/command.json'],
  async run() {
    rmSync('dist/command', { recursive: true, force: true });
    const { metafile } = await build({
      ...COMMAND_BUNDLE,
      entryPoints: { uffd: 'src/cli/main.ts' },
      outdir: 'dist',
      splitting: true,
      chunkNames: 'command/[name]-[hash]',
      external: RUN_TIME,
      alias: { '#report': BUNDLED['#report'], ...UNUSED },
      plugins: [besideLibrary, withoutUnused],
    });
    chmodSync('dist/uffd.js', 0o755);
    writePackages('command', metafile);
  },
};

/** Writes for the step LICENSES which packages are in the bundles of a step. */
function writePackages(step: 'library' | 'command', metafile: Metafile): void {
  writeFileSync(`build/packages/${step}.json`, `${JSON.stringify(packagesOf(metafile))}\n`);
}

/** The licences of all that is bundled into the published files. */
const LICENSES: Step = {
  name: 'licenses',
  inputs: ['library', 'command'].map((step) => `build/packages/${step}.json`),
  outputs: ['dist/THIRD-PARTY.txt'],
  async run() {
    const packages = this.inputs.flatMap((file) => JSON.parse(readFileSync(file, 'utf8')));
    writeFileSync('dist/THIRD-PARTY.txt', licenses([...packages, ...IN_ALL]));
  },
};

/** Lets the command's files import what lies beside their folder: the library's entries, and its WebAssembly. */
const besideLibrary: Plugin = {
  name: 'beside the library',
  setup({ onResolve }) {
    const names = new Map<string, string>([
      ...Object.entries(ENTRIES).map(([name, file]) => [resolve(`${file}.js`), name] as const),
      ...Object.entries(MODULES).map(([name, alias]) => [alias, name] as const),
    ]);
    onResolve({ filter: /^(\.\.?\/|#)/ }, ({ path, resolveDir }) => {
      const name = names.get(path.startsWith('#') ? path : resolve(resolveDir, path));
      return name === undefined ? undefined : { path: `../lib/${name}.js`, external: true };
    });
  },
};

/** The whole command in one file, with koffi's binary beside it, for machines where nothing is installed. */
const STANDALONE: Step = {
  name: 'standalone',
  inputs: [...BUNDLE_INPUTS, 'build/report', 'build/src/embed.js'],
  outputs: ['build/standalone'],
  async run() {
    const { metafile } = await build({
      ...COMMAND_BUNDLE,
      entryPoints: ['src/cli/main.ts'],
      outfile: 'build/standalone/uffd.mjs',
      external: ['koffi'],
    });
    chmodSync('build/standalone/uffd.mjs', 0o755);
    const { koffiFile } = await import(pathToFileURL('build/src/embed.js').href);
    copyFileSync(koffiFile(), 'build/standalone/koffi.node');
    writeFileSync(
      'build/standalone/THIRD-PARTY.txt',
      licenses([...packagesOf(metafile), ...IN_ALL, 'koffi']),
    );
  },
};

/** The declarations of each source. */
const DECLARATIONS: Step = {
  name: 'declarations',
  inputs: ['src', 'shim', 'tsconfig.json', 'tools/tsconfig.types.json'],
  outputs: ['build/types'],
  async run() {
    rmSync('build/types', { recursive: true, force: true });
    await run('tsc', ['--project', 'tools/tsconfig.types.json']);
  },
};

/** The declarations that are published: a file for each entry, without the internal ones. */
const TYPES: Step = {
  name: 'types',
  inputs: ['build/types'],
  outputs: ['dist/types'],
  async run() {
    rmSync('dist/types', { recursive: true, force: true });
    await bundleTypes(ENTRIES, 'build/types', 'dist/types');
  },
};

/** In the order in which they begin: the longest first. */
export const STEPS: readonly Step[] = [
  BINDINGS,
  TRACE_BINDINGS,
  PAGER_BINDINGS,
  ERROR_CATALOG,
  DECLARATIONS,
  ...WASM,
  JS,
  REPORT,
  LIBRARY,
  COMMAND,
  LICENSES,
  STANDALONE,
  TYPES,
];
