// The repository is laid out as ARCHITECTURE.md says: imports go down, one file uses WebAssembly, and no built or
// machine-specific file is tracked. The release module imports nothing, is small, and grows its memory only in calls
// that register or read.

import { strict as assert } from 'node:assert';
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, realpathSync, statSync } from 'node:fs';
import { dirname, join, posix, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { skip, suite } from './support/harness.js';

const test = suite('layout');
const root = realpathSync(fileURLToPath(new URL('../../', import.meta.url)));

/**
 * The layers: a file imports only from rows below its own, types included. The command line is above all of them, and
 * imports only the package's entries.
 */
const LAYERS = [
  ['src/report/page.ts'],
  ['src/report/trace-view.ts'],
  ['src/report/hover.ts'],
  ['src/report/charts.ts', 'src/report/heat-map.ts', 'src/report/list.ts'],
  ['src/report/bins.ts', 'src/report/hottest.ts', 'src/report/search.ts'],
  ['src/report/chart-look.ts', 'src/report/collect.ts', 'src/report/ticks.ts'],
  [
    ...['src/report/figures.ts', 'src/report/gestures.ts', 'src/report/growth.ts', 'src/report/keys.ts'],
    ...['src/report/rows.ts', 'src/report/theme.ts', 'src/report/trace-wasm.ts', 'src/report/wasm.ts'],
  ],
  ['src/report/events.ts'],
  [
    ...['src/report/assets.d.ts', 'src/report/dom.ts', 'src/report/embedded.ts'],
    ...['src/report/numbers.ts', 'src/report/slices.ts', 'src/report/view.ts'],
  ],
  ['src/testing/index.ts'],
  ['src/testing/record-handler.ts'],
  ['src/testing/check-handler.ts'],
  ['src/workers/entry.ts'],
  ['src/conformance/suite.ts'],
  ['src/conformance/run-scenario.ts'],
  ['src/embed.ts'],
  ['src/supervisor/check-simulated.ts', 'src/supervisor/record-handler.ts'],
  ['src/supervisor/record-run.ts'],
  ['src/supervisor/recorded-calls.ts'],
  ['src/supervisor/handler-descriptors.ts'],
  ['src/supervisor/search.ts'],
  ['src/supervisor/handler-run.ts', 'src/supervisor/support.ts'],
  ['src/supervisor/handler-calls.ts'],
  ['src/supervisor/replay-guest.ts'],
  [
    ...['src/supervisor/guest.ts', 'src/supervisor/launcher.ts', 'src/supervisor/recorded-uffd.ts'],
    ...['src/supervisor/seen-hand-offs.ts', 'src/supervisor/waits.ts'],
  ],
  ['src/supervisor/evidence.ts', 'src/supervisor/monitor-fills.ts', 'src/supervisor/recording.ts'],
  ['src/supervisor/caller.ts', 'src/supervisor/launcher-process.ts', 'src/supervisor/trapped-call.ts'],
  ['src/testing/explore.ts'],
  ['src/testing/shrink.ts'],
  ['src/testing/simulate.ts'],
  ['src/testing/run.ts'],
  ['src/testing/observed-handler.ts'],
  [
    ...['src/testing/event-order.ts', 'src/testing/handler.ts', 'src/testing/page-oracle.ts'],
    ...['src/testing/schedule.ts', 'src/testing/workload.ts'],
  ],
  [
    ...['src/testing/check.ts', 'src/testing/event-loop-turn.ts', 'src/testing/failure.ts'],
    ...['src/testing/observed-port.ts', 'src/testing/world.ts'],
  ],
  ['src/conformance/guest-process.ts'],
  ['src/conformance/scenarios/index.ts'],
  [
    ...['src/conformance/scenarios/ends.ts', 'src/conformance/scenarios/faults.ts'],
    ...['src/conformance/scenarios/hand-offs.ts', 'src/conformance/scenarios/layouts.ts'],
    'src/conformance/scenarios/removals.ts',
  ],
  ['src/conformance/scenario.ts'],
  ['src/conformance/guest.ts'],
  ['src/conformance/handler-process.ts', 'src/conformance/page-contents.ts', 'src/conformance/report.ts'],
  ['src/conformance/guest-protocol.ts', 'src/conformance/process-state.ts', 'src/conformance/result.ts'],
  ['src/pager/index.ts', 'src/pager/pager-thread.ts'],
  ['src/pager/memory.ts', 'src/pager/pager.ts', 'src/pager/sources.ts'],
  ['src/serve/index.ts', 'src/store/index.ts'],
  ['src/serve/server.ts'],
  ['src/serve/remote-memory.ts'],
  ['src/serve/chunk-checker-thread.ts', 'src/serve/chunk-loader.ts', 'src/serve/warm-cache.ts'],
  ['src/serve/chunk-checker.ts'],
  [
    ...['src/store/pack.ts', 'src/store/pack-seekable.ts', 'src/store/prune.ts'],
    ...['src/store/unpack.ts', 'src/store/verify.ts'],
    'src/store/working-set-file.ts',
  ],
  ['src/pager/chunk-source.ts', 'src/store/seekable-reader.ts'],
  [
    ...['src/serve/chunk-cache.ts', 'src/store/chunk-reader.ts', 'src/store/open-store.ts'],
    'src/store/parallel.ts',
  ],
  ['src/store/frame-check.ts'],
  ['src/store/http-store.ts', 'src/store/s3-store.ts'],
  ['src/store/s3-credentials.ts'],
  [
    'src/store/fallback-store.ts',
    'src/store/folder-store.ts',
    'src/store/http-client.ts',
    'src/store/s3-list.ts',
  ],
  ['src/store/seekable-table.ts', 'src/store/store.ts'],
  [
    ...['src/pager/http-source.ts', 'src/pager/options.ts', 'src/pager/overlay-file.ts'],
    ...['src/pager/program-calls.ts', 'src/pager/server.ts'],
  ],
  [
    ...['src/pager/engine.ts', 'src/pager/http-exchange.ts', 'src/pager/messages.ts', 'src/pager/sink.ts'],
    'src/pager/swap-file.ts',
  ],
  [
    ...[
      'src/pager/budget.ts',
      'src/pager/chunk-description.ts',
      'src/pager/counts.ts',
      'src/pager/custom-source.ts',
    ],
    ...['src/pager/file-source.ts', 'src/pager/http-connections.ts', 'src/pager/http-target.ts'],
    ...['src/store/chunk-index.ts', 'src/store/compression.ts'],
    ...['src/pager/journal-file.ts', 'src/pager/module-description.ts', 'src/pager/overlaid-source.ts'],
    'src/pager/pager-memory.ts',
  ],
  ['src/pager/journal.ts'],
  ['src/pager/journal-target.ts', 'src/store/options.ts'],
  [
    ...['src/pager/file-description.ts', 'src/pager/http-buffers.ts', 'src/pager/http-description.ts'],
    ...['src/pager/http-names.ts', 'src/pager/journal-format.ts', 'src/pager/journal-io.ts'],
    ...['src/pager/http-answer.ts', 'src/pager/overlay-format.ts'],
    ...['src/pager/source.ts', 'src/pager/swap-extents.ts'],
  ],
  ['src/dirty/index.ts'],
  ['src/dirty/tracker.ts'],
  ['src/dirty/copying.ts'],
  ['src/dirty/watch.ts'],
  ['src/dirty/damage.ts', 'src/dirty/storage.ts', 'src/dirty/target.ts'],
  ['src/dirty/checkpoint-file.ts', 'src/dirty/pages.ts', 'src/dirty/unprotect-worker.ts'],
  ['src/index.ts', 'src/portable.ts', 'src/sim/index.ts', 'src/trace/index.ts'],
  ['src/serve/events.ts'],
  ['src/serve/rehearsal.ts'],
  ['src/serve/guest-session.ts', 'src/serve/session-worker.ts'],
  ['src/serve/warm-up.ts', 'src/serve/worker-pool.ts'],
  ['src/serve/background-filler.ts', 'src/serve/worker-messages.ts', 'src/serve/working-set.ts'],
  ['src/serve/image-mapping.ts'],
  ['src/serve/image-source.ts', 'src/serve/memory-file.ts'],
  ['src/serve/layered-mapping.ts'],
  ['src/serve/memory-image.ts'],
  ['src/serve/layered-plan.ts'],
  ['src/serve/extents.ts', 'src/serve/mapping-limit.ts', 'src/serve/shared-pages.ts'],
  ['src/serve/snapshot-handler.ts'],
  [
    ...['src/serve/connection.ts', 'src/serve/handoff-client.ts', 'src/serve/memory-identity.ts'],
    ...['src/serve/retained-uffds.ts', 'src/serve/shortage.ts', 'src/serve/socket-path.ts'],
  ],
  [
    ...['src/serve/counters.ts', 'src/serve/directory.ts', 'src/serve/handoff-protocol.ts'],
    ...['src/serve/monitor.ts', 'src/serve/notify.ts', 'src/serve/record-file.ts'],
    'src/serve/uffd-features.ts',
  ],
  ['src/trace/replay.ts'],
  ['src/uffd/userfaultfd.ts'],
  ['src/uffd/options.ts'],
  ['src/kernel/linux.ts', 'src/memory/mapping.ts', 'src/uffd/event-loop.ts'],
  [
    ...['src/kernel/feature-diagnosis.ts', 'src/memory/address-space.ts', 'src/trace/unresolved-faults.ts'],
    ...['src/uffd/dispatcher.ts', 'src/uffd/process-exit.ts'],
  ],
  ['src/uffd/handler-errors.ts', 'src/uffd/open-uffds.ts', 'src/uffd/open.ts'],
  ['src/memory/mapping-plan.ts', 'src/uffd/handler.ts', 'src/uffd/session.ts'],
  ['src/errors/errors.ts'],
  ['src/errors/catalog.ts', 'src/trace/perfetto.ts'],
  ['src/trace/handler-rules.ts'],
  ['src/sim/kernel.ts', 'src/trace/replay-port.ts', 'src/trace/summary.ts'],
  ['shim/linux.ts', 'src/errors/conditions.ts', 'src/sim/port.ts', 'src/trace/reader.ts'],
  [
    ...['shim/processors.ts', 'src/sim/files.ts', 'src/supervisor/system-calls.ts'],
    ...['src/trace/open-parameters.ts', 'src/trace/recording-port.ts', 'src/uffd/page-states.ts'],
  ],
  [
    ...['shim/access.ts', 'shim/clock.ts', 'shim/descriptors.ts', 'shim/discard.ts', 'shim/memory.ts'],
    ...[
      'shim/process.ts',
      'shim/seccomp.ts',
      'shim/socket.ts',
      'shim/watch.ts',
      'shim/zstd.ts',
      'src/sim/register.ts',
      'src/sim/thread.ts',
    ],
    ...['src/sim/versions.ts', 'src/trace/record-format.ts', 'src/trace/writer.ts', 'src/uffd/messages.ts'],
    ...['src/uffd/registered-range.ts'],
  ],
  ['shim/pthread.ts', 'src/serve/session-thread.ts'],
  [
    ...['shim/libc.ts', 'src/kernel/features.ts', 'src/scheduling/affinity.ts'],
    ...['src/sim/memory-syscalls.ts', 'src/sim/resolve.ts', 'src/sim/touch.ts', 'src/trace/codec.ts'],
    ...['src/uffd/source-data.ts', 'src/workers/entry-file.ts'],
  ],
  ['src/sim/shared-memory.ts'],
  [
    ...['shim/koffi.ts', 'src/errors/arguments.ts', 'src/kernel/default-kernel.ts', 'src/sim/clock.ts'],
    ...['src/sim/injection.ts', 'src/sim/memory.ts', 'src/trace/files.ts', 'src/uffd/core.ts'],
    ...['src/workers/launcher.ts'],
  ],
  [
    ...['src/errors/format.ts', 'src/errors/warning.ts', 'src/kernel/port.ts', 'src/memory/whole-pages.ts'],
    ...['src/scheduling/adaptive-spin.ts', 'src/scheduling/affinity-tuner.ts', 'src/sim/abi.ts'],
    ...['src/sim/chooser.ts', 'src/sim/pool.ts', 'src/trace/histogram.ts', 'src/trace/pages.ts'],
    ...['src/uffd/former-ranges.ts', 'src/uffd/stop-signal.ts', 'src/uffd/wasm.d.ts'],
  ],
  // Generated by the build.
  ['src/bindings/core.ts', 'src/bindings/errors.ts', 'src/bindings/pager.ts', 'src/bindings/trace.ts'],
];
const CLI = 'src/cli/';
/** The entries that users import. */
const ENTRIES = [
  'index',
  'embed',
  'pager/index',
  'trace/index',
  'serve/index',
  'store/index',
  'sim/index',
  'testing/index',
].map((name) => `src/${name}.ts`);

/** Packages that the build bundles into the command and the report's page, so users need not install them. */
const INLINED: Record<string, RegExp> = {
  uplot: /^src\/report\//,
  commander: /^src\/cli\//,
  'cli-progress': /^src\/cli\//,
  'cli-table3': /^src\/cli\//,
  picocolors: /^src\/cli\//,
  pino: /^src\/cli\//,
  'prom-client': /^src\/cli\//,
  aws4: /^src\/store\/s3-store/,
  undici: /^src\/(pager|store)\/http-/,
  'xxhash-wasm': /^src\/store\/frame-check/,
  zstddec: /^src\/store\/compression/,
};

/** Packages, and the only places that may import them. */
const PACKAGES: Record<string, RegExp> = {
  '#wasm': /^src\/(uffd\/core|cli\/report\/assets)\.ts$/,
  '#trace': /^src\/(trace\/codec|cli\/report\/assets)\.ts$/,
  '#pager': /^src\/pager\/engine\.ts$/,
  '#report': /^src\/cli\/report\/assets\.ts$/,
  '@assemblyscript/loader': /^src\/uffd\/core\.ts$/,
  koffi: /^shim\/koffi\.ts$/,
};

/** The files and folders allowed at the top level, besides files whose name begins with a dot. */
const TOP = [
  ...['package.json', 'package-lock.json', 'tsconfig.json', 'asconfig.json', 'biome.json', 'typedoc.json'],
  ...['assembly', 'shim', 'src', 'test', 'bench', 'docs', 'examples', 'tools'],
  ...['README.md', 'ARCHITECTURE.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'SECURITY.md', 'LICENSE'],
  // Not tracked.
  ...['node_modules', 'dist', 'build'],
];

// ---- the sources -------------------------------------------------------------------------------------------

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

/** The text of a file without its comments. */
function codeOf(file: string): string {
  return textOf(file)
    .replace(/\/\*[\s\S]*?\*\//g, '')
    .replace(/(^|\s)\/\/.*$/gm, '$1');
}

/** The imports of a source, types included; the project's own files by their paths in the repository. */
function importsOf(file: string): string[] {
  const code = codeOf(file);
  const own = (name: string) =>
    name.startsWith('.') ? posix.join(posix.dirname(file), name).replace(/\.js$/, '.ts') : name;
  const statements = /^(?:(?:import|export)\b[^;]*?\bfrom |import )'([^']+)';/gm;
  const calls = /\b(?:import|require)\('([^']+)'\)/g;
  return [statements, calls].flatMap((pattern) =>
    [...code.matchAll(pattern)].map(([, name = '']) => own(name)),
  );
}

