// `npm run sizes`: how large what is published is, against its aims, and how soon it has begun. It fails where a size
// exceeds its aim, and never on a clock.
//
//   node dist/bench/sizes.js [--markdown] [--rounds N]

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { Command } from 'commander';
import { build } from 'esbuild';
import { machine } from './machine.js';
import { STARTS, type StartFigure, starts } from './starts.js';
import { markdown, terminal, text } from './tables.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const ROUNDS = 15;

interface Size {
  readonly what: string;
  readonly bytes: number;
  /** At most so many bytes. */
  readonly aim?: number;
}

/** The package as npm packs it. */
function packed(): number {
  const folder = mkdtempSync(join(tmpdir(), 'uffd-sizes-'));
  try {
    const args = ['pack', '--ignore-scripts', '--json', '--pack-destination', folder];
    const said = execFileSync('npm', args, {
      cwd: root,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    return JSON.parse(said)[0].size;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** An entry as a bundler makes it for a web page, as a server sends it. */
async function bundled(entry: string): Promise<number> {
  const { outputFiles } = await build({
    stdin: { contents: `export * from 'userfaultfd/${entry}'`, resolveDir: root },
    ...{ bundle: true, minify: true, write: false, format: 'esm', platform: 'browser', logLevel: 'error' },
  });
  return gzipSync(outputFiles[0]?.contents ?? '', { level: 9 }).length;
}

async function sizes(): Promise<Size[]> {
  const bytesOf = (file: string): number => statSync(join(root, 'dist', file)).size;
  const entries = ['core', 'trace', 'sim', 'testing'];
  const bundles = await Promise.all(entries.map(bundled));
  return [
    { what: 'the package, packed, without koffi', bytes: packed(), aim: 340_000 },
    { what: 'the core, release build', bytes: bytesOf('core/release.wasm'), aim: 24 * 1024 },
    { what: 'the codec of traces, release build', bytes: bytesOf('core/trace.wasm'), aim: 16 * 1024 },
    ...entries.map((entry, index) => ({
      what: `\`userfaultfd/${entry}\`, bundled, minified, gzipped`,
      bytes: bundles[index] as number,
      ...(entry === 'core' ? { aim: 20_000 } : {}),
    })),
    { what: '`dist/uffd.mjs`, the whole command', bytes: bytesOf('uffd.mjs') },
    { what: '… gzipped', bytes: gzipSync(readFileSync(join(root, 'dist/uffd.mjs')), { level: 9 }).length },
    { what: '`dist/koffi.node` beside it', bytes: bytesOf('koffi.node') },
  ];
}

const number = (value: number): string => value.toLocaleString('en');

function sizeCells({ what, bytes, aim }: Size): string[] {
  return [what, number(bytes), aim === undefined ? '' : number(aim)];
}

function startCells({ name, ms, times }: StartFigure): string[] {
  return [name, text(ms, 0), text(times, 2)];
}

const program = new Command('npm run sizes --')
  .description('How large what is published is, and how soon it has begun.')
  .option('--markdown', 'the tables of docs/benchmarks.md')
  .option('--rounds <n>', 'starts of each, one after the other', Number, ROUNDS);
const options = program.parse().opts<{ markdown?: boolean; rounds: number }>();
const write = options.markdown ? markdown : terminal;
const found = await sizes();
const plain = (cell: string): string => (options.markdown ? cell : cell.replaceAll('`', ''));
console.log(
  write(
    ['figure', 'bytes', 'at most'],
    found.map((size) => sizeCells(size).map(plain)),
  ),
);
console.log(
  `\n${machine()}. ${options.rounds} starts of each, in turn; medians, least and most in brackets.\n`,
);
const began = await starts(options.rounds);
console.log(
  write(
    ['figure', 'ms', `÷ ${STARTS[0].name}`],
    began.map((figure) => startCells(figure).map(plain)),
  ),
);
for (const { what, bytes, aim } of found) {
  if (aim === undefined || bytes <= aim) continue;
  console.error(`${plain(what)}: ${number(bytes)} bytes, and at most ${number(aim)} are aimed at`);
  process.exitCode = 1;
}
