// `npm run sizes`: the size of the package, compared with its aims, and its start times. It fails if a size exceeds
// its aim, never because of a time.
//
//   node build/bench/sizes.js [--markdown] [--rounds N]

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
const STANDALONE = 'build/standalone/uffd.mjs';

interface Size {
  readonly what: string;
  readonly bytes: number;
  /** The largest number of bytes. */
  readonly aim?: number;
}

/** The package as npm packs it, and its documents alone. */
function packed(): { whole: number; documents: number } {
  const folder = mkdtempSync(join(tmpdir(), 'uffd-sizes-'));
  try {
    const args = ['pack', '--ignore-scripts', '--json', '--pack-destination', folder];
    const said = execFileSync('npm', args, {
      cwd: root,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    const [{ filename, size }] = JSON.parse(said);
    execFileSync('tar', ['-xzf', filename], { cwd: folder });
    const documents = execFileSync('tar', ['-cz', '-C', join(folder, 'package'), 'docs']);
    return { whole: size, documents: documents.length };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Bytes of an entry that is bundled for a web page and compressed with gzip. */
async function bundled(entry: string): Promise<number> {
  const { outputFiles } = await build({
    stdin: { contents: `export * from 'userfaultfd/${entry}'`, resolveDir: root },
    ...{ bundle: true, minify: true, write: false, format: 'esm', platform: 'browser', logLevel: 'error' },
    // The repository's own tsconfig.json would resolve the package's name to the sources.
    tsconfigRaw: {},
  });
  return gzipSync(outputFiles[0]?.contents ?? '', { level: 9 }).length;
}

async function sizes(): Promise<Size[]> {
  const bytesOf = (file: string): number => statSync(join(root, file)).size;
  const entries = ['core', 'trace', 'sim', 'testing'];
  const bundles = await Promise.all(entries.map(bundled));
  const { whole, documents } = packed();
  return [
    { what: 'the package, packed, without its documents', bytes: whole - documents, aim: 660_000 },
    { what: 'its documents, packed: `docs/`', bytes: documents, aim: 330_000 },
    { what: 'the core, release build', bytes: bytesOf('build/core/release.wasm'), aim: 24 * 1024 },
    { what: 'the codec of traces, release build', bytes: bytesOf('build/core/trace.wasm'), aim: 16 * 1024 },
    ...entries.map((entry, index) => ({
      what: `\`userfaultfd/${entry}\`, bundled, minified, gzipped`,
      bytes: bundles[index] as number,
      ...(entry === 'core' ? { aim: 20_000 } : {}),
    })),
    { what: '`build/standalone/uffd.mjs`, the whole command', bytes: bytesOf(STANDALONE) },
    { what: '… gzipped', bytes: gzipSync(readFileSync(join(root, STANDALONE)), { level: 9 }).length },
    { what: '`build/standalone/koffi.node` beside it', bytes: bytesOf('build/standalone/koffi.node') },
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
