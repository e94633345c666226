// `npm run suite -- nodes`: other versions of Node give the same results. A seed's trace is the same, byte by byte, on
// this Node, the oldest that the package allows, 22, 24 and the newest, with the release core (and with the debug core
// on the oldest and the newest). On each of them the portable tests pass, and so do those of the full library on the
// real kernel. npm installs the binaries into a temporary folder.
//
//   node build/test/nodes.js [SEEDS]     number of seeds; default 100

import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { install, run, Unavailable } from './support/install.js';

const here = (file: string): string => fileURLToPath(new URL(file, import.meta.url));
const SEEDS = Number(process.argv[2] ?? 100);
/** Seeds whose traces are hashed together. */
const CHUNK = 50;
const CORES = { release: [], debug: ['--conditions=uffd-debug'] };
/** Words in the paths of the test files that the other Nodes run, on the release core. */
const TESTS = [
  ...['abi', 'browser', 'core/queue.', 'core/pages', 'core/ranges.', 'core/transfer', 'sim/regressions'],
  ...['testing/page-sizes', 'trace/format', 'trace/replay'],
  // On the real kernel: opening, waiting and closing, other processes, a guest, dirty tracking.
  ...['uffd/contract', 'uffd/lifecycle', 'uffd/open', 'uffd/process-exit', 'dirty/tracker', 'runtimes/real'],
  // zstd of Node, which this one may lack.
  'store/hostile',
  // The published package, with the HTTP client that is bundled into it.
  'bundle/pager',
];
/** Versions between the oldest and the newest. */
const BETWEEN = ['22', '24'];

/** Installs versions of Node into a folder. Returns the paths of their binaries. */
function installNodes(folder: string, versions: readonly string[]): string[] {
  install(
    folder,
    versions.map((version) => `node-${version}@npm:node@${version}`),
  );
  return versions.map((version) => {
    const binary = join(folder, `node_modules/node-${version}/bin/node`);
    if (existsSync(binary)) return binary;
    throw new Unavailable(`npm has installed node@${version}, but not its binary for this machine`);
  });
}

/** The oldest version that the package allows. */
function oldest(): string {
  const { engines } = JSON.parse(readFileSync(here('../../package.json'), 'utf8'));
  const [, version] = /^>=(\d+\.\d+)$/.exec(engines.node) ?? [];
  if (!version) throw new Error(`"engines" says node ${engines.node}, which is not understood here`);
  return `${version}.0`;
}

/** Whether every binary and every core makes the same traces; prints a table of their hashes. */
function compareTraces(binaries: readonly string[]): boolean {
  let same = true;
  const first: string[] = [];
  for (const [index, binary] of binaries.entries()) {
    // The first binary is this Node; the others are in ascending order.
    const outermost = index === 1 || index === binaries.length - 1;
    for (const [core, conditions] of Object.entries(CORES)) {
      if (core === 'debug' && !outermost) continue;
      const hashes: string[] = [];
      for (let seed = 1; seed <= SEEDS; seed += CHUNK) {
        const count = `${Math.min(CHUNK, SEEDS - seed + 1)}`;
        hashes.push(run(binary, [...conditions, here('testing/support/trace-of.js'), `${seed}`, count]));
      }
      if (first.length === 0) first.push(...hashes);
      const cells = hashes.map((hash, index) => `${hash.slice(0, 12)}${hash === first[index] ? ' ' : '!'}`);
      console.log(`${run(binary, ['--version']).padEnd(10)} ${core.padEnd(8)} ${cells.join(' ')}`);
      same &&= cells.every((cell) => !cell.endsWith('!'));
    }
  }
  console.log(same ? 'all traces are the same' : `DIFFERENT: where there is a "!"; ${CHUNK} seeds a column`);
  return same;
}

/** Whether the tests pass on a binary; prints what failed. */
function passes(binary: string): boolean {
  const version = run(binary, ['--version']);
  try {
    console.log(
      `${version}: ${run(binary, [here('run.js'), ...TESTS])
        .split('\n')
        .at(-1)}`,
    );
    return true;
  } catch (error) {
    console.log(`${version}: FAILED: ${(error as Error).message}`);
    return false;
  }
}

const folder = mkdtempSync(join(tmpdir(), 'uffd-nodes-'));
try {
  const others = installNodes(folder, [oldest(), ...BETWEEN, 'latest']);
  const same = compareTraces([process.execPath, ...others]);
  const passed = others.filter(passes);
  process.exitCode = same && passed.length === others.length ? 0 : 1;
} catch (error) {
  if (!(error instanceof Unavailable)) throw error;
  console.error(error.message);
  process.exitCode = 1;
} finally {
  rmSync(folder, { recursive: true, force: true });
}
