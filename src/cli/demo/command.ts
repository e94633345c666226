// `uffd demo`: its options, its help, and how its result is printed.

import { randomInt } from 'node:crypto';
import { type Command, Option } from 'commander';
import { Userfaultfd, type Window } from '../../index.js';
import { integer, PLACEMENT_HELP, placementOption, WAITS, WINDOW_MOST, window } from '../arguments.js';
import { EXIT, EXIT_HELP } from '../exit.js';
import { interruptible } from '../signals.js';
import { lookOf, renderTable } from '../text.js';
import { createProgress } from './progress.js';
import { type DemoOptions, type Report, reportRows } from './report.js';
import { runDemo } from './run.js';
import { runSimulated } from './simulated.js';

const THREADS_MOST = 256;
const SEED_MOST = 2 ** 32 - 1;

const HELP = `
How it works:
  A second process plays a microVM's monitor: it makes memory of the file's
  size, registers it with a userfaultfd, and hands it over to the server of
  'uffd serve', which runs here. Its threads touch every page once, in random
  order, and compare each with the file; every first touch is a page fault that
  is answered here, from the file. That is recorded. Then a second guest does
  the same, and what the first one touched is installed ahead while it runs.
  FILE must fit into memory.

What is counted, in each of the two runs:
  faults       the page faults that the serving thread has answered
  verified     the pages that held, when they were touched, what the file has
  first touch  the time from the hand-over until the first touch was over
  all touched  the time from the hand-over until all pages were touched, and
               compared
  latency      the time of a touch. With a window or a prefetch most touches
               find their page there already

How the serving thread waits for faults:
  block     sleeps in poll(2)
  poll      sleeps on Node's event loop
  spin      never sleeps: fast, and takes a processor for itself
  adaptive  spins while faults come fast, sleeps otherwise

Where the serving thread runs (a guest's threads are never moved):
${PLACEMENT_HELP}

Where there is no userfaultfd, or it is not allowed, the same answers are given
on a simulated kernel, once, with virtual times, and that is said.

With --record everything that crosses between the library and the kernel in the
first run goes to FILE: 'uffd replay FILE' runs it again anywhere, 'uffd inspect
FILE' looks at it.

Fields of the JSON object (prefetched: the second run, or null):
  file fileBytes pageSize pages seed threads window wait placement kernel
  equal wrong
  trace (file records bytes failure) faults verified firstTouchMs durationMs
  faultsPerSecond latencyP50Us latencyP99Us
  prefetched (faults verified firstTouchMs durationMs faultsPerSecond
  latencyP50Us latencyP99Us)
${EXIT_HELP}
Examples:
  uffd demo                              the Node binary as a guest's memory
  uffd demo --threads 8 --wait block     more load, and a loop that sleeps
  uffd demo --window 16 snapshot.mem     16 pages for each fault
  uffd demo --json --seed 1              a run to repeat, for programs to read
  uffd demo --record run.trace           a run to replay and to look at
`;

interface Flags {
  threads: number;
  window: Window;
  wait?: DemoOptions['wait'];
  placement: DemoOptions['placement'];
  seed?: number;
  record?: string;
  json?: boolean;
}

export function addDemo(program: Command): void {
  program
    .command('demo')
    .summary('serve a guest in a second process, and compare every page that it gets')
    .description('Serves a guest in a second process, and compares every page that it gets.')
    .argument('[FILE]', "the guest's memory (default: the Node binary that runs this)")
    .addOption(
      new Option('-t, --threads <N>', `threads that touch pages, 1 to ${THREADS_MOST}`)
        .default(2)
        .argParser(integer(1, THREADS_MOST)),
    )
    .addOption(
      new Option('-w, --window <N>', `pages for each fault, 1 to ${WINDOW_MOST}, or 'adaptive'`)
        .default(1)
        .argParser(window),
    )
    .addOption(
      new Option(
        '--wait <how>',
        'how the serving thread waits for faults (default: adaptive; with --record: block)',
      ).choices(WAITS),
    )
    .addOption(placementOption())
    .addOption(
      new Option(
        '-s, --seed <N>',
        `seed of the random order, 0 to ${SEED_MOST} (default: random, and printed)`,
      ).argParser(integer(0, SEED_MOST)),
    )
    .option('-r, --record <FILE>', 'record the first run, for uffd replay and uffd inspect')
    .option('--json', 'print one JSON object instead of progress and table')
    .addHelpText('after', HELP)
    .action((file: string | undefined, flags: Flags) => demo(file ?? process.execPath, flags));
}

async function demo(file: string, flags: Flags): Promise<void> {
  const { json = false, seed = randomInt(SEED_MOST + 1), ...rest } = flags;
  const { wait = rest.record === undefined ? 'adaptive' : 'block' } = rest;
  const progress = createProgress(json);
  const lack = unavailable();
  if (lack) process.stderr.write(`uffd: no userfaultfd here, so the kernel is simulated: ${lack.message}\n`);
  const run = lack ? runSimulated : runDemo;
  const report = await interruptible((signal) => run({ file, seed, ...rest, wait }, progress, signal));
  process.stdout.write(json ? `${JSON.stringify(report)}\n` : `${asTable(report)}\n`);
  if (!report.equal || report.trace?.failure) process.exitCode = EXIT.failed;
}

/** Why the real kernel cannot be had. */
function unavailable(): Error | undefined {
  try {
    Userfaultfd.open().close();
    return undefined;
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException;
    if (['ERR_UFFD_UNSUPPORTED', 'EPERM', 'EACCES', 'ENOSYS'].includes(code)) return error as Error;
    throw error;
  }
}

/** Framed on a terminal, plain lines elsewhere. */
function asTable(report: Report): string {
  const { columns, colors } = lookOf(process.stdout);
  return renderTable(reportRows(report, { good: colors.green, bad: colors.red }), columns);
}
