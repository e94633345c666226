// Bundles the tool with esbuild, rollup and webpack, as an ES module and as CommonJS: dist/<bundler>-<format>/tool.mjs or
// tool.cjs, and koffi's binary beside it. The author of a tool does one of these.

import { copyFileSync, mkdirSync } from 'node:fs';
import { builtinModules } from 'node:module';
import { dirname, resolve } from 'node:path';
import { nodeResolve } from '@rollup/plugin-node-resolve';
import * as esbuild from 'esbuild';
import { rollup } from 'rollup';
import { koffiFile } from 'userfaultfd/embed';
import webpack from 'webpack';

const here = import.meta.dirname ?? dirname(new URL(import.meta.url).pathname);
/** rollup and webpack read JavaScript. */
const source = resolve(here, 'dist/tool.js');
/** The binary is brought along as a file. */
const external = ['koffi'];

const BUNDLERS = {
  async esbuild(format, outfile) {
    const entryPoints = [source];
    // What the library asks of `import.meta` it needs outside bundles only.
    const logOverride = { 'empty-import-meta': 'silent' };
    await esbuild.build({
      entryPoints,
      outfile,
      external,
      format,
      logOverride,
      bundle: true,
      platform: 'node',
    });
  },

  async rollup(format, file) {
    const bundle = await rollup({
      input: source,
      external: [...external, /^node:/, ...builtinModules],
      plugins: [nodeResolve()],
    });
    await bundle.write({ file, format, inlineDynamicImports: true });
    await bundle.close();
  },

  async webpack(format, file) {
    const compiler = webpack({
      mode: 'production',
      target: 'node20',
      entry: source,
      externals: { koffi: 'node-commonjs koffi' },
      experiments: { outputModule: format === 'esm' },
      output: {
        path: dirname(file),
        filename: file.slice(dirname(file).length + 1),
        library: { type: format === 'esm' ? 'module' : 'commonjs2' },
      },
      optimization: { minimize: false },
      // One file, whatever is loaded when it is needed.
      plugins: [new webpack.optimize.LimitChunkCountPlugin({ maxChunks: 1 })],
    });
    const stats = await new Promise((done, failed) => {
      compiler.run((error, result) => (error ? failed(error) : done(result)));
    });
    if (stats.hasErrors()) throw new Error(stats.toString({ all: false, errors: true }));
  },
};

await esbuild.build({ entryPoints: [resolve(here, 'tool.ts')], outfile: source, target: 'node20' });
for (const [name, bundle] of Object.entries(BUNDLERS)) {
  for (const format of ['esm', 'cjs']) {
    const file = resolve(here, `dist/${name}-${format}/tool.${format === 'esm' ? 'mjs' : 'cjs'}`);
    mkdirSync(dirname(file), { recursive: true });
    await bundle(format, file);
    copyFileSync(koffiFile(), resolve(dirname(file), 'koffi.node'));
    console.log(file);
  }
}
