// The options of `npm run bench --`.

import { Command, InvalidArgumentError, Option } from 'commander';
import {
  type Cell,
  type Chosen,
  combined,
  fewest,
  HUGE_PAGE,
  ORDERS,
  oneByOne,
  SMALL_PAGE,
} from './cells.js';
import { HANDLERS, PLACEMENTS } from './faults.js';
import { PAGER_PARTS } from './pager.js';
import { RECORDED, SERVERS } from './peers.js';
import { STORE_PARTS } from './store.js';

/** Rounds of a run with `--pager` or `--store`. */
const COMPARED_ROUNDS = 5;
/** The sizes of a run with `--quick`. */
const QUICK = { rounds: 3, pages: 4096 };
const SIZES: Record<string, number> = { '4K': SMALL_PAGE, '2M': HUGE_PAGE };

export interface Options extends Chosen {
  rounds: number;
  pages: number;
  handler: readonly string[];
  server: readonly string[];
  core: boolean;
  traces: boolean;
  steady: boolean;
  serve: boolean;
  faults: boolean;
  growth: boolean;
  allCells?: boolean;
  withBalloon?: boolean;
  withBusy?: boolean;
  quick?: boolean;
  operator?: boolean;
  scale?: boolean;
  pager?: true | readonly string[];
  store?: true | readonly string[];
  plots?: string;
  json?: string | true;
  markdown?: boolean;
}

function upTo(most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (Number.isInteger(value) && value >= 1 && value <= most) return value;
    throw new InvalidArgumentError(`It must be an integer from 1 to ${most}.`);
  };
}

/** Parses an option that may be given several times. */
function several(most: number): (text: string, before?: readonly number[]) => readonly number[] {
  return (text, before = []) => [...before, upTo(most)(text)];
}

function size(text: string, before: readonly number[] = []): readonly number[] {
  const bytes = SIZES[text];
  if (bytes === undefined) throw new InvalidArgumentError(`It must be ${Object.keys(SIZES).join(' or ')}.`);
  return [...before, bytes];
}

export function parse(): Options {
  const program = new Command('npm run bench --')
    .description(
      'Page faults of one thread, answered by C and by userfaultfd in turn; guests that are served by userfaultfd and ' +
        'by handlers in C, Rust and Go; then the core alone.',
    )
    .option('--rounds <n>', 'rounds of each handler', upTo(1000), 7)
    .option('--pages <n>', 'pages a round', upTo(2 ** 18), 16_384)
    .addOption(new Option('--placement <names...>', 'only these placements').choices(PLACEMENTS))
    .addOption(
      new Option('--handler <names...>', 'in one process: only these beside C')
        .choices(HANDLERS)
        .default(HANDLERS, 'all'),
    )
    .addOption(
      new Option('--server <names...>', 'guests: only these beside C')
        .choices([...SERVERS, RECORDED])
        .default(SERVERS, 'all'),
    )
    .option('--threads <n...>', 'guests: these numbers of threads', several(1024))
    .addOption(new Option('--order <names...>', 'guests: pages in these orders').choices(ORDERS))
    .option('--window <n...>', 'guests: so many pages filled for each fault', several(2 ** 16))
    .option('--page-size <size...>', 'guests: pages of 4K, 2M', size)
    .option('--with-balloon', 'guests: with a balloon, and without')
    .option('--with-busy', 'guests: on a machine that is kept busy, and on a quiet one')
    .option('--all-cells', 'guests: every combination of all of these that is not named')
    .option('--no-core', 'leave out the core alone')
    .option('--no-traces', 'leave out traces and the simulated kernel')
    .option('--no-steady', 'leave out a loop over a million faults, and installing ahead')
    .option('--no-serve', 'leave out guests that are served')
    .option('--no-faults', 'leave out the faults of one thread in this process')
    .option('--no-growth', 'leave out how figures grow with pages, ranges, threads and userfaultfds')
    .option(
      '--operator',
      'only what the operator of `uffd serve` feels: start, first page, first guest, balloon, crowds, memory; and garbage, ' +
        'replay, recording',
    )
    .option('--scale', 'only how one server grows: guests at once and in a row, regions, sparse memory')
    .addOption(
      new Option('--pager [parts...]', 'only pagers: all of it, or these parts').choices(PAGER_PARTS),
    )
    .addOption(
      new Option('--store [parts...]', 'only snapshots in a store: all of it, or these parts').choices(
        STORE_PARTS,
      ),
    )
    .option('--quick', `${QUICK.rounds} rounds of ${QUICK.pages.toLocaleString('en')} pages, and few cells`)
    .option('--plots <folder>', 'draw how figures grow: as SVG, into a folder')
    .option('--json [file]', 'every round as JSON, into a file or instead of the tables')
    .option('--markdown', 'the tables of docs/benchmarks.md instead of those for a terminal')
    .showHelpAfterError();
  const options = program.parse().opts<Options>();
  const told = (name: keyof typeof QUICK): boolean => program.getOptionValueSource(name) !== 'default';
  if (!options.quick && (options.pager || options.store) && !told('rounds'))
    return { ...options, rounds: COMPARED_ROUNDS };
  if (!options.quick) return options;
  return {
    ...options,
    rounds: told('rounds') ? options.rounds : QUICK.rounds,
    pages: told('pages') ? options.pages : QUICK.pages,
  };
}

/** The cells in which guests are served. */
export function cellsOf(options: Options): Cell[] {
  const { placement, threads, order, window, pageSize, allCells = false, quick } = options;
  const balloon = options.withBalloon ? [false, true] : undefined;
  const busy = options.withBusy ? [false, true] : undefined;
  const named = { threads, order, window, pageSize, balloon, busy };
  if (allCells || Object.values(named).some((levels) => levels !== undefined)) {
    return combined({ placement, ...named }, allCells);
  }
  const cells = quick ? fewest() : oneByOne();
  return placement ? cells.filter((cell) => placement.includes(cell.placement)) : cells;
}
