// `uffd replay`: its options, its help, and its exit code.

import { statSync } from 'node:fs';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Command } from 'commander';
import { isOfGuest, replayWithGuest } from '../../testing/index.js';
import { type HandlerFactory, replay } from '../../trace/index.js';
import { EXIT, Refusal, Usage } from '../exit.js';
import { followReading } from '../reading-progress.js';
import { outputStyleOf, printable } from '../text.js';
import { openTrace } from '../traces.js';
import { createReport, render } from './report.js';

const HELP = `
What it does:
  It runs the library again with the kernel's answers from the trace, and
  compares every call with the recorded one. It needs no userfaultfd, no
  privilege and no Linux.

  Without --handler, the trace says what the handler did. With it, the module's
  handler decides, and must do what the recorded one did, call by call.

  A trace of uffd record-handler is not run again, because its handler is not
  known. Each of its calls is compared with what the kernel's rules allow.

  A trace of uffd check-handler --simulated is of another program. Its recorded
  calls are made again with an equal guest, and what the guest finds broken is
  printed as 'broken'.

MODULE is a JavaScript file. Its default export is called once, with the
userfaultfd and the trace's description, and returns a handler:

  export default (uffd, { about }) => ({
    pagefault({ page }) {
      uffd.zero(page, uffd.pageSize);
    },
  });

  If the trace has to answer a fault in place of the handler, that is a
  difference. Other calls outside of the handler (for example by a program that
  fills ahead) are made as the trace has them, and counted in 'performed'.

Fields of the JSON object (difference, error, damage and broken: null if there
is none):
  file identical records faults performed recordedMs durationMs
  difference  index expected came before error
              fault (page address access kind tid)
  damage broken

Exit codes:
  0  identical, to the end of the trace
  1  it differs, or the trace is damaged or cannot be read
  2  an option or an argument is wrong

Examples:
  uffd replay run.trace                         the same again?
  uffd replay run.trace --handler ./handler.js  does this handler do the same?
`;

interface Flags {
  handler?: string;
  json?: boolean;
}

export function addReplay(program: Command): void {
  program
    .command('replay')
    .summary('run a recorded trace again, and show the first call that differs')
    .description('Runs a recorded trace again, and shows the first call that differs.')
    .argument('<FILE>', 'the trace, from uffd demo --record, uffd record-handler or a TraceWriter')
    .option('--handler <MODULE>', "a handler to run in the recorded one's place")
    .option('--json', 'print one JSON object instead of text')
    .addHelpText('after', HELP)
    .action(run);
}

async function run(file: string, { handler, json = false }: Flags): Promise<void> {
  const factory = handler === undefined ? undefined : await load(handler);
  const reader = openTrace(file);
  if (factory && isOfGuest(reader)) {
    reader.close();
    throw new Usage(
      `${printable(file)} is of another program's handler: --handler is for traces of this library`,
    );
  }
  const endProgress = await followReading(reader, statSync(file).size, json);
  const begun = performance.now();
  let recordedMs = 0;
  try {
    const result = isOfGuest(reader) ? replayWithGuest(reader) : await replay(reader, factory);
    recordedMs = reader.codec.time / 1000;
    const report = createReport(file, result, recordedMs, performance.now() - begun);
    endProgress();
    const text = json ? JSON.stringify(report) : render(report, outputStyleOf(process.stdout));
    process.stdout.write(`${text}\n`);
    process.exitCode = report.identical && report.damage === null ? EXIT.done : EXIT.failed;
  } finally {
    endProgress();
  }
}

/** @throws Usage if the module cannot be loaded or makes no handlers */
async function load(module: string): Promise<HandlerFactory> {
  let loaded: { default?: unknown };
  try {
    loaded = await import(pathToFileURL(resolve(module)).href);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_MODULE_NOT_FOUND') throw error;
    throw new Usage(`${printable(module)} cannot be loaded: ${(error as Error).message}`);
  }
  const { default: factory } = loaded;
  if (typeof factory !== 'function') {
    throw new Usage(`the default export of ${printable(module)} must be a function that returns a handler`);
  }
  return (uffd, meta) => {
    const handler = factory(uffd, meta);
    if (typeof handler?.pagefault === 'function') return handler;
    throw new Refusal(`the default export of ${printable(module)} must return a handler with pagefault`);
  };
}
