// `uffd check-handler`: its options, its help, and how its results are printed.

import { writeFileSync } from 'node:fs';
import { type Command, InvalidArgumentError } from 'commander';
import {
  type CheckReport,
  checkHandler,
  countOf,
  formatReport,
  formatResult,
  handlerScenarios,
  summaryOf,
} from '../../testing/index.js';
import { integer } from '../arguments.js';
import { EXIT, EXIT_HELP, Usage } from '../exit.js';
import { interruptible } from '../signals.js';
import { TaskProgress } from '../task-progress.js';
import { columnsOf, wrap } from '../text.js';

const SEEDS = 300;
const SEED_MOST = 2 ** 32 - 1;
const DEADLINE_MOST = 3600;
const REPEAT_MOST = 1_000_000;

const HELP = `
What it does:
  For each scenario it makes a memory file, starts the handler, connects to its
  socket as a microVM's monitor, and hands over the userfaultfd of a guest's
  memory with Firecracker's message. The guest is a process of its own. It
  touches and removes pages, and compares each page that it reads.

The handler's command:
  {socket}  the path at which the handler must listen
  {memory}  the path of the memory file
  The handler is ready when the file of its socket exists, or when it has
  printed a line that matches --ready.

Verdicts:
  pass  the handler did what it must
  FAIL  it did not; with the reason, the page's expected and actual contents,
        what the handler's threads wait for, and its exit status
  n/a   this machine or this handler lacks what the scenario needs

With --simulated:
  The handler's system calls are trapped, and answered by a simulated kernel, so
  it needs no privileges and no /dev/userfaultfd. Random guests run in random
  schedules. The first failure is shrunk, run three times, and printed with its
  seed. A handler that opens a userfaultfd of its own gets EPERM.

With --evidence each failed scenario leaves a folder: the handler's output, the
guest's steps, and what /proc says of the handler's threads. With --simulated:
the schedule, the handler's output, and a trace of its calls, for uffd inspect,
replay and report.
${EXIT_HELP}
Examples:
  uffd check-handler -- ./my-handler {socket} {memory}
  uffd check-handler --scenario remove --repeat 20 -- ./h {socket} {memory}
  uffd check-handler --junit report.xml -- ./h -s {socket} -m {memory}
  uffd check-handler --list
  uffd check-handler --simulated --seeds 2000 -- ./my-handler {socket} {memory}
  uffd check-handler --simulated --seed 17 -- ./my-handler {socket} {memory}

docs/guides/test-your-handler.md explains how to use it in CI.
`;

interface Flags {
  simulated?: boolean;
  seeds?: number;
  seed?: number;
  reuse?: boolean;
  scenario?: string[];
  repeat?: number;
  deadline?: number;
  ready?: RegExp;
  evidence?: string;
  requireAll?: boolean;
  list?: boolean;
  json?: boolean;
  junit?: string;
  tap?: boolean;
}

export function addCheckHandler(program: Command): void {
  program
    .command('check-handler')
    .summary('test a page-fault handler in any language')
    .description('Tests a page-fault handler in any language, on the real kernel or in simulated ones.')
    .argument('[command...]', "the handler's command, after --")
    .option('--scenario <NAME>', 'only scenarios whose name begins so; may repeat', collected)
    .option('--repeat <N>', `run each scenario so often, 1 to ${REPEAT_MOST}`, integer(1, REPEAT_MOST))
    .option(
      '--deadline <SECONDS>',
      `each part of a scenario may take so long, 1 to ${DEADLINE_MOST}; default 10`,
      integer(1, DEADLINE_MOST),
    )
    .option('--ready <PATTERN>', 'the handler prints this when it is ready (a regular expression)', pattern)
    .option('--evidence <DIR>', 'keep files of each failed scenario here, and its trace if simulated')
    .option('--simulated', 'test in simulated kernels: no privileges, any schedule')
    .option(
      '--seeds <N>',
      `with --simulated: try the seeds from 1 to N; default ${SEEDS}`,
      integer(1, SEED_MOST),
    )
    .option('--seed <N>', 'with --simulated: this seed alone', integer(1, SEED_MOST))
    .option('--reuse', 'with --simulated: one process of the handler for all guests (faster)')
    .option('--require-all', 'exit with 1 if a scenario does not apply here, too')
    .option('--list', 'print the scenarios, and why each matters')
    .option('--json', 'print one JSON object instead of a table')
    .option('--tap', 'print TAP instead of a table')
    .option('--junit <FILE>', 'also write JUnit XML')
    .addHelpText('after', HELP)
    .action(check);
}

