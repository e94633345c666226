// Makes a single executable of what esbuild has bundled: Node itself, with the tool and koffi's binary inside.
// https://nodejs.org/api/single-executable-applications.html

import { execFileSync } from 'node:child_process';
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { inject } from 'postject';

const dist = fileURLToPath(new URL('dist', import.meta.url));
const bundle = resolve(dist, 'esbuild-cjs');
const [config, blob, executable] = ['sea.json', 'sea.blob', 'tool'].map((name) => resolve(dist, 'sea', name));

mkdirSync(resolve(dist, 'sea'), { recursive: true });
const assets = {
  // For the library's threads: each is started with the tool's own text.
  'tool.cjs': resolve(bundle, 'tool.cjs'),
  'koffi.node': resolve(bundle, 'koffi.node'),
};
const main = assets['tool.cjs'];
writeFileSync(config, JSON.stringify({ main, output: blob, assets, disableExperimentalSEAWarning: true }));
execFileSync(process.execPath, ['--experimental-sea-config', config], { stdio: 'inherit' });
copyFileSync(process.execPath, executable);
await inject(executable, 'NODE_SEA_BLOB', readFileSync(blob), {
  sentinelFuse: 'NODE_SEA_FUSE_fce680ab2cc467b6e072b8b5df1996b2',
});
console.log(executable);
