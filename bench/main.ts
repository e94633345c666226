// `npm run bench`: page faults answered by C and by us, in the same places, and the core alone. Figures are
// printed whatever they are; the exit code is 1 only where an answer was wrong.

import { writeFileSync } from 'node:fs';
import { Command, InvalidArgumentError, Option } from 'commander';
import { Userfaultfd } from '../src/index.js';
import { benchCore } from './core.js';
import { FaultBench, HANDLERS, type HandlerName, PLACEMENTS, placements, WrongAnswer } from './faults.js';
import { loadWarning, machine, OtherWork } from './machine.js';
import { compile } from './native.js';
import { aimTable, figureTable, markdownReport, placementTable, serveTable } from './report.js';
import { type PlacementResult, type Results, verdicts } from './results.js';
import { ServeBench } from './serve.js';
import { benchRecording, benchTraces } from './traces.js';

interface Options {
  rounds: number;
  pages: number;
  placement?: string[];
  handler?: string[];
  core: boolean;
  traces: boolean;
  serve: boolean;
  faults: boolean;
  quick?: boolean;
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

function parse(): Options {
  const program = new Command('npm run bench --')
    .description('Page faults of one thread, answered by C and by userfaultfd in turn; then the core alone.')
    .option('--rounds <n>', 'pairs of rounds per handler and placement', upTo(1000), 7)
    .option('--pages <n>', 'faults a round', upTo(2 ** 18), 16_384)
    .addOption(new Option('--placement <names...>', 'only these placements').choices(PLACEMENTS))
    .addOption(new Option('--handler <names...>', 'only these beside C').choices(HANDLERS))
    .option('--no-core', 'leave out the core alone')
    .option('--no-traces', 'leave out traces and the simulated kernel')
    .option('--no-serve', 'leave out guests that are served')
    .option('--no-faults', 'leave out the faults of one thread in this process')
    .option('--quick', '3 rounds of 4,096 pages')
    .option('--json [file]', 'every round as JSON, into a file or instead of the tables')
    .option('--markdown', 'the tables of docs/benchmarks.md instead of those for a terminal')
    .showHelpAfterError();
  const options = program.parse().opts<Options>();
  return options.quick ? { ...options, rounds: 3, pages: 4096 } : options;
}

/** Why this machine cannot serve faults, or the library to do it with. */
function prepare(): { library: string } | { reason: string } {
  if (!Userfaultfd.isSupported()) return { reason: 'this system has no userfaultfd' };
  try {
    Userfaultfd.open().close();
  } catch (error) {
    return { reason: (error as Error).message };
  }
  return compile();
}

async function benchFaults(
  library: string,
  options: Options,
  results: Results,
  say: (text: string) => void,
): Promise<void> {
  const bench = new FaultBench(library, options.pages);
  const { possible, leftOut } = placements(bench.native);
  results.leftOut.push(...leftOut);
  const { firstUs, lastUs } = bench.warmth;
  say(`memory: ${firstUs.toFixed(1)} µs a page when first touched, ${lastUs.toFixed(1)} µs now`);
  for (const placement of possible) {
    if (options.placement && !options.placement.includes(placement.name)) continue;
    const result: PlacementResult = { name: placement.name, title: placement.title, contests: [] };
    for (const handler of HANDLERS) {
      if (options.handler && !options.handler.includes(handler)) continue;
      result.contests.push(await bench.contest(placement, handler as HandlerName, options.rounds));
    }
    results.placements.push(result);
    if (result.contests.length > 0) say(placementTable(result));
    if (options.traces) results.traces.push(...(await benchRecording(bench, placement, options.rounds)));
  }
}

function finish(options: Options, results: Results): void {
  const json = JSON.stringify(results, null, 1);
  if (typeof options.json === 'string') writeFileSync(options.json, `${json}\n`);
  if (options.json === true) console.log(json);
  else if (options.markdown) console.log(markdownReport(results));
  else if (verdicts(results).length > 0) console.log(aimTable(results));
}

async function main(): Promise<void> {
  const options = parse();
  const { rounds, pages } = options;
  const results: Results = {
    machine: machine(),
    rounds,
    pages,
    warnings: [],
    leftOut: [],
    placements: [],
    core: [],
    traces: [],
  };
  const quiet = options.markdown || options.json === true;
  const say = (text: string): void => {
    if (!quiet) console.log(text);
  };
  const warn = (text: string | undefined): void => {
    if (!text) return;
    results.warnings.push(text);
    console.error(`warning: ${text}`);
  };
  say(results.machine);
  warn(loadWarning());
  const others = new OtherWork();
  const prepared = prepare();
  if ('reason' in prepared) results.leftOut.push(`all page faults: ${prepared.reason}`);
  else if (options.faults) await benchFaults(prepared.library, options, results, say);
  if (options.serve && 'library' in prepared) {
    results.serve = await new ServeBench(pages).run(rounds, say);
    say(serveTable(results.serve));
  }
  if (options.core) {
    results.core = benchCore(rounds);
    say(figureTable('the core alone', results.core));
  }
  if (options.traces) {
    results.traces.push(...(await benchTraces(rounds)));
    say(figureTable('traces and the simulated kernel', results.traces));
  }
  warn(others.warning());
  for (const what of results.leftOut) console.error(`left out: ${what}`);
  finish(options, results);
}

main().catch((error) => {
  console.error(error instanceof WrongAnswer ? `wrong: ${error.message}` : error);
  process.exit(1);
});
