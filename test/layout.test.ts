// The repository is what ARCHITECTURE.md says: imports go down, one file touches WebAssembly, nothing built or
// machine-bound is in it; and the release module imports nothing, is small, and grows its memory only on paths
// that register or read.

import { strict as assert } from 'node:assert';
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { dirname, join, posix, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { skip, suite } from './harness.js';

const test = suite('layout');
const root = realpathSync(fileURLToPath(new URL('../../', import.meta.url)));

/**
 * What stands on what: a file imports only from rows below its own. Imports of types alone are free, since they
 * are gone when it runs. The command line stands above all of them, on the package's entries only.
 */
const LAYERS = [
  ['src/report/page.ts'],
  ['src/report/shown.ts'],
  ['src/report/hover.ts', 'src/report/list.ts', 'src/report/charts.ts'],
  ['src/report/heat-map.ts', 'src/report/hottest.ts', 'src/report/figures.ts'],
  [
    ...['src/report/bins.ts', 'src/report/chart-look.ts', 'src/report/collect.ts', 'src/report/search.ts'],
    ...['src/report/ticks.ts', 'src/report/keys.ts', 'src/report/gestures.ts', 'src/report/drop.ts'],
    ...['src/report/wasm.ts', 'src/report/trace-wasm.ts'],
  ],
  ['src/report/growth.ts', 'src/report/rows.ts', 'src/report/embedded.ts', 'src/report/slices.ts'],
  ['src/report/theme.ts', 'src/report/numbers.ts', 'src/report/view.ts', 'src/report/events.ts'],
  ['src/report/dom.ts'],
  ['src/testing/index.ts'],
  ['src/testing/explore.ts'],
  ['src/testing/shrink.ts'],
  ['src/testing/simulate.ts'],
  ['src/testing/run.ts'],
  ['src/testing/workload.ts', 'src/testing/handler.ts'],
  ['src/testing/world.ts', 'src/testing/attend.ts', 'src/testing/check.ts'],
  ['src/testing/told.ts', 'src/testing/ledger.ts', 'src/testing/schedule.ts'],
  ['src/testing/port.ts', 'src/testing/failure.ts', 'src/testing/hop.ts'],
  ['src/part.ts'],
  ['src/embed.ts'],
  ['src/serve/index.ts'],
  ['src/serve/server.ts'],
  ['src/serve/session.ts', 'src/serve/connection.ts', 'src/serve/session-worker.ts', 'src/serve/custody.ts'],
  ['src/serve/threads.ts', 'src/serve/monitor.ts'],
  ['src/serve/working-set.ts', 'src/serve/hand-over.ts'],
  ['src/serve/session-task.ts'],
  ['src/serve/background.ts'],
  ['src/serve/answers.ts', 'src/serve/memory-file.ts', 'src/serve/notify.ts', 'src/serve/socket-path.ts'],
  ['src/serve/memory-identity.ts', 'src/serve/record-file.ts', 'src/serve/shortage.ts'],
  ['src/serve/handoff.ts', 'src/serve/tally.ts', 'src/serve/events.ts', 'src/serve/directory.ts'],
  ['src/index.ts', 'src/portable.ts', 'src/dirty/index.ts', 'src/trace/index.ts', 'src/sim/index.ts'],
  ['src/dirty/tracker.ts'],
  ['src/dirty/copying.ts', 'src/dirty/damage.ts', 'src/dirty/storage.ts'],
  ['src/dirty/watch.ts', 'src/dirty/file.ts'],
  ['src/dirty/lifter.ts', 'src/dirty/pages.ts', 'src/dirty/target.ts'],
  ['src/trace/perfetto.ts'],
  ['src/trace/replay.ts', 'src/trace/summary.ts'],
  ['src/userfaultfd.ts', 'src/linux.ts', 'src/messages.ts', 'src/trace/replaying.ts'],
  ['src/versions.ts', 'src/sim/kernel.ts', 'src/trace/recording.ts', 'src/trace/reader.ts'],
  [
    ...['src/open.ts', 'src/loop.ts', 'src/mapping.ts', 'src/sim/port.ts'],
    ...['src/trace/writer.ts', 'src/trace/records.ts', 'src/trace/histogram.ts'],
    ...['src/trace/pages.ts'],
  ],
  ['shim/linux.ts'],
  [
    ...[
      'src/placement.ts',
      'src/ending.ts',
      'src/options.ts',
      'src/channel.ts',
      'src/rounds.ts',
      'src/mapping-plan.ts',
      'src/page-record.ts',
      'src/address-space.ts',
      'src/trace/codec.ts',
    ],
    ...[
      'src/trace/owed.ts',
      'src/trace/origin.ts',
      'src/sim/register.ts',
      'src/sim/thread.ts',
      'src/sim/files.ts',
    ],
    ...['src/sim/versions.ts', 'src/sim/injection.ts'],
  ],
  [
    'src/features.ts',
    'shim/access.ts',
    'shim/memory.ts',
    'shim/process.ts',
    'shim/processors.ts',
    'shim/descriptors.ts',
    'shim/watch.ts',
    'shim/socket.ts',
    'src/sim/resolve.ts',
    'src/sim/mutators.ts',
    'src/sim/touch.ts',
  ],
  ['shim/discard.ts', 'shim/clock.ts'],
  ['src/arguments.ts', 'shim/libc.ts', 'src/sim/context.ts'],
  [
    'src/errors.ts',
    'src/failures.ts',
    'shim/koffi.ts',
    'src/parts.ts',
    'src/system.ts',
    'src/trace/files.ts',
    'src/sim/memory.ts',
  ],
  ['src/reasons.ts', 'src/sources.ts', 'src/registry.ts', 'src/core.ts'],
  ['src/reasons/calls.ts', 'src/reasons/ioctls.ts'],
  [
    ...['src/kernel.ts', 'src/handler.ts', 'src/stopper.ts'],
    ...['src/arrangements.ts', 'src/spin.ts', 'src/warning.ts', 'src/whole-pages.ts', 'src/names.ts'],
    ...['src/past-ranges.ts'],
    ...[
      'src/reasons/facts.ts',
      'src/wasm.d.ts',
      'src/report/assets.d.ts',
      'src/sim/abi.ts',
      'src/sim/random.ts',
    ],
    ...['src/sim/witness.ts', 'src/sim/clock.ts', 'src/sim/pool.ts'],
  ],
];
const CLI = 'src/cli/';
/** The entries that users import. */
const ENTRIES = ['index', 'embed', 'trace/index', 'serve/index', 'sim/index', 'testing/index'].map(
  (name) => `src/${name}.ts`,
);

/** What is inlined when the page of a report is built, so that nobody who uses the package needs it. */
const INLINED: Record<string, RegExp> = {
  uplot: /^src\/report\//,
};

/** Packages, and the only places that may import them. */
const PACKAGES: Record<string, RegExp> = {
  '#wasm': /^src\/(core|cli\/report\/assets)\.ts$/,
  '#trace': /^src\/(trace\/codec|cli\/report\/assets)\.ts$/,
  '#report': /^src\/cli\/report\/assets\.ts$/,
  '@assemblyscript/loader': /^src\/core\.ts$/,
  koffi: /^shim\/koffi\.ts$/,
  commander: /^src\/cli\//,
  'cli-progress': /^src\/cli\//,
  'cli-table3': /^src\/cli\//,
  picocolors: /^src\/cli\//,
  pino: /^src\/cli\//,
  'prom-client': /^src\/cli\//,
};

/** What may stand at the top, beside files whose name begins with a dot. */
const TOP = [
  ...['package.json', 'package-lock.json', 'tsconfig.json', 'asconfig.json', 'biome.json', 'typedoc.json'],
  ...['assembly', 'shim', 'src', 'test', 'bench', 'docs', 'examples'],
  ...['README.md', 'ARCHITECTURE.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md', 'LICENSE'],
  // Not tracked.
  ...['node_modules', 'dist'],
];

// ---- the sources -------------------------------------------------------------------------------------------

interface Import {
  from: string;
  typesOnly: boolean;
}

/** Files below a folder, relative to the root, with forward slashes. */
function filesIn(folder: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
    .map((file) => posix.join(folder, file.replaceAll('\\', '/')))
    .filter((file) => statSync(join(root, file)).isFile());
}

const sources = [...filesIn('src'), ...filesIn('shim')].filter((file) => file.endsWith('.ts'));

function textOf(file: string): string {
  return readFileSync(join(root, file), 'utf8');
}

/** The text without its comments. */
function codeOf(file: string): string {
  return textOf(file)
    .replace(/\/\*[\s\S]*?\*\//g, '')
    .replace(/(^|\s)\/\/.*$/gm, '$1');
}

/** What a source imports; its own files by their names in the repository. */
function importsOf(file: string): Import[] {
  const code = codeOf(file);
  const found: Import[] = [];
  const own = (name: string) =>
    name.startsWith('.') ? posix.join(posix.dirname(file), name).replace(/\.js$/, '.ts') : name;
  for (const [, clause = '', name = ''] of code.matchAll(/^(?:import|export)\b([^;]*?)\bfrom '([^']+)';/gm)) {
    const names = /\{([^}]*)\}/
      .exec(clause)?.[1]
      ?.split(',')
      .map((one) => one.trim())
      .filter(Boolean);
    const braced = /^\s*\{[^}]*\}\s*$/.test(clause) && names?.every((one) => one.startsWith('type '));
    found.push({ from: own(name), typesOnly: /^\s*type\b/.test(clause) || braced === true });
  }
  for (const [, name = ''] of code.matchAll(/^import '([^']+)';/gm))
    found.push({ from: own(name), typesOnly: false });
  for (const [, isType, name = ''] of code.matchAll(/(typeof )?\b(?:import|require)\('([^']+)'\)/g)) {
    found.push({ from: own(name), typesOnly: isType !== undefined });
  }
  return found;
}

