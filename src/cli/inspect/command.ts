// `uffd inspect`: its options and its help.

import { type Command, InvalidArgumentError, Option } from 'commander';
import { perfettoJson, summarize } from '../../trace/index.js';
import { integer } from '../arguments.js';
import { EXIT } from '../exit.js';
import { renderTable } from '../table.js';
import { outputStyleOf, printable } from '../text.js';
import { checkOther, openTrace, tellDamage, writeText } from '../traces.js';
import { type Filter, list } from './list.js';
import { KINDS } from './match.js';
import { summaryRows } from './report.js';

const HELP = `
What it shows:
  latency     from the read of a fault to the call that woke the threads at its
              page, so the handler's own time; percentiles are within 4 %
  EAGAINs     calls that failed because a mapping change had to be read first
  re-offers   deferred faults, which were offered again
  not let go  faults that were read, but that no call of this userfaultfd
              resolved

Kinds for --kind (several with commas):
${KINDS.lines}

Fields of the JSON object (damage: only if the trace is not whole):
  file how features pageSize about contents durationMs bytes blocks records
  faults faultsByKind threads pages changes (remove unmap remap fork) ranges
  (start bytes modes) rangesRegistered latencyUs (count p50 p90 p99 most)
  unresolved eagains reoffers calls damage
With --list a JSON object on each line:
  index timeUs name text messages

Exit codes:
  0  success
  1  the trace is damaged, or cannot be read
  2  an option or an argument is wrong

Examples:
  uffd inspect run.trace                           what happened?
  uffd inspect run.trace --list --limit 50         the first calls
  uffd inspect run.trace --kind fault --from 100   faults after 0.1 s
  uffd inspect run.trace --page 0x7f12c0a41000     all calls for a page
  uffd inspect run.trace --perfetto run.json       for https://ui.perfetto.dev
`;

interface Flags {
  list?: boolean;
  json?: boolean;
  perfetto?: string;
  kind?: string[];
  page?: bigint;
  range?: [bigint, bigint];
  from?: number;
  to?: number;
  limit?: number;
}

export function addInspect(program: Command): void {
  program
    .command('inspect')
    .summary('show what a recorded trace holds: faults, pages, latencies, or call by call')
    .description('Shows what a recorded trace holds: faults, pages, latencies, or call by call.')
    .argument('<FILE>', 'the trace, from uffd demo --record or a TraceWriter')
    .option('-l, --list', 'print a line for each call; implied by the filters below')
    .option('--kind <names>', 'only calls of these kinds', kinds)
    .addOption(
      new Option('--page <address>', 'only calls for the page that holds this address')
        .argParser(address)
        .conflicts('range'),
    )
    .option('--range <from-to>', 'only calls for these addresses', range)
    .option('--from <ms>', 'only calls from this time on', milliseconds)
    .option('--to <ms>', 'only calls up to this time', milliseconds)
    .option('-n, --limit <N>', 'at most this many lines', integer(0, 1e15 - 1))
    .option('--json', 'print JSON: one object, or with --list one for each call')
    .addOption(
      new Option(
        '--perfetto <FILE>',
        "write JSON for Perfetto and Chrome's tracing instead; '-' for stdout",
      ).conflicts(['list', 'json', 'kind', 'page', 'range', 'from', 'to', 'limit']),
    )
    .addHelpText('after', HELP)
    .action(inspect);
}

async function inspect(file: string, flags: Flags): Promise<void> {
  const { list: wanted = false, json = false, perfetto, ...filters } = flags;
  const reader = openTrace(file);
  if (perfetto !== undefined) {
    checkOther(file, perfetto);
    await writeText(perfetto, perfettoJson(reader));
    return tellDamage(file, reader.damage);
  }
  if (wanted || Object.keys(filters).length > 0) {
    const filter = filterOf(filters, reader.meta.pageSize);
    return tellDamage(file, await list(reader, filter, json, process.stdout));
  }
  const summary = summarize(reader);
  const look = outputStyleOf(process.stdout);
  const text = json
    ? JSON.stringify({ file, ...summary })
    : renderTable(summaryRows(file, summary, look), look.columns);
  process.stdout.write(`${text}\n`);
  if (summary.damage !== undefined) process.exitCode = EXIT.failed;
}

function filterOf({ kind, page, range, from, to, limit }: Flags, pageSize: number): Filter {
  const start = page === undefined ? undefined : page - (page % BigInt(pageSize));
  const told = start === undefined ? range : ([start, start + BigInt(pageSize)] as const);
  return {
    kinds: kind,
    range: told,
    fromUs: (from ?? 0) * 1000,
    toUs: (to ?? Number.POSITIVE_INFINITY) * 1000,
    limit: limit ?? Number.POSITIVE_INFINITY,
  };
}

// ---- what users type ---------------------------------------------------------------------------------------

function kinds(text: string): string[] {
  const names = text.split(',').map((name) => name.trim().toLowerCase());
  for (const name of names) {
    if (!KINDS.names.has(name)) throw new InvalidArgumentError(`There is no kind '${printable(name)}'.`);
  }
  return names;
}

function address(text: string): bigint {
  if (/^(0x[0-9a-f]{1,16}|\d{1,19})$/i.test(text)) return BigInt(text);
  throw new InvalidArgumentError('It must be an address: 0x and hexadecimal digits, or decimal ones.');
}

function range(text: string): [bigint, bigint] {
  const [from = '', to = '', ...rest] = text.split('-');
  const told: [bigint, bigint] = [address(from), address(to)];
  if (rest.length === 0 && told[0] < told[1]) return told;
  throw new InvalidArgumentError('It must be two addresses with a dash between, the end exclusive.');
}

function milliseconds(text: string): number {
  if (/^\d{1,12}(\.\d{1,6})?$/.test(text)) return Number(text);
  throw new InvalidArgumentError('It must be a number of milliseconds.');
}
