// `npm test`: runs every test file in a process of its own, on the release core and on the debug core, and
// ends with `N passed, N failed, N skipped`. It fails where anything failed, and where nothing ran.
//
// A file named *.once.test.ts does not use the core: it runs once, not on each.
//
// Two files run at a time, of which one at most shares what the machine has one of (huge pages, the terminal, the load
// that a race needs).
//
//   node dist/test/run.js [WORD…]     only files whose path contains one of the words
//   UFFD_CORE=release|debug           one core only
//   UFFD_REQUIRE_KERNEL=1             a test that skips has failed
//   UFFD_SEED=N                       the seed of random tests
//   UFFD_PLACEMENT=none|follow|awake  where the threads run that serve guests

import { spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import type { Report } from './harness.js';

const here = dirname(fileURLToPath(import.meta.url));
const CORES = { release: [], debug: ['--conditions=uffd-debug'] } as const;
type CoreName = keyof typeof CORES;
/** Until the next test of a file begins, or its process ends, in milliseconds. */
const BETWEEN_MS = 60_000;

const totals = { passed: 0, failed: 0, skipped: 0 };

const words = process.argv.slice(2);
const files = readdirSync(here, { recursive: true, encoding: 'utf8' })
  .filter(
    (file) => file.endsWith('.test.js') && (words.length === 0 || words.some((word) => file.includes(word))),
  )
  .sort();
const only = process.env.UFFD_CORE as CoreName | undefined;
const cores = only ? [only] : (Object.keys(CORES) as CoreName[]);

/** Files that share nothing but the processors; huge pages are asked for one test at a time. */
const APART = /^(core|report|serve|sim|testing|trace)\/|^[^/]+$/;
const runs = cores.flatMap((core) =>
  files
    .filter((file) => core === cores[0] || !file.endsWith('.once.test.js'))
    .map((file) => ({ file, core, apart: APART.test(file) })),
);
const apart = runs.filter((run) => run.apart);
const others = runs.filter((run) => !run.apart);
await Promise.all([runAll(apart), runAll(others).then(() => runAll(apart))]);

const ran = totals.passed + totals.failed;
if (ran === 0) console.log('no test ran');
console.log(`${totals.passed} passed, ${totals.failed} failed, ${totals.skipped} skipped`);
process.exitCode = ran === 0 || totals.failed > 0 ? 1 : 0;

/** Runs what is left of a list, one file after the other. */
async function runAll(left: typeof runs): Promise<void> {
  for (let run = left.shift(); run; run = left.shift()) await runFile(run.file, run.core);
}

/** Runs one file; counts and tells what became of its tests. */
async function runFile(file: string, core: CoreName): Promise<void> {
  const begun = performance.now();
  const child = spawn(process.execPath, ['--expose-gc', ...CORES[core], join(here, file)], {
    stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
    // A group of its own, so that what it started goes with it.
    detached: true,
    env: { ...process.env, UFFD_REPORT_FD: '3', UFFD_CORE: core },
  });
  const count = { passed: 0, failed: 0, skipped: 0 };
  const notes: string[] = [];
  let output = '';
  for (const stream of [child.stdout, child.stderr] as Readable[]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text;
    });
  }
  let current: string | undefined;
  let timer: NodeJS.Timeout | undefined;
  const limit = (what: string, ms: number): void => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      notes.push(`${what} after ${ms} ms`, ...threads(child.pid as number));
      process.kill(-(child.pid as number), 'SIGKILL');
    }, ms);
  };
  createInterface({ input: child.stdio[3] as Readable }).on('line', (line) => {
    const report = JSON.parse(line) as Report;
    if (report.event === 'begin') {
      current = report.name;
      limit(`${report.name}: still running`, report.limitMs);
      return;
    }
    // What a test has left behind may keep the process alive for ever.
    limit(`${report.name}: neither ended nor followed by another`, BETWEEN_MS);
    current = undefined;
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
    count.failed++;
    notes.push('the file ran no test');
  }
  const name = relative(here, join(here, file)).replace(/\.js$/, '.ts');
  const seconds = ((performance.now() - begun) / 1000).toFixed(1);
  console.log(
    `${count.failed ? 'FAILED' : 'ok    '} ${core.padEnd(7)} ${name}  ${count.passed} passed, ${seconds} s`,
  );
  for (const note of notes) console.log(`       ${note}`);
  if (count.failed) console.log(output.replace(/^/gm, '       | '));
  for (const key of ['passed', 'failed', 'skipped'] as const) totals[key] += count[key];
}

/** Which thread of a process waits for what, as the kernel tells it. */
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
