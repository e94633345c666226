// The published package: its contents, and that it works when installed with npm, pnpm or yarn, with or without install
// scripts, imported from ES modules, CommonJS and TypeScript, and without koffi's binary.

import { cpSync, existsSync, mkdirSync, readdirSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { isBuiltin } from 'node:module';
import { join } from 'node:path';
import { build } from 'esbuild';
import * as assert from 'uvu/assert';
import { linksOf, root, textOf } from '../support/documents.js';
import { suite } from '../support/harness.js';
import { needKernel } from '../support/real-kernel.js';
import { inFolder, install, must, pack, project } from './support/package.js';

const test = suite('bundle/installed');
const LIMIT_MS = 300_000;
const { exports, version, dependencies } = JSON.parse(textOf('package.json'));
const ENTRIES = Object.keys(exports).filter((name) => name !== './package.json');
const nameOf = (entry: string): string => `userfaultfd${entry.slice(1)}`;
const NAMES = ENTRIES.map(nameOf);
const PORTABLE = ['core', 'sim', 'testing', 'trace'].map((name) => `userfaultfd/${name}`);

/** Each file of the package must match one of these patterns. */
const BELONGS = [
  /^(package\.json|LICENSE|(README|ARCHITECTURE|CHANGELOG|CONTRIBUTING|SECURITY)\.md)$/,
  /^dist\/(uffd\.js|THIRD-PARTY\.txt)$/,
  /^dist\/(command|lib)\/[\w-]+\.js$/,
  /^dist\/types\/[\w-]+\.d\.ts$/,
  /^docs\/.*\.(md|svg|png|txt|service)$/,
  /^examples\/([a-z-]+\.ts|bundled-tool\/([a-z]+\.(ts|mjs)|(package|tsconfig)\.json))$/,
];

test('the package holds what is needed, and nothing else', async () => {
  await inFolder((folder) => {
    const { files } = pack(folder);
    assert.equal(
      files.filter((file) => !BELONGS.some((pattern) => pattern.test(file))),
      [],
    );
    const declared: string[] = Object.values(exports).flatMap((entry) =>
      typeof entry === 'string' ? [entry] : Object.values(entry as Record<string, string>),
    );
    for (const file of declared) assert.ok(files.includes(file.replace('./', '')), `it lacks ${file}`);
  });
});

test('links of its documents lead to files that are in it', async () => {
  await inFolder((folder) => {
    const { files } = pack(folder);
    const has = (target: string): boolean =>
      files.some((file) => file === target || file.startsWith(`${target.replace(/\/$/, '')}/`));
    const dead = files
      .filter((file) => file.endsWith('.md'))
      .flatMap((file) => linksOf(file).map(({ target }) => ({ file, target })))
      .filter(({ target }) => !has(target));
    assert.equal(dead, []);
  });
});

test('its files import what is installed with it, and no other package', async () => {
  const { metafile } = await build({
    entryPoints: [join(root, 'dist/lib/*.js'), join(root, 'dist/uffd.js')],
    ...{ bundle: true, packages: 'external', format: 'esm', platform: 'node', logLevel: 'error' },
    ...{ write: false, outdir: root, metafile: true },
  });
  const imported = Object.values(metafile.inputs)
    .flatMap(({ imports }) => imports)
    .filter(({ path, external }) => external && !isBuiltin(path))
    .map(({ path }) => path);
  assert.equal([...new Set(imported)].sort(), ['@assemblyscript/loader']);
  assert.equal(Object.keys(dependencies).sort(), ['@assemblyscript/loader', 'koffi']);
});

const NODENEXT = { module: 'nodenext' };
const BUNDLER = { module: 'esnext', moduleResolution: 'bundler' };

interface Manager {
  /** The npm packages that provide the program. */
  packages: string[];
  command(bin: string, tarball: string): string[];
  /** The module resolutions to check types with. yarn has none: its `node_modules` have the same layout as npm's. */
  types?: object[];
}

/** Ways to install the package. */
const MANAGERS: Record<string, Manager> = {
  npm: {
    packages: [],
    types: [NODENEXT, BUNDLER],
    command: (_, tarball) => ['npm', 'install', '--no-audit', '--no-fund', tarball],
  },
  'npm without install scripts': {
    packages: [],
    command: (_, tarball) => ['npm', 'install', '--ignore-scripts', '--no-audit', '--no-fund', tarball],
  },
  pnpm: {
    // The newest pnpm that runs on the oldest supported Node.
    packages: ['pnpm@10'],
    types: [NODENEXT],
    command: (bin, tarball) => [join(bin, 'pnpm'), 'add', '--store-dir', '../store', tarball],
  },
  'pnpm without install scripts': {
    packages: ['pnpm@10'],
    command: (bin, tarball) => [
      ...[join(bin, 'pnpm'), 'add', '--ignore-scripts', '--store-dir', '../store', tarball],
    ],
  },
  yarn: {
    packages: ['yarn@1'],
    command: (bin, tarball) => [
      ...[join(bin, 'yarn'), 'add', '--no-progress', '--cache-folder', '../cache', `file:${tarball}`],
    ],
  },
  'yarn without install scripts': {
    packages: ['yarn@1'],
    command: (bin, tarball) => [
      ...[join(bin, 'yarn'), 'add', '--ignore-scripts', '--no-progress', '--cache-folder', '../cache'],
      `file:${tarball}`,
    ],
  },
};

const IMPORT_ALL = `
for (const name of ${JSON.stringify(NAMES)}) {
  const entry = await import(name);
  if (Object.keys(entry).length === 0) throw new Error(name);
}`;
const REQUIRE_ALL = `
for (const name of ${JSON.stringify(NAMES)}) {
  if (Object.keys(require(name)).length === 0) throw new Error(name);
}`;
const FAULT = `
import { Worker } from 'node:worker_threads';
import { Mapping, Userfaultfd } from 'userfaultfd';
const memory = Mapping.anonymous(4096);
const uffd = Userfaultfd.open();
uffd.register(memory.address, memory.length);
uffd.start({ pagefault: ({ page }) => void uffd.copy(page, new Uint8Array(4096).fill(42)) });
const code = "const { Mapping } = require('userfaultfd'); const { parentPort, workerData } = require('worker_threads');" +
  'parentPort.postMessage(Mapping.attach(workerData).bytes[7]);';
new Worker(code, { eval: true, workerData: memory.share() }).on('message', (byte) => {
  console.log(byte);
  uffd.close();
});`;

/** A TypeScript program that imports each entry and uses some of its types. */
const TYPED = `
${NAMES.map((name, index) => `import * as entry${index} from '${name}';`).join('\n')}
import type { FaultHandler } from 'userfaultfd';
const handler: FaultHandler = { pagefault({ page }) { page satisfies bigint; } };
// @ts-expect-error a page is no number
const wrong: FaultHandler = { pagefault({ page }) { page satisfies number; } };
console.log(handler, wrong, ${NAMES.map((_, index) => `entry${index}`).join(', ')});
`;

function check(folder: string, resolution: object): void {
  const compilerOptions = {
    ...{ target: 'es2022', lib: ['es2023', 'esnext.disposable'], strict: true, noEmit: true },
    ...{ skipLibCheck: false, types: ['node'], ...resolution },
  };
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify({ compilerOptions, files: ['typed.ts'] }));
  writeFileSync(join(folder, 'typed.ts'), TYPED);
  // The compiler and the types of Node are those of this repository.
  const types = join(folder, 'node_modules/@types');
  if (!existsSync(join(types, 'node'))) {
    mkdirSync(types, { recursive: true });
    cpSync(join(root, 'node_modules/@types/node'), join(types, 'node'), { recursive: true });
    cpSync(join(root, 'node_modules/undici-types'), join(folder, 'node_modules/undici-types'), {
      recursive: true,
    });
  }
  must(process.execPath, [join(root, 'node_modules/typescript/bin/tsc')], folder);
}

