// `npm test`: runs every test file in a process of its own, on the release core and on the debug core, and ends with
// `N passed, N failed, N skipped`. It fails if any test failed, or if no test ran.
//
// A file named *.once.test.ts runs on the release core alone: it does not use the core, or only as other files do.
//
// Three files run at a time, because most of them sometimes wait for a process to start or end. At most one of the
// three has races that need the processors for themselves. Files that change a setting of the system run alone.
//
// In a run of all files, a file that fails runs once more, by itself, when all others have ended: the second result
// counts, and the end of the output lists such files. A failure that does not repeat has been caused by other processes
// on the machine, or by a race, and is to be looked into.
//
//   node build/test/run.js [WORD…]    only files whose path contains one of the words
//   --grep TEXT                       only tests whose name (`file: title`) contains the text
//   --bail                            run no further test or file after a failure
//   UFFD_CORE=release|debug           one core only
//   UFFD_REQUIRE_KERNEL=1             a skipped test counts as failed
//   UFFD_SEED=N|random                the seed of random tests; default: 1
//   UFFD_PLACEMENT=none|follow|awake  placement of the threads that serve guests

import { spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import type { Report } from './support/harness.js';

const here = dirname(fileURLToPath(import.meta.url));
const CORES = { release: [], debug: ['--conditions=uffd-debug'] } as const;
type CoreName = keyof typeof CORES;
type Run = { file: string; core: CoreName };
type Count = Record<'passed' | 'failed' | 'skipped', number>;
/** Time limit from the end of a test to the next test of the file, or to the end of its process, in milliseconds. */
const BETWEEN_MS = 60_000;

const begunAll = performance.now();
const totals: Count = { passed: 0, failed: 0, skipped: 0 };
/** The files that have failed, and their results. */
const failed: { run: Run; count: Count }[] = [];
/** Most files that run again: if more fail, it is no accident. */
const REPEATED_MOST = 5;
/** The files that have failed beside others, and passed alone. */
const unrepeated: string[] = [];
/** The duration of each test in seconds, and its name. */
const times: [seconds: number, test: string][] = [];
/** The number of slowest tests to list at the end. */
const SLOWEST = 20;

const { values: options, positionals: words } = parseArgs({
  allowPositionals: true,
  options: { grep: { type: 'string' }, bail: { type: 'boolean' } },
});
const files = readdirSync(here, { recursive: true, encoding: 'utf8' })
  .filter(
    (file) => file.endsWith('.test.js') && (words.length === 0 || words.some((word) => file.includes(word))),
  )
  .sort();
/**
 * Files that change a setting of the system on which other tests depend. They run after all others, one at a time.
 */
const ALONE = /^pager\/pager-huge-shmem\./;
const only = process.env.UFFD_CORE as CoreName | undefined;
const cores = only ? [only] : (Object.keys(CORES) as CoreName[]);

/** Files with races, timings or placements. (A lock lets only one test at a time use huge pages.) */
const RACES = /^(dirty|runtimes|scheduling|uffd)\//;
const runs: Run[] = cores.flatMap((core) =>
  files
    .filter((file) => core === cores[0] || !file.endsWith('.once.test.js'))
    .map((file) => ({ file, core })),
);
const alone = runs.filter(({ file }) => ALONE.test(file));
const races = runs.filter(({ file }) => RACES.test(file));
const others = runs.filter(({ file }) => !RACES.test(file) && !ALONE.test(file));
await Promise.all([runAll(others), runAll(others), runAll(races).then(() => runAll(others))]);
await runAll(alone);
const repeated = words.length === 0 && options.grep === undefined && !options.bail ? failed.splice(0) : [];
if (repeated.length > 0 && repeated.length <= REPEATED_MOST) {
  console.log('what has failed runs again, alone:');
  for (const run of repeated) await runAgain(run);
}

const slowest = times.sort(([a], [b]) => b - a).slice(0, SLOWEST);
if (slowest.length === SLOWEST) {
  console.log('the slowest tests:');
  for (const [seconds, test] of slowest) console.log(`${seconds.toFixed(1).padStart(8)} s  ${test}`);
}
const ran = totals.passed + totals.failed;
if (ran === 0) console.log('no test ran');
for (const run of unrepeated) console.log(`FAILED beside other files, and passed alone: ${run}`);
console.log(`in ${secondsSince(begunAll)} s`);
console.log(`${totals.passed} passed, ${totals.failed} failed, ${totals.skipped} skipped`);
process.exitCode = ran === 0 || totals.failed > 0 ? 1 : 0;

/** Runs the remaining files of a list, one after the other. */
async function runAll(left: typeof runs): Promise<void> {
  for (let run = left.shift(); run; run = left.shift()) {
    if (options.bail && totals.failed > 0) return;
    const count = await runFile(run);
    add(count, 1);
    if (count.failed > 0) failed.push({ run, count });
  }
}

/** Runs a file again that has failed. */
async function runAgain({ run, count }: (typeof failed)[number]): Promise<void> {
  const again = await runFile(run);
  add(count, -1);
  add(again, 1);
  if (again.failed === 0) unrepeated.push(`${run.core} ${run.file.replace(/\.js$/, '.ts')}`);
}

function add(count: Count, sign: 1 | -1): void {
  for (const key of ['passed', 'failed', 'skipped'] as const) totals[key] += sign * count[key];
}

/** Runs one file; prints the results of its tests. */
async function runFile({ file, core }: Run): Promise<Count> {
  const begun = performance.now();
  const child = spawn(process.execPath, ['--expose-gc', ...CORES[core], join(here, file)], {
    stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
    // A process group of its own, so that the programs that it started are killed with it.
    detached: true,
    env: {
      ...{ ...process.env, UFFD_REPORT_FD: '3', UFFD_CORE: core, UFFD_GREP: options.grep },
      UFFD_BAIL: options.bail ? '1' : undefined,
    },
  });
  const count: Count = { passed: 0, failed: 0, skipped: 0 };
  const notes: string[] = [];
  let output = '';
  for (const stream of [child.stdout, child.stderr] as Readable[]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text;
    });
  }
  let current: string | undefined;
  let begunTest = 0;
  let timer: NodeJS.Timeout | undefined;
  const limit = (what: string, ms: number): void => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      notes.push(`${what} after ${ms} ms`, ...threads(child.pid as number));
      try {
        process.kill(-(child.pid as number), 'SIGKILL');
      } catch {
        // All its processes have ended: only their output is still being read.
      }
    }, ms);
  };
  createInterface({ input: child.stdio[3] as Readable }).on('line', (line) => {
    const report = JSON.parse(line) as Report;
    if (report.event === 'begin') {
      current = report.name;
      begunTest = performance.now();
      limit(`${report.name}: still running`, report.limitMs);
      return;
    }
    // A leaked resource may keep the process alive forever.
    limit(`${report.name}: neither ended nor followed by another`, BETWEEN_MS);
    current = undefined;
    times.push([(performance.now() - begunTest) / 1000, `${core} ${report.name}`]);
    count[report.event]++;
    if (report.event === 'skipped') notes.push(`skipped: ${report.name}: ${report.reason}`);
  });
  const [code, signal] = await new Promise<[number | null, string | null]>((resolve) => {
    child.on('close', (...ended) => resolve(ended));
  });
  clearTimeout(timer);
  if (current !== undefined) {
    count.failed++;
    notes.push(`${current}: the process ended in the middle of it (${signal ?? `exit code ${code}`})`);
  } else if (code !== 0 && count.failed === 0) {
    count.failed++;
    notes.push(`the process ended with ${signal ?? `exit code ${code}`}`);
  }
  if (count.passed + count.failed + count.skipped === 0) {
    if (options.grep !== undefined) return count;
    count.failed++;
    notes.push('the file ran no test');
  }
  const name = relative(here, join(here, file)).replace(/\.js$/, '.ts');
  console.log(
    `${count.failed ? 'FAILED' : 'ok    '} ${core.padEnd(7)} ${name}  ${count.passed} passed, ${secondsSince(begun)} s`,
  );
  for (const note of notes) console.log(`       ${note}`);
  if (count.failed) console.log(output.replace(/^/gm, '       | '));
  return count;
}

/** Seconds since a point in time, with one decimal. */
function secondsSince(begun: number): string {
  return ((performance.now() - begun) / 1000).toFixed(1);
}

/** The state of each thread of a process and where it waits, from /proc. */
function threads(pid: number): string[] {
  try {
    return readdirSync(`/proc/${pid}/task`).map((tid) => {
      const read = (name: string): string => {
        try {
          return readFileSync(`/proc/${pid}/task/${tid}/${name}`, 'utf8').trim();
        } catch {
          return '?';
        }
      };
      const state = /^State:\s*(.*)$/m.exec(read('status'))?.[1] ?? '?';
      return `  thread ${tid} ${read('comm')}: ${state}, waits in ${read('wchan')}, system call ${read('syscall').split(' ')[0]}`;
    });
  } catch {
    return ['  its threads cannot be listed here'];
  }
}
