// `npm run suite -- runtimes`: the portable entries run in every runtime. The portable suites run in this Node, Deno,
// Bun and a headless Chromium, from the sources, from the build, and as one bundle. A trace that was recorded on the
// real kernel replays in each runtime with the same result. On Deno and Bun the full library also resolves real faults.
// npm installs Deno and Bun into a temporary folder; Chromium is the system's.
//
//   node build/test/runtimes.js [WORD…]     only runtimes whose name contains one of the words
//   UFFD_REQUIRE_KERNEL=1                  a missing runtime or a skipped test counts as failed

import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { bundle, ROOT, running, traceProgram } from './runtimes/bundles.js';
import { FULL, LONG, MAPPED, SLOW, SUITES } from './runtimes/files.js';
import { Chromium, Command, type Host, type Ran, type What } from './runtimes/hosts.js';
import { SEEDS, TRACES, type TraceResults } from './runtimes/traces.js';
import { openChromium } from './support/chromium.js';
import { install, run } from './support/install.js';

/** The number of runtimes that run at the same time. */
const AT_A_TIME = 2;
const words = process.argv.slice(2).map((word) => word.toLowerCase());
const required = Boolean(process.env.UFFD_REQUIRE_KERNEL);
let failures = 0;

// ---- the runtimes ------------------------------------------------------------------------------------------

/** Functions that start each runtime. Node comes first: the results of the others are compared with Node's. */
const RUNTIMES: Record<string, (folder: string) => Host | Promise<Host>> = {
  Node: () => new Command(`Node ${process.versions.node}`, process.execPath, ['--expose-gc']),
  Deno: (folder) => installed(folder, 'deno', 'Deno', ['run', '-A', '--v8-flags=--expose-gc']),
  Bun: (folder) => installed(folder, 'bun', 'Bun', ['--expose-gc']),
  Chromium: async () => new Chromium(await openChromium()),
};

function installed(parent: string, name: string, title: string, args: readonly string[]): Host {
  const folder = mkdtempSync(join(parent, `${name}-`));
  install(folder, [name]);
  const program = join(folder, 'node_modules/.bin', name);
  const [version] = /\d+\.\d+\.\d+/.exec(run(program, ['--version'])) ?? ['?'];
  return new Command(`${title} ${version}`, program, args);
}

/** Starts the runtimes that are available here, and prints why the others are not. */
async function open(folder: string): Promise<Map<string, Host>> {
  const hosts = new Map<string, Host>();
  for (const [name, make] of Object.entries(RUNTIMES)) {
    const wanted = words.length === 0 || words.some((word) => name.toLowerCase().includes(word));
    if (name !== 'Node' && !wanted) continue;
    try {
      hosts.set(name, await make(folder));
    } catch (error) {
      console.log(`left out: ${name}: ${(error as Error).message.split('\n')[0]}`);
      if (required) failures++;
    }
  }
  return hosts;
}

// ---- the suites --------------------------------------------------------------------------------------------

/** The suites of an artefact, each with its files and the number of files left out. */
type Artefact = ReadonlyMap<string, { what: What; shortened: number }>;

async function bundled(artefact: 'source' | 'bundle', without: readonly string[]): Promise<Artefact> {
  const suites = Object.entries(SUITES).map(async ([name, all]) => {
    const files = all.filter((file) => !without.includes(file));
    const what = { text: await bundle(artefact, running(files)) };
    return [name, { what, shortened: all.length - files.length }] as const;
  });
  return new Map(await Promise.all(suites));
}

function built(): Artefact {
  return new Map(
    Object.entries(SUITES).map(([name, all]) => {
      const files = all.filter((file) => !LONG.includes(file));
      return [name, { what: { files }, shortened: all.length - files.length }];
    }),
  );
}

/** Why files are left out. */
const LONG_FILES = 'long files, which run as a bundle';
const SLOW_FILES = 'files that take minutes there';

/** Adds the result of one run to a sum. */
function add(sum: Ran, ran: Ran): void {
  sum.passed += ran.passed;
  sum.failed += ran.failed;
  for (const [reason, count] of ran.leftOut) sum.leftOut.set(reason, (sum.leftOut.get(reason) ?? 0) + count);
  if (ran.failed > 0) sum.output.push(...ran.output);
}

const nothing = (): Ran => ({ passed: 0, failed: 0, leftOut: new Map(), output: [] });