for (const [how, { packages, command, types = [] }] of Object.entries(MANAGERS)) {
  test(
    `installed by ${how}, every entry is imported from anywhere, and a fault is answered`,
    async () => {
      needKernel();
      await inFolder((home) => {
        const [tools, folder] = [join(home, 'tools'), join(home, 'project')];
        mkdirSync(tools);
        mkdirSync(folder);
        project(tools, packages);
        project(folder, [], { type: 'module' });
        install(folder, command(join(tools, 'node_modules/.bin'), pack(home).tarball));
        writeFileSync(join(folder, 'all.mjs'), IMPORT_ALL);
        writeFileSync(join(folder, 'all.cjs'), REQUIRE_ALL);
        writeFileSync(join(folder, 'fault.mjs'), FAULT);
        must(process.execPath, ['all.mjs'], folder);
        must(process.execPath, ['all.cjs'], folder);
        assert.is(must(process.execPath, ['fault.mjs'], folder), '42\n');
        assert.is(must(join(folder, 'node_modules/.bin/uffd'), ['--version'], folder), `${version}\n`);
        if (how === 'npm') {
          const tree = JSON.parse(must('npm', ['ls', '--omit=dev', '--all', '--json'], folder));
          const { userfaultfd } = tree.dependencies;
          assert.equal(Object.keys(userfaultfd.dependencies).sort(), Object.keys(dependencies).sort());
        }
        for (const resolution of types) check(folder, resolution);
      });
    },
    LIMIT_MS,
  );
}

