// `npm run bench`: page faults answered by this library and by other handlers, in the same placements, and the core
// alone. Prints every figure. The exit code is 1 if the benchmark fails, never because a figure misses its aim.

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Userfaultfd } from '../src/index.js';
import { verdicts } from './aims.js';
import { benchCore } from './core.js';
import { FaultBench, HANDLERS, placements, WrongAnswer } from './faults.js';
import { loadWarning, machine, OtherWork } from './machine.js';
import { compile } from './native.js';
import { OperatorBench } from './operator.js';
import { cellsOf, type Options, parse } from './options.js';
import { PagerBench } from './pager.js';
import { draw, drawOperator } from './plots/draw.js';
import { scale } from './plots/scale.js';
import { type Scaling, scaling } from './plots/scaling.js';
import {
  aimTable,
  cellTable,
  comparedLine,
  figureTable,
  growthTable,
  markdownReport,
  operatorLine,
  operatorTable,
  pagerTable,
  placementTable,
  ratioTable,
  storeTable,
  workingSetText,
} from './report.js';
import type { PlacementResult, Results } from './results.js';
import { ServeBench, type ServeResults } from './serve.js';
import { benchSteady } from './steady.js';
import { StoreBench } from './store.js';
import { benchRecording, benchTraces } from './traces.js';

type Say = (text: string) => void;

/** Compiles native.c. Returns the path of the compiled library, or why this machine cannot serve faults. */
function prepare(): { library: string } | { reason: string } {
  if (!Userfaultfd.isSupported()) return { reason: 'this system has no userfaultfd' };
  try {
    Userfaultfd.open().close();
  } catch (error) {
    return { reason: (error as Error).message };
  }
  return compile();
}

async function benchFaults(library: string, options: Options, results: Results, say: Say): Promise<void> {
  const bench = new FaultBench(library, options.pages);
  const { possible, leftOut } = placements(bench.native);
  results.leftOut.push(...leftOut);
  const { firstUs, lastUs } = bench.warmth;
  say(`memory: ${firstUs.toFixed(1)} µs a page when first touched, ${lastUs.toFixed(1)} µs now`);
  for (const placement of possible) {
    if (options.placement && !options.placement.includes(placement.name)) continue;
    const result: PlacementResult = { name: placement.name, title: placement.title, contests: [] };
    for (const handler of HANDLERS) {
      if (!options.handler.includes(handler)) continue;
      result.contests.push(await bench.contest(placement, handler, options.rounds));
    }
    results.placements.push(result);
    if (result.contests.length > 0) say(placementTable(result));
    if (options.traces) results.traces.push(...(await benchRecording(bench, placement, options.rounds)));
  }
}

async function benchServe(library: string, options: Options, results: Results, say: Say): Promise<void> {
  const { pages, rounds, server, quick } = options;
  const bench = new ServeBench(library, pages);
  const serve: ServeResults = { pages, cells: [] };
  for await (const cell of bench.run(cellsOf(options), server, rounds, say)) {
    serve.cells.push(cell);
    say(cellTable(cell));
  }
  say(ratioTable(serve));
  if (!quick) {
    serve.workingSet = await bench.workingSet(rounds);
    say(workingSetText(serve));
  }
  results.serve = serve;
  results.leftOut.push(...bench.leftOut);
}

async function benchGrowth(library: string, options: Options, results: Results, say: Say): Promise<void> {
  const { rounds, pages, server: wanted, quick = false, plots } = options;
  const { leftOut } = results;
  await benchPlots(scaling({ library, rounds, pages, wanted, quick, leftOut, say }), plots, results, say);
}

async function benchPlots(
  all: AsyncGenerator<Scaling>,
  plots: string | undefined,
  results: Results,
  say: Say,
): Promise<void> {
  if (plots !== undefined) mkdirSync(plots, { recursive: true });
  for await (const one of all) {
    results.growth.push(one);
    say(growthTable(one));
    if (plots !== undefined) writeFileSync(join(plots, `${one.name}.svg`), `${draw(one)}\n`);
  }
}

