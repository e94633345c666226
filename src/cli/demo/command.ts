// `uffd demo`: its options, its help, and how its result is printed.

import { randomInt } from 'node:crypto';
import { type Command, Option } from 'commander';
import { Userfaultfd, type Window } from '../../index.js';
import { byteCount, integer, PLACEMENT_HELP, placementOption, WAITS, windowOption } from '../arguments.js';
import { EXIT, EXIT_HELP, Usage } from '../exit.js';
import { interruptible } from '../signals.js';
import { renderTable } from '../table.js';
import { outputStyleOf } from '../text.js';
import { runPagerDemo } from './pager.js';
import { pagerRows } from './pager-report.js';
import { DemoProgress } from './progress.js';
import { type DemoOptions, reportRows } from './report.js';
import { runDemo } from './run.js';
import { runSimulated } from './simulated.js';

const THREADS_MOST = 256;
const SEED_MOST = 2 ** 32 - 1;
const MIB = 2 ** 20;
/** Bytes that may be resident with --pager. */
const RESIDENT = 64 * MIB;

const HELP = `
How it works:
  A second process plays a microVM's monitor: it makes memory of the file's
  size, registers it with a userfaultfd, and hands it over to the server of
  'uffd serve', which runs here. Its threads touch every page once, in random
  order, and compare each with the file. Each first touch is a page fault that
  is answered here, from the file. The run is recorded. Then a second guest does
  the same, while the pages of the first run are installed ahead. FILE must fit
  into memory.

What is counted, in each of the two runs:
  faults       page faults that the serving thread has answered
  verified     pages that matched the file when they were touched
  first touch  time from the hand-off until the first touch was done
  all touched  time from the hand-off until all pages were touched and compared
  latency      time of a touch. With a window or a prefetch most touches find
               their page installed

How the serving thread waits for faults:
  block     sleeps in poll(2)
  poll      sleeps on Node's event loop
  spin      never sleeps: fast, but uses a whole processor
  adaptive  spins while faults come fast, and sleeps otherwise

Where the serving thread runs (a guest's threads are never moved):
${PLACEMENT_HELP}

If userfaultfd is missing or not allowed, the demo makes one run on a simulated
kernel, with virtual times, and says so.

--record saves everything that crosses between the library and the kernel in the
first run. 'uffd replay FILE' runs it again anywhere, and 'uffd inspect FILE'
shows it.

With --pager:
  The file or URL becomes memory of which at most --resident bytes are in memory
  at a time. Threads of this process read it, first in pieces at random, then
  from the start to the end. A touch of bytes that are not there is a page fault
  that the pager answers, and what was not used for long is evicted.
  Each byte is compared with the same byte as read(2) gives it. Those of a URL
  are compared with a second download, which uses no proxy, except if Node does.
  faults       page faults that the pager has answered
  hits         the part of them whose bytes were in memory: touched again after
               the pager had tried if they were still used, or read ahead
  fetched      bytes read from the file or URL; 'read ahead' is a part of it
  of it used   the part of the read-ahead that was touched later
  There is no simulation. If the file changes under way, this process ends with
  SIGBUS, as any process with a pager.

Fields of the JSON object with --pager:
  source resident threads seed bytes blockSize userModeOnly residentMostBytes
  failures comparedWith equal wrong wrongCount pieceBytes
  random, inOrder (readBytes durationMs faults hits fetchedBytes aheadBytes
  aheadUsedBytes evictedBytes)

Fields of the JSON object without it (prefetched: the second run, or null):
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
  uffd demo --json --seed 1              a repeatable run, as JSON
  uffd demo --record run.trace           a run to replay and inspect
  uffd demo --pager big.bin --resident 256M
                                         a file that does not fit
  uffd demo --pager https://data.example/model.bin
                                         a remote file as memory
`;

interface Flags {
  threads: number;
  window: Window;
  wait?: DemoOptions['wait'];
  placement: DemoOptions['placement'];
  seed?: number;
  record?: string;
  pager?: string;
  resident?: number;
  json?: boolean;
}

export function addDemo(program: Command): void {
  program
    .command('demo')
    .summary('serve a guest in a second process, and compare every page that it gets')
    .description('Serves a guest in a second process, and compares every page that it gets.')
    .argument('[FILE]', "the guest's memory (default: the Node binary that runs this)")
    .option(
      '-t, --threads <N>',
      `threads that touch pages, 1 to ${THREADS_MOST}`,
      integer(1, THREADS_MOST),
      2,
    )
    .addOption(windowOption())
    .addOption(
      new Option(
        '--wait <how>',
        'how the serving thread waits for faults (default: adaptive; with --record: block)',
      ).choices(WAITS),
    )
    .addOption(placementOption())
    .option(
      '-s, --seed <N>',
      `seed of the random order, 0 to ${SEED_MOST} (default: random, and printed)`,
      integer(0, SEED_MOST),
    )
    .option('-r, --record <FILE>', 'record the first run, for uffd replay and uffd inspect')
    .addOption(
      new Option('--pager <URL|FILE>', 'demonstrate the pager: read this through little memory').conflicts([
        'window',
        'wait',
        'placement',
        'record',
      ]),
    )
    .option(
      '--resident <SIZE>',
      'with --pager: bytes in memory at most, like 256M (default: 64M)',
      byteCount(MIB),
    )
    .option('--json', 'print one JSON object instead of progress and table')
    .addHelpText('after', HELP)
    .action((file: string | undefined, flags: Flags) => {
      if (flags.pager !== undefined) return pagerDemo(file, flags.pager, flags);
      if (flags.resident !== undefined)
        throw new Usage("option '--resident <SIZE>' needs '--pager <URL|FILE>'");
      return demo(file ?? process.execPath, flags);
    });
}

async function pagerDemo(file: string | undefined, source: string, flags: Flags): Promise<void> {
  if (file !== undefined) throw new Usage("with '--pager <URL|FILE>' there is no argument FILE");
  const { json = false, seed = randomInt(SEED_MOST + 1), resident = RESIDENT, threads } = flags;
  const report = await interruptible((signal) =>
    runPagerDemo({ source, resident, threads, seed }, json, signal),
  );
  const look = outputStyleOf(process.stdout);
  const text = json ? JSON.stringify(report) : renderTable(pagerRows(report, look), look.columns);
  process.stdout.write(`${text}\n`);
  if (!report.equal) process.exitCode = EXIT.failed;
}

async function demo(file: string, flags: Flags): Promise<void> {
  const { json = false, seed = randomInt(SEED_MOST + 1), ...rest } = flags;
  const { wait = rest.record === undefined ? 'adaptive' : 'block' } = rest;
  const progress = new DemoProgress(json);
  const lack = unavailable();
  if (lack) process.stderr.write(`uffd: no userfaultfd here, so the kernel is simulated: ${lack.message}\n`);
  const run = lack ? runSimulated : runDemo;
  const report = await interruptible((signal) => run({ file, seed, ...rest, wait }, progress, signal));
  const look = outputStyleOf(process.stdout);
  const text = json ? JSON.stringify(report) : renderTable(reportRows(report, look), look.columns);
  process.stdout.write(`${text}\n`);
  if (!report.equal || report.trace?.failure) process.exitCode = EXIT.failed;
}

/** Why the real kernel cannot be used. */
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
