// `uffd demo`: its options, its help, and how its result is printed.

import { randomInt } from 'node:crypto';
import { type Command, Option } from 'commander';
import { Userfaultfd } from '../../index.js';
import { integer } from '../arguments.js';
import { EXIT, EXIT_HELP } from '../exit.js';
import { interruptible } from '../signals.js';
import { lookOf, renderTable } from '../text.js';
import { createProgress } from './progress.js';
import { type DemoOptions, type Report, reportRows } from './report.js';
import { runDemo } from './run.js';
import { runSimulated } from './simulated.js';

const THREADS_MOST = 256;
/** Pages; 4 GiB of 4 KiB pages. */
const WINDOW_MOST = 2 ** 20;
const SEED_MOST = 2 ** 32 - 1;
const WAITS = ['poll', 'block', 'spin', 'adaptive'] as const;

const HELP = `
How it works:
  Memory of the file's size is registered with a userfaultfd and left empty. The
  threads touch its pages in random order. Each first touch is a page fault; one
  more thread answers it by copying the page from the file. At the end memory
  and file are hashed independently. FILE must fit into memory.

What is counted:
  faults    the page faults that the serving thread was told of
  latency   the time of each touch that slept until its page was filled. With a
            window above 1 most touches find their page there already; those are
            not counted

How the serving thread waits for faults:
  block     sleeps in poll(2)
  poll      sleeps on Node's event loop
  spin      never sleeps: fast, and takes a processor for itself
  adaptive  spins while faults come fast, sleeps otherwise

Where there is no userfaultfd, or it is not allowed, the same runs on a
simulated kernel, with virtual times, and that is said.

With --record everything that crosses between the library and the kernel goes
to FILE: 'uffd replay FILE' runs it again anywhere, 'uffd inspect FILE' looks
at it.

Fields of the JSON object (fills: faults that pages were filled for; the others'
pages had just come with a neighbour's):
  file fileBytes pageSize pages seed threads window wait via userModeOnly kernel
  trace (file records bytes failure) faults fills durationMs faultsPerSecond
  latencyP50Us latencyP99Us memorySha256 fileSha256 equal
${EXIT_HELP}
Examples:
  uffd demo                              the Node binary itself, page by page
  uffd demo --threads 8 --wait adaptive  more load, and a loop that follows it
  uffd demo --window 16 disk.img         16 pages for each fault
  uffd demo --json --seed 1              a run to repeat, for programs to read
  uffd demo --record run.trace           a run to replay and to look at
`;

interface Flags {
  threads: number;
  window: number;
  wait: DemoOptions['wait'];
  seed?: number;
  record?: string;
  json?: boolean;
}

export function addDemo(program: Command): void {
  program
    .command('demo')
    .summary('map a file lazily: every page is brought by a page fault that TypeScript answers')
    .description('Maps FILE lazily: every page is brought by a page fault that TypeScript answers.')
    .argument('[FILE]', 'what to map (default: the Node binary that runs this)')
    .addOption(
      new Option('-t, --threads <N>', `threads that touch pages, 1 to ${THREADS_MOST}`)
        .default(2)
        .argParser(integer(1, THREADS_MOST)),
    )
    .addOption(
      new Option('-w, --window <N>', `pages to fill for each fault, 1 to ${WINDOW_MOST}`)
        .default(1)
        .argParser(integer(1, WINDOW_MOST)),
    )
    .addOption(new Option('--wait <how>', 'how the loop waits for faults').choices(WAITS).default('block'))
    .addOption(
      new Option(
        '-s, --seed <N>',
        `seed of the random order, 0 to ${SEED_MOST} (default: random, and printed)`,
      ).argParser(integer(0, SEED_MOST)),
    )
    .option('-r, --record <FILE>', 'record the run, for uffd replay and uffd inspect')
    .option('--json', 'print one JSON object instead of progress and table')
    .addHelpText('after', HELP)
    .action((file: string | undefined, flags: Flags) => demo(file ?? process.execPath, flags));
}

async function demo(file: string, flags: Flags): Promise<void> {
  const { json = false, seed = randomInt(SEED_MOST + 1), ...rest } = flags;
  const progress = createProgress(json);
  const lack = unavailable();
  if (lack) process.stderr.write(`uffd: no userfaultfd here, so the kernel is simulated: ${lack.message}\n`);
  const run = lack ? runSimulated : runDemo;
  const report = await interruptible((signal) => run({ file, seed, ...rest }, progress, signal));
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