test(
  'without the binary of koffi every entry is imported, what is portable works, and open says what is missing',
  async () => {
    await inFolder((home) => {
      const folder = join(home, 'project');
      mkdirSync(folder);
      project(folder, [pack(home).tarball], { type: 'module' });
      const koffi = realpathSync(join(folder, 'node_modules/koffi'));
      rmSync(join(koffi, '../@koromix'), { recursive: true });
      rmSync(join(koffi, 'build'), { recursive: true, force: true });
      writeFileSync(
        join(folder, 'without.mjs'),
        `${IMPORT_ALL}
        const { simulate, answerFromSource } = await import('userfaultfd/testing');
        const { faults } = await simulate({ seed: 1, handler: (world) => answerFromSource(world) });
        console.log(faults > 0);
        const { Userfaultfd } = await import('userfaultfd');
        try { Userfaultfd.open(); } catch (error) { console.log(error.code, error.message); }`,
      );
      const [simulated, refused = ''] = must(process.execPath, ['without.mjs'], folder).split('\n');
      assert.is(simulated, 'true');
      assert.match(
        refused,
        /^ERR_UFFD_UNSUPPORTED koffi, which makes the system calls, cannot be loaded on .*npm install koffi/,
      );
    });
  },
  LIMIT_MS,
);

test('what is portable reaches no package but the loader, and nothing of Node', async () => {
  await inFolder((folder) => {
    const { tarball } = pack(folder);
    const installed = join(folder, 'node_modules/userfaultfd');
    mkdirSync(installed, { recursive: true });
    must('tar', ['-xzf', tarball, '-C', installed, '--strip-components=1'], folder);
    const loader = 'node_modules/@assemblyscript/loader';
    cpSync(join(root, loader), join(folder, loader), { recursive: true });
    assert.ok(Object.keys(dependencies).length > 1 && readdirSync(join(folder, 'node_modules')).length === 2);
    const names = JSON.stringify(PORTABLE);
    writeFileSync(join(folder, 'all.mjs'), `for (const name of ${names}) await import(name);`);
    must(process.execPath, ['all.mjs'], folder);
  });
});

test.run();