/** Prints one line of the table, and the output of failed tests. */
function printResult(host: Host, artefact: string, ran: Ran, begun: number): void {
  if (ran.passed === 0 && ran.failed === 0) {
    ran.failed++;
    ran.output.push('no test ran');
  }
  failures += ran.failed;
  const count = [...ran.leftOut.values()].reduce((sum, one) => sum + one, 0);
  const reasons = [...ran.leftOut].map(([reason, times]) => `${times} ${reason}`).join('; ');
  const seconds = ((performance.now() - begun) / 1000).toFixed(1);
  console.log(
    `${host.name.padEnd(24)} ${artefact.padEnd(8)} ${ran.passed} passed, ${ran.failed} failed, ` +
      `${count} left out${count > 0 ? ` (${reasons})` : ''}, ${seconds} s`,
  );
  if (ran.failed > 0) console.log(ran.output.join('\n').replace(/^/gm, '    | '));
}

/** Runs all suites of an artefact in a runtime. */
async function portable(host: Host, name: string, artefact: Artefact): Promise<void> {
  const begun = performance.now();
  const sum = nothing();
  for (const [suite, { what, shortened }] of artefact) {
    const reason = name === 'bundle' ? SLOW_FILES : LONG_FILES;
    if (shortened > 0) sum.leftOut.set(reason, (sum.leftOut.get(reason) ?? 0) + shortened);
    if (host instanceof Command && 'files' in what && MAPPED.includes(suite)) {
      sum.leftOut.set(`files of ${suite}: they ask both kernels`, what.files.length);
    } else add(sum, await host.run(what));
  }
  printResult(host, name, sum, begun);
}

/** Each runtime's results for the trace from the real kernel and for the traces of random worlds. */
const results = new Map<string, string>();

async function traces(host: Host, text: string): Promise<void> {
  const { output, failed } = await host.run({ text });
  const line = output.find((one) => one.startsWith(TRACES));
  if (failed > 0 || line === undefined) {
    failures++;
    console.log(`${host.name}: replays nothing: ${output.join('\n')}`);
  } else results.set(host.name, line.slice(TRACES.length));
}

/** Checks that all results are the same and correct; prints a line for each runtime. */
function compare(trace: Uint8Array): void {
  const sha256 = createHash('sha256').update(trace).digest('hex');
  const [expected] = results.values();
  for (const [name, text] of results) {
    const { identical, records, faults, again, worlds, summary } = JSON.parse(text) as TraceResults;
    const right = identical && faults > 0 && again === sha256 && text === expected;
    if (!right) failures++;
    console.log(
      `${name.padEnd(24)} replay   ${right ? 'the same' : 'DIFFERENT'}: ${faults} faults, ${records} records, trace ` +
        `${again.slice(0, 12)}, summary ${summary.slice(0, 12)}, ${SEEDS} worlds ${worlds.slice(0, 12)}`,
    );
  }
}

/** Records a demo on the real kernel; on the simulated kernel if the real one is not available. */
function recording(folder: string): Uint8Array {
  const [file, trace] = [join(folder, 'file'), join(folder, 'trace')];
  writeFileSync(
    file,
    Uint8Array.from({ length: 300_000 }, (_, at) => at >>> 4),
  );
  const said = run(process.execPath, [join(ROOT, 'build/src/cli/main.js'), 'demo', file, '--record', trace]);
  if (said.includes('simulated')) {
    console.log('the trace is of the simulated kernel: there is no real one here');
    if (required) failures++;
  }
  return readFileSync(trace);
}

// ---- the run -----------------------------------------------------------------------------------------------

const folder = mkdtempSync(join(tmpdir(), 'uffd-runtimes-'));
let hosts = new Map<string, Host>();
try {
  hosts = await open(folder);
  const trace = recording(folder);
  const source = await bundled('source', LONG);
  const dist = built();
  const text = await bundle('bundle', traceProgram(trace));
  const left = [...hosts];
  const work = async (): Promise<void> => {
    for (let next = left.shift(); next; next = left.shift()) {
      const [name, host] = next;
      const artefacts = { source, dist, bundle: await bundled('bundle', SLOW[name] ?? []) };
      for (const [artefact, suites] of Object.entries(artefacts)) await portable(host, artefact, suites);
      const begun = performance.now();
      const full = FULL[name];
      if (full) {
        const sum = nothing();
        for (const file of full) add(sum, await host.run({ files: [file] }));
        printResult(host, 'full', sum, begun);
      }
      await traces(host, text);
    }
  };
  await Promise.all(Array.from({ length: AT_A_TIME }, work));
  compare(trace);
} finally {
  for (const host of hosts.values()) await host.close();
  rmSync(folder, { recursive: true, force: true });
}
console.log(failures === 0 ? 'all runtimes agree' : `${failures} failed`);
process.exitCode = failures === 0 ? 0 : 1;