async function benchOperator(library: string, options: Options, results: Results, say: Say): Promise<void> {
  const { rounds, pages, quick = false, plots } = options;
  const bench = new OperatorBench(library, rounds, quick, say);
  results.operator = await bench.run((row) => say(operatorLine(row)));
  results.leftOut.push(...results.operator.leftOut);
  if (plots !== undefined) {
    mkdirSync(plots, { recursive: true });
    writeFileSync(join(plots, 'operator.svg'), `${drawOperator(results.operator.rows)}\n`);
  }
  results.steady = await benchSteady(rounds);
  results.traces.push(...(await benchTraces(rounds)));
  const faults = new FaultBench(library, pages);
  for (const placement of placements(faults.native).possible) {
    results.traces.push(...(await benchRecording(faults, placement, rounds)));
  }
  say(operatorTable(results.operator));
}

async function benchPager(library: string, options: Options, results: Results, say: Say): Promise<void> {
  const { rounds, quick = false, pager } = options;
  const bench = new PagerBench(library, rounds, quick);
  results.pager = await bench.run(Array.isArray(pager) ? pager : undefined, (row) => say(comparedLine(row)));
  results.leftOut.push(...results.pager.leftOut);
  say(pagerTable(results.pager));
}

async function benchStore(library: string, options: Options, results: Results, say: Say): Promise<void> {
  const { rounds, quick = false, store } = options;
  const bench = new StoreBench(library, rounds, quick);
  results.store = await bench.run(Array.isArray(store) ? store : undefined, (row) => say(comparedLine(row)));
  results.leftOut.push(...results.store.leftOut);
  say(storeTable(results.store));
}

async function measure(options: Options, results: Results, say: Say): Promise<void> {
  const { rounds, quick = false, plots } = options;
  const prepared = prepare();
  if (options.operator) {
    if ('reason' in prepared) throw new Error(`no figures for operators: ${prepared.reason}`);
    await benchOperator(prepared.library, options, results, say);
    return;
  }
  if (options.pager) {
    if ('reason' in prepared) throw new Error(`no figures of pagers: ${prepared.reason}`);
    await benchPager(prepared.library, options, results, say);
    return;
  }
  if (options.store) {
    if ('reason' in prepared) throw new Error(`no figures of stores: ${prepared.reason}`);
    await benchStore(prepared.library, options, results, say);
    return;
  }
  if (options.scale) {
    if ('reason' in prepared) throw new Error(`no figures of a server: ${prepared.reason}`);
    await benchPlots(scale(prepared.library, quick, say), plots, results, say);
    return;
  }
  if ('reason' in prepared) results.leftOut.push(`all page faults: ${prepared.reason}`);
  else {
    if (options.faults) await benchFaults(prepared.library, options, results, say);
    if (options.serve) await benchServe(prepared.library, options, results, say);
    if (options.growth && (!quick || plots !== undefined))
      await benchGrowth(prepared.library, options, results, say);
  }
  if (options.core) {
    results.core = benchCore(rounds);
    say(figureTable('the core alone', results.core));
  }
  if (options.traces) {
    results.traces.push(...(await benchTraces(rounds)));
    say(figureTable('traces and the simulated kernel', results.traces));
  }
  if (options.steady && !('reason' in prepared)) {
    results.steady = await benchSteady(rounds);
    say(figureTable('a loop over a million faults, and installing ahead', results.steady));
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
    steady: [],
    growth: [],
  };
  const quiet = options.markdown || options.json === true;
  const say: Say = (text) => {
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
  await measure(options, results, say);
  warn(others.warning());
  for (const what of results.leftOut) console.error(`left out: ${what}`);
  finish(options, results);
}

// Give the reserved pages back, however the process ends.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1));

// If a promise never settles, the process would end without a message.
process.exitCode = 1;
process.once('exit', (code) => {
  if (code !== 0) console.error('the benchmark ended before its end: there are no figures');
});

main().then(
  () => {
    process.exitCode = 0;
  },
  (error) => {
    console.error(error instanceof WrongAnswer ? `wrong: ${error.message}` : error);
    process.exit(1);
  },
);
