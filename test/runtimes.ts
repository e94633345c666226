// `npm run test:runtimes`: what is promised to run anywhere does. The portable suites run in this Node, Deno, Bun and a
// headless Chromium, from the sources, from what was built, and as one bundle; a trace that was recorded on the real
// kernel is replayed in each, and comes to the same; and on Deno and Bun the full library answers real faults. Deno and
// Bun come from npm, into a folder that is gone afterwards; Chromium is the system's.
//
//   node dist/test/runtimes.js [WORD…]     only runtimes whose name contains one of the words
//   UFFD_REQUIRE_KERNEL=1                  a runtime that is missing, or a test that skips, has failed

import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openChromium } from './chromium.js';
import { install, run } from './install.js';
import { bundle, ROOT, running, telling } from './runtimes/bundles.js';
import { FULL, LONG, MAPPED, SLOW, SUITES } from './runtimes/files.js';
import { Chromium, Command, type Host, type Ran, type What } from './runtimes/hosts.js';
import { SEEDS, type Told, TRACES } from './runtimes/traces.js';

/** Runtimes that are tried at a time. */
const AT_A_TIME = 2;
const words = process.argv.slice(2).map((word) => word.toLowerCase());
const required = Boolean(process.env.UFFD_REQUIRE_KERNEL);
let failures = 0;

// ---- the runtimes ------------------------------------------------------------------------------------------

/** How each runtime is had, by its name. Node comes first: what others come to is compared with it. */
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

/** Those that can be had here; says of the others why not. */
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

// ---- what is run -------------------------------------------------------------------------------------------

/** The suites of an artefact, with the files that are left out there. */
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

/** Adds what came of one run to what came of others. */
function add(sum: Ran, ran: Ran): void {
  sum.passed += ran.passed;
  sum.failed += ran.failed;
  for (const [reason, count] of ran.leftOut) sum.leftOut.set(reason, (sum.leftOut.get(reason) ?? 0) + count);
  if (ran.failed > 0) sum.output.push(...ran.output);
}

const nothing = (): Ran => ({ passed: 0, failed: 0, leftOut: new Map(), output: [] });

/** One line of the table, and what failed tests have printed. */
function tell(host: Host, artefact: string, ran: Ran, begun: number): void {
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

/** All suites of an artefact in a runtime. */
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
  tell(host, name, sum, begun);
}

/** What each runtime makes of a trace from the real kernel, and of the traces of random worlds. */
const told = new Map<string, string>();

async function traces(host: Host, text: string): Promise<void> {
  const { output, failed } = await host.run({ text });
  const line = output.find((one) => one.startsWith(TRACES));
  if (failed > 0 || line === undefined) {
    failures++;
    console.log(`${host.name}: replays nothing: ${output.join('\n')}`);
  } else told.set(host.name, line.slice(TRACES.length));
}

/** What all came to is the same, and what it has to be; a line for each. */
function compare(trace: Uint8Array): void {
  const sha256 = createHash('sha256').update(trace).digest('hex');
  const [expected] = told.values();
  for (const [name, text] of told) {
    const { identical, records, faults, again, worlds, summary } = JSON.parse(text) as Told;
    const right = identical && faults > 0 && again === sha256 && text === expected;
    if (!right) failures++;
    console.log(
      `${name.padEnd(24)} replay   ${right ? 'the same' : 'DIFFERENT'}: ${faults} faults, ${records} records, trace ` +
        `${again.slice(0, 12)}, summary ${summary.slice(0, 12)}, ${SEEDS} worlds ${worlds.slice(0, 12)}`,
    );
  }
}

/** The trace of a demo on the real kernel; on a simulated one where there is none. */
function recording(folder: string): Uint8Array {
  const [file, trace] = [join(folder, 'file'), join(folder, 'trace')];
  writeFileSync(
    file,
    Uint8Array.from({ length: 300_000 }, (_, at) => at >>> 4),
  );
  const said = run(process.execPath, [join(ROOT, 'dist/src/cli/main.js'), 'demo', file, '--record', trace]);
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
  const text = await bundle('bundle', telling(trace));
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
        tell(host, 'full', sum, begun);
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