function collected(text: string, before: string[] = []): string[] {
  return [...before, text];
}

function pattern(text: string): RegExp {
  try {
    return new RegExp(text);
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message);
  }
}

async function check(command: string[], flags: Flags): Promise<void> {
  if (flags.list) return list(flags.json ?? false);
  if (command.length === 0)
    throw new Usage("the handler's command is missing: uffd check-handler -- ./my-handler {socket} {memory}");
  if (flags.json && flags.tap) throw new Usage('--json and --tap exclude each other');
  if (flags.seed !== undefined && flags.seeds !== undefined)
    throw new Usage('--seed and --seeds exclude each other');
  const report = await run(command, flags);
  if (flags.json) process.stdout.write(formatReport(report, 'json'));
  else if (flags.tap) process.stdout.write(formatReport(report, 'tap'));
  else process.stdout.write(`${summaryOf(report)}\n`);
  if (flags.junit !== undefined) writeFileSync(flags.junit, formatReport(report, 'junit'));
  const missing = flags.requireAll ? countOf(report, 'not applicable') : 0;
  if (countOf(report, 'fail') + missing > 0) process.exitCode = EXIT.failed;
}

/** Runs the check. The lines of the table are printed as soon as they are known. */
async function run(command: string[], flags: Flags): Promise<CheckReport> {
  const names = flags.simulated ? [] : (await handlerScenarios()).map(({ name }) => name);
  const width = Math.max(0, ...names.map((name) => name.length));
  const table = !flags.json && !flags.tap;
  const total = flags.seed === undefined ? (flags.seeds ?? SEEDS) : 1;
  const progress = flags.simulated ? await TaskProgress.begin('guests', !table) : undefined;
  try {
    return await interruptible((signal) =>
      checkHandler({
        ...{ command, signal, scenarios: flags.scenario, repeat: flags.repeat, ready: flags.ready },
        ...{ evidence: flags.evidence, deadlineMs: flags.deadline && flags.deadline * 1000 },
        ...{ simulated: flags.simulated, reuse: flags.reuse },
        seeds: flags.seed === undefined ? flags.seeds : { from: flags.seed, count: 1 },
        // Shrinking a failure takes more runs.
        onProgress: progress && ((runs) => progress.show(Math.min(runs, total), total, `${runs}`)),
        onResult: (result) => {
          progress?.end();
          if (table) process.stdout.write(`${formatResult(result, width)}\n`);
          if (table && result.seed !== undefined)
            process.stdout.write(
              `to repeat it: uffd check-handler --simulated --seed ${result.seed} -- ${command.join(' ')}\n`,
            );
        },
      }),
    );
  } catch (error) {
    progress?.end();
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ERR_INVALID_ARG_VALUE' || code === 'ERR_OUT_OF_RANGE')
      throw new Usage((error as Error).message);
    throw error;
  }
}

async function list(json: boolean): Promise<void> {
  const scenarios = await handlerScenarios();
  if (json) {
    process.stdout.write(`${JSON.stringify(scenarios)}\n`);
    return;
  }
  const width = Math.max(...scenarios.map(({ name }) => name.length));
  const columns = process.stdout.isTTY ? columnsOf(process.stdout) : undefined;
  for (const { name, why } of scenarios) {
    process.stdout.write(`${wrap(`${name.padEnd(width)}  ${why}`, columns, ' '.repeat(width + 2))}\n`);
  }
}
