// `uffd simulate`: its options, its help, and how its result is printed.

import { randomInt } from 'node:crypto';
import type { Command } from 'commander';
import { summarize, TraceReader, type TraceSummary, TraceWriter } from '../../trace/index.js';
import { integer } from '../arguments.js';
import type { Report } from '../demo/report.js';
import { EXIT, EXIT_HELP } from '../exit.js';
import { happenedRows } from '../inspect/report.js';
import { interruptible } from '../signals.js';
import { renderTable } from '../table.js';
import { byteSize, counted, grouped, outputStyleOf, printable } from '../text.js';
import { recordedBy } from '../traces.js';
import { runWorld, type World } from './world.js';

const SEED_MOST = 2 ** 32 - 1;
const STEPS_MOST = 10_000_000;
const STEPS = 10_000;

const HELP = `
What it does:
  In a simulated kernel, three threads read and write 64 pages, a fourth removes
  pages with madvise, and a handler copies them from a source. A seeded
  scheduler decides which thread runs next, and interrupts the handler before
  its calls. Only the library and the handler are real, so it runs anywhere, and
  one seed gives the same run each time. Each read is checked.

What is counted:
  duration, latency  virtual time: a step takes 1 µs
  put off            faults offered again, because a removal cut the fill short

Fields of the JSON object (trace: null without --record):
  seed steps reads writes removals offered putOff wrong stuck equal
  trace (file records bytes failure)
  summary: the object that uffd inspect --json prints, without file
${EXIT_HELP}
Examples:
  uffd simulate                              a random run
  uffd simulate --seed 7 --steps 1000 --log  a repeatable run, step by step
  uffd simulate --seed 7 --record sim.trace  a run to replay and inspect
`;

interface Flags {
  seed?: number;
  steps: number;
  record?: string;
  log?: boolean;
  json?: boolean;
}

export function addSimulate(program: Command): void {
  program
    .command('simulate')
    .summary('serve faults in a simulated kernel whose every interleaving comes from a seed')
    .description('Serves faults in a simulated kernel whose every interleaving comes from a seed.')
    .option(
      '-s, --seed <N>',
      `decides the run, 0 to ${SEED_MOST} (default: random, and printed)`,
      integer(0, SEED_MOST),
    )
    .option(
      '--steps <N>',
      `scheduler steps after which threads begin nothing more, 1 to ${STEPS_MOST}`,
      integer(1, STEPS_MOST),
      STEPS,
    )
    .option('-r, --record <FILE>', 'record the run, for uffd replay and uffd inspect')
    .option('--log', 'print each step: who runs')
    .option('--json', 'print one JSON object instead of a table')
    .addHelpText('after', HELP)
    .action(simulate);
}

async function simulate({
  seed = randomInt(SEED_MOST + 1),
  steps,
  record,
  log,
  json = false,
}: Flags): Promise<void> {
  const about = { command: 'simulate', seed, steps };
  const kept: Uint8Array[] = [];
  const keep = { write: (bytes: Uint8Array) => void kept.push(bytes.slice()), close() {} };
  const warn = (message: string): void => void process.stderr.write(`uffd: ${message}\n`);
  const writer =
    record === undefined ? new TraceWriter(keep, { about }) : TraceWriter.toFile(record, { about, warn });
  const observer = log ? (line: string) => void process.stdout.write(`${line}\n`) : undefined;
  const world = await interruptible((signal) => runWorld({ seed, steps }, writer, signal, observer));
  const summary = summarize(
    record === undefined ? TraceReader.of(Buffer.concat(kept)) : TraceReader.fromFile(record),
  );
  const trace = record === undefined ? null : { file: record, ...recordedBy(writer) };
  const equal = world.wrong.length === 0 && world.stuck.length === 0;
  const text = json
    ? JSON.stringify({ seed, ...world, equal, trace, summary })
    : asTable(seed, world, summary, trace);
  process.stdout.write(`${text}\n`);
  if (!equal || writer.failure) process.exitCode = EXIT.failed;
}

function asTable(seed: number, world: World, summary: TraceSummary, trace: Report['trace']): string {
  const { columns, colors } = outputStyleOf(process.stdout);
  const { wrong, stuck } = world;
  const verdict = [
    ...wrong.map((what) => colors.red(`WRONG: ${what}`)),
    ...stuck.map((who) => colors.red(`ASLEEP FOR GOOD: ${who}`)),
  ];
  const traced: [string, string][] = trace
    ? [['trace', `${printable(trace.file)}: ${counted(trace.records, 'record')}, ${byteSize(trace.bytes)}`]]
    : [];
  const rows: [string, string][] = [
    ['seed', `${seed}`],
    ['steps', grouped(world.steps)],
    ['touches', `${counted(world.reads, 'read')}, ${counted(world.writes, 'write')}`],
    ['removals', grouped(world.removals)],
    ['offered', `${counted(world.offered, 'fault')}, ${grouped(world.putOff)} put off`],
    ...happenedRows(summary),
    ...traced,
    ['verdict', verdict.length > 0 ? verdict.join(' ') : colors.green('every read found what it had to')],
  ];
  return renderTable(rows, columns);
}