test('imports go down only', () => {
  const row = (file: string) => LAYERS.findIndex((files) => files.includes(file));
  let checked = 0;
  for (const file of sources.filter((file) => !file.startsWith(CLI))) {
    assert.ok(row(file) >= 0, `${file} has no place in the table of layers`);
    for (const { from, typesOnly } of importsOf(file)) {
      if (!/^(src|shim)\//.test(from)) continue;
      assert.ok(existsSync(join(root, from)), `${file} imports ${from}, which is not there`);
      checked++;
      if (!typesOnly)
        assert.ok(row(from) > row(file), `${file} imports ${from}, which does not stand below it`);
    }
  }
  assert.ok(checked > 40, `only ${checked} imports were found`);
  for (const file of LAYERS.flat())
    assert.ok(sources.includes(file), `the table names ${file}, which is not there`);
});

test('the command line uses the library as anybody would', () => {
  for (const file of sources.filter((file) => file.startsWith(CLI))) {
    for (const { from } of importsOf(file)) {
      if (/^(src|shim)\//.test(from))
        assert.ok(ENTRIES.includes(from) || from.startsWith(CLI), `${file} imports ${from}`);
    }
  }
});

test('the shim knows nothing of the library but its port', () => {
  for (const file of sources.filter((file) => file.startsWith('shim/'))) {
    for (const { from } of importsOf(file)) {
      if (from.startsWith('src/')) assert.equal(from, 'src/kernel.ts', `${file} imports ${from}`);
    }
  }
});

test('packages are imported where they belong, and no others', () => {
  const { dependencies, devDependencies } = JSON.parse(textOf('package.json'));
  const declared = Object.keys(dependencies);
  const places = { ...PACKAGES, ...INLINED };
  for (const name of Object.keys(INLINED)) assert.ok(name in devDependencies, name);
  const known = Object.keys(PACKAGES).filter((name) => !name.startsWith('#'));
  assert.deepEqual(declared.sort(), known.sort());
  const used = new Set<string>();
  for (const file of sources) {
    for (const { from } of importsOf(file)) {
      if (/^(src\/|shim\/|node:)/.test(from)) continue;
      assert.ok(places[from]?.test(file), `${file} imports ${from}`);
      used.add(from);
    }
  }
  assert.deepEqual([...used].sort(), Object.keys(places).sort());
});

test('the page of a report reaches nothing of Node, and of the library only what reads traces', () => {
  for (const file of sources.filter((file) => file.startsWith('src/report/'))) {
    for (const { from } of importsOf(file))
      assert.ok(/^src\/(report|trace)\/|^uplot$/.test(from), `${file} imports ${from}`);
  }
  for (const file of sources.filter((file) => !file.startsWith('src/report/'))) {
    for (const { from } of importsOf(file))
      assert.ok(!from.startsWith('src/report/'), `${file} imports ${from}`);
  }
});

test('nothing imports itself in a circle', () => {
  const done = new Set<string>();
  const visit = (file: string, path: string[]) => {
    assert.ok(!path.includes(file), `a circle of imports: ${[...path, file].join(' → ')}`);
    if (done.has(file)) return;
    for (const { from, typesOnly } of importsOf(file)) {
      if (!typesOnly && sources.includes(from)) visit(from, [...path, file]);
    }
    done.add(file);
  };
  for (const file of sources) visit(file, []);
});

test('src/core.ts alone touches WebAssembly', () => {
  for (const file of sources) {
    if (file === 'src/core.ts') continue;
    assert.ok(!/\bWebAssembly\b/.test(codeOf(file)), `${file} uses WebAssembly`);
  }
  assert.match(codeOf('src/core.ts'), /new WebAssembly\.Module\(/);
});

test('bundlers are told which files do something when they are imported', () => {
  const { sideEffects } = JSON.parse(textOf('package.json')) as { sideEffects: string[] };
  // Statements at the top that call something, and imports of what does.
  const acts = /^(?:import '|embed\(|useSystem\(|if \(|await |void )/m;
  assert.deepEqual(
    sideEffects,
    sources
      // The page of a report is in no package.
      .filter((file) => acts.test(codeOf(file)) && !file.startsWith('src/report/'))
      .map((file) => `./dist/${file.replace(/\.ts$/, '.js')}`)
      .sort(),
  );
});

// ---- the repository ----------------------------------------------------------------------------------------

/** What git says, if this is a checkout. */
function git(...args: string[]): string[] | undefined {
  try {
    const options = { cwd: root, encoding: 'utf8', stdio: 'pipe' } as const;
    const top = execFileSync('git', ['rev-parse', '--show-toplevel'], options).trim();
    if (realpathSync(top) !== root) return undefined;
    return execFileSync('git', [...args, '-z'], options)
      .split('\0')
      .filter(Boolean);
  } catch {
    return undefined;
  }
}

/** Every file that is tracked or about to be; without git, every file that is not built or installed. */
function repository(): string[] {
  const listed = git('ls-files', '--cached', '--others', '--exclude-standard');
  if (listed) return listed.filter((file) => statSync(join(root, file), { throwIfNoEntry: false })?.isFile());
  const top = readdirSync(root).filter((name) => !['node_modules', 'dist', '.git'].includes(name));
  return top.flatMap((name) => (statSync(join(root, name)).isDirectory() ? filesIn(name) : [name]));
}

test('the top level holds nothing unexpected', () => {
  const names = readdirSync(root).filter((name) => !name.startsWith('.') && !TOP.includes(name));
  assert.deepEqual(names, []);
});

test('nothing built is tracked', () => {
  const tracked = git('ls-files', '--cached') ?? skip('this is no git checkout');
  const built = /(^|\/)(dist|node_modules|api)\/|\.(wasm|wat|map|tgz|node|o|so|js|mjs|cjs)$/;
  // Build scripts of an example are written by hand.
  assert.deepEqual(
    tracked.filter((file) => built.test(file) && !/^examples\/bundled-tool\/(build|sea)\.mjs$/.test(file)),
    [],
  );
  assert.ok(tracked.includes('package.json'));
});

/** Lines of the repository that match, as `file:line: text`. The pattern must not match where it is written. */
function linesWith(pattern: RegExp): string[] {
  return repository().flatMap((file) =>
    textOf(file)
      .split('\n')
      .flatMap((line, index) =>
        pattern.test(line) ? [`${file}:${index + 1}: ${line.trim().slice(0, 100)}`] : [],
      ),
  );
}

test('no file names a place on somebody’s machine', () => {
  assert.deepEqual(linesWith(/(?<![\w.:/-])\/(?:work|root|home|Users)\/[\w.]/), []);
});

test('no file names a package registry', () => {
  const words = ['registry.', '[a-z]+\\.(org|com)|', 'npm', 'js\\.(org|com)|', 'npm', 'mirror'].join('');
  assert.deepEqual(linesWith(new RegExp(words)), []);
  const lock = JSON.parse(textOf('package-lock.json')) as { packages: Record<string, object> };
  assert.deepEqual(
    Object.entries(lock.packages).filter(([, entry]) => 'resolved' in entry),
    [],
  );
  assert.ok(Object.values(lock.packages).filter((entry) => 'integrity' in entry).length > 10);
});

test('nothing is left to be done', () => {
  assert.deepEqual(
    linesWith(new RegExp(`\\b(${['TO', 'FIX'].map((word, i) => word + ['DO', 'ME'][i]).join('|')})\\b`)),
    [],
  );
});

// ---- the release module ------------------------------------------------------------------------------------

const release = join(dirname(fileURLToPath(import.meta.url)), '../core/release.wasm');

/** Exports that may grow the tables, and memory with them: a registration, a mapping change, room for a read, a source. */
const MAY_GROW = [
  ...['start', 'rangePut', 'rangeTake', 'inboxRoom', 'roundNext', 'inboxNextEvent', 'dirtyOpen'],
  'sourcePut',
];

test('the release modules import nothing, and are at most 24 KiB each', () => {
  for (const file of [release, join(dirname(release), 'trace.wasm')]) {
    const binary = readFileSync(file);
    assert.deepEqual(WebAssembly.Module.imports(new WebAssembly.Module(binary)), []);
    assert.ok(binary.length <= 24 * 1024, `${relative(root, file)} is ${binary.length} bytes`);
  }
});

test('memory grows on paths that register or read, and on no other', async () => {
  const { default: binaryen } = await import('binaryen');
  const module = binaryen.readBinary(readFileSync(release));
  const text = module.emitText();
  module.dispose();
  // Calls are all direct, or this says nothing.
  assert.ok(!/call_indirect|call_ref|ref\.func|\(table|\(elem/.test(text), 'the module has indirect calls');
  const calls = new Map<string, string[]>();
  const grows = new Set<string>();
  for (const [, name = '', body = ''] of text.matchAll(/^ \(func (\$\S+)([\s\S]*?)^ \)$/gm)) {
    calls.set(
      name,
      [...body.matchAll(/\((?:return_)?call (\$[^\s)]+)/g)].map(([, callee]) => callee as string),
    );
    if (body.includes('(memory.grow')) grows.add(name);
  }
  assert.equal(
    text.match(/\(memory\.grow/g)?.length ?? 0,
    text
      .match(/^ \(func [\s\S]*?^ \)$/gm)
      ?.join('')
      .match(/\(memory\.grow/g)?.length,
  );
  assert.ok(grows.size > 0, 'no function grows memory: the text was not understood');
  const reaches = (name: string, seen = new Set<string>()): boolean => {
    if (grows.has(name)) return true;
    if (seen.has(name)) return false;
    seen.add(name);
    return (calls.get(name) ?? assert.fail(`${name} is not in the text`)).some((callee) =>
      reaches(callee, seen),
    );
  };
  const exported = [...text.matchAll(/\(export "(\w+)" \(func (\$[^\s)]+)\)\)/g)];
  const names = exported.filter(([, , name]) => reaches(name as string)).map(([, name]) => name as string);
  assert.ok(
    exported.length > 30 && names.includes('rangePut') && names.includes('inboxRoom'),
    'too few exports were found',
  );
  assert.deepEqual(
    names.filter((name) => !MAY_GROW.includes(name)),
    [],
  );
  // What runs when the module is instantiated does not grow either.
  for (const [, name] of text.matchAll(/^ \(start (\$[^\s)]+)\)/gm)) assert.ok(!reaches(name as string));
});

test.run();