test('imports go down only', () => {
  const row = (file: string) => LAYERS.findIndex((files) => files.includes(file));
  let checked = 0;
  for (const file of sources.filter((file) => !file.startsWith(CLI))) {
    assert.ok(row(file) >= 0, `${file} has no place in the table of layers`);
    for (const from of importsOf(file)) {
      if (!/^(src|shim)\//.test(from)) continue;
      assert.ok(existsSync(join(root, from)), `${file} imports ${from}, which is not there`);
      checked++;
      assert.ok(row(from) > row(file), `${file} imports ${from}, which does not stand below it`);
    }
  }
  assert.ok(checked > 40, `only ${checked} imports were found`);
  for (const file of LAYERS.flat())
    assert.ok(sources.includes(file), `the table names ${file}, which is not there`);
});

test('the command line uses only the public entries of the library', () => {
  for (const file of sources.filter((file) => file.startsWith(CLI))) {
    for (const from of importsOf(file)) {
      if (/^(src|shim)\//.test(from))
        assert.ok(ENTRIES.includes(from) || from.startsWith(CLI), `${file} imports ${from}`);
    }
  }
});

test('the shim knows nothing of the library but its port', () => {
  for (const file of sources.filter((file) => file.startsWith('shim/'))) {
    for (const from of importsOf(file)) {
      if (from.startsWith('src/')) assert.equal(from, 'src/kernel/port.ts', `${file} imports ${from}`);
    }
  }
});

test('each source begins with a comment that says what it holds', () => {
  const files = [...sources, ...filesIn('assembly').filter((file) => file.endsWith('.ts'))];
  for (const file of files) {
    const [line] = textOf(file)
      .replace(/^#!.*\n/, '')
      .split('\n');
    assert.match(line ?? '', /^\/(\/|\*\*) \S/, file);
  }
});

test('packages are imported where they belong, and no others', () => {
  const { dependencies, devDependencies } = JSON.parse(textOf('package.json'));
  const places = { ...PACKAGES, ...INLINED };
  for (const name of Object.keys(INLINED)) assert.ok(name in devDependencies, name);
  const known = Object.keys(PACKAGES).filter((name) => !name.startsWith('#'));
  assert.deepEqual(Object.keys(dependencies).sort(), known.sort());
  const used = new Set<string>();
  for (const file of sources) {
    for (const from of importsOf(file)) {
      if (/^(src\/|shim\/|node:)/.test(from)) continue;
      assert.ok(places[from]?.test(file), `${file} imports ${from}`);
      used.add(from);
    }
  }
  assert.deepEqual([...used].sort(), Object.keys(places).sort());
});

test('the page of a report reaches nothing of Node, and of the library only what reads traces', () => {
  for (const file of sources.filter((file) => file.startsWith('src/report/'))) {
    for (const from of importsOf(file))
      assert.ok(/^src\/(report|trace)\/|^uplot$/.test(from), `${file} imports ${from}`);
  }
  for (const file of sources.filter((file) => !file.startsWith('src/report/'))) {
    for (const from of importsOf(file)) assert.ok(!from.startsWith('src/report/'), `${file} imports ${from}`);
  }
});

test('nothing imports itself in a circle', () => {
  const done = new Set<string>();
  const visit = (file: string, path: string[]) => {
    assert.ok(!path.includes(file), `a circle of imports: ${[...path, file].join(' → ')}`);
    if (done.has(file)) return;
    for (const from of importsOf(file)) {
      if (sources.includes(from)) visit(from, [...path, file]);
    }
    done.add(file);
  };
  for (const file of sources) visit(file, []);
});

test('src/uffd/core.ts alone touches WebAssembly', () => {
  for (const file of sources) {
    if (file === 'src/uffd/core.ts') continue;
    assert.ok(!/\bWebAssembly\b/.test(codeOf(file)), `${file} uses WebAssembly`);
  }
  assert.match(codeOf('src/uffd/core.ts'), /new WebAssembly\.Module\(/);
});

// ---- the repository ----------------------------------------------------------------------------------------

/** The output of a git command, if this is a checkout. */
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

/** Every file that is tracked or not ignored; without git, every file except built and installed ones. */
function repository(): string[] {
  const listed = git('ls-files', '--cached', '--others', '--exclude-standard');
  if (listed) return listed.filter((file) => statSync(join(root, file), { throwIfNoEntry: false })?.isFile());
  const top = readdirSync(root).filter((name) => !['node_modules', 'dist', 'build', '.git'].includes(name));
  return top.flatMap((name) => (statSync(join(root, name)).isDirectory() ? filesIn(name) : [name]));
}

test('the top level holds nothing unexpected', () => {
  const names = readdirSync(root).filter((name) => !name.startsWith('.') && !TOP.includes(name));
  assert.deepEqual(names, []);
});

test('nothing built is tracked', () => {
  const tracked = git('ls-files', '--cached') ?? skip('this is no git checkout');
  const built = /(^|\/)(dist|build|node_modules|api)\/|\.(wasm|wat|map|tgz|node|o|so|js|mjs|cjs)$/;
  // The build scripts of this example are sources.
  assert.deepEqual(
    tracked.filter((file) => built.test(file) && !/^examples\/bundled-tool\/(build|sea)\.mjs$/.test(file)),
    [],
  );
  assert.ok(tracked.includes('package.json'));
});

/** Matching lines of the repository, as `file:line: text`. The pattern must not match its own source line. */
function linesWith(pattern: RegExp): string[] {
  return repository().flatMap((file) =>
    textOf(file)
      .split('\n')
      .flatMap((line, index) =>
        pattern.test(line) ? [`${file}:${index + 1}: ${line.trim().slice(0, 100)}`] : [],
      ),
  );
}

test('no file contains a path of a developer’s machine', () => {
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

/**
 * Exports that may grow the tables, and memory with them: registrations, sources, and inputs of the session, which may
 * deliver a mapping change or make room for a read. (The tests of the core check that a fault never grows memory.)
 */
const MAY_GROW = [
  ...['start', 'rangePut', 'rangeTake', 'dirtyOpen', 'sourcePut'],
  ...['begin', 'next', 'handleRead', 'handleResult', 'handleTime', 'handleAnswer', 'handleZeros'],
  ...['beginFill', 'beginAhead', 'beginEnd'],
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
  // All calls must be direct: this test cannot follow indirect calls.
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
    exported.length > 30 && names.includes('rangePut') && names.includes('handleRead'),
    'too few exports were found',
  );
  assert.deepEqual(
    names.filter((name) => !MAY_GROW.includes(name)),
    [],
  );
  // The start function, which runs at instantiation, must not grow memory either.
  for (const [, name] of text.matchAll(/^ \(start (\$[^\s)]+)\)/gm)) assert.ok(!reaches(name as string));
});

test.run();
