// `uffd report`: its options, its help, and its exit code.

import { createReadStream, statSync } from 'node:fs';
import { basename } from 'node:path';
import type { Command } from 'commander';
import { summarize } from '../../trace/index.js';
import { Refusal } from '../exit.js';
import { followReading } from '../reading-progress.js';
import { byteSize, counted, printable } from '../text.js';
import { checkOther, openTrace, tellDamage, writeText } from '../traces.js';
import { reportHtml } from './html.js';

/** The longest text that browsers hold in one element. */
const TRACE_MOST = 256 * 2 ** 20;

const HELP = `
What it makes:
  One file that any browser opens, without a server or a network. The trace is
  in it, and the browser reads it with the same core as this command. It shows
  which pages were touched and when, the fault rate, the latency of each fault,
  the growth of the working set, the ranges with the most faults, and a
  searchable list. Other traces can be dropped onto the page.

Exit codes:
  0  success
  1  the trace is damaged or cannot be read, or the file cannot be written; the
     report of a damaged trace has everything before the damage, and says so
  2  an option or an argument is wrong

Examples:
  uffd report run.trace                    makes run.html in this folder
  uffd report run.trace -o report.html     makes report.html
  uffd report run.trace -o - | gzip > x.gz to stdout
`;

export function addReport(program: Command): void {
  program
    .command('report')
    .summary('make a page of a recorded trace: a heat map, charts, a searchable list')
    .description('Makes a page of a recorded trace: a heat map, charts, a searchable list.')
    .argument('<FILE>', 'the trace, from uffd demo --record or a TraceWriter')
    .option('-o, --output <FILE>', "the page, '-' for stdout (default: FILE's name, with .html)")
    .addHelpText('after', HELP)
    .action(report);
}

async function report(file: string, { output = nameFor(file) }: { output?: string }): Promise<void> {
  const reader = openTrace(file);
  const bytes = statSync(file).size;
  if (bytes > TRACE_MOST) {
    reader.close();
    const most = byteSize(TRACE_MOST);
    throw new Refusal(
      `${printable(file)} has ${byteSize(bytes)}, and a page can hold ${most}; 'uffd inspect --perfetto' has no limit`,
    );
  }
  checkOther(file, output);
  const endProgress = await followReading(reader, bytes, false);
  const { faults, damage } = summarize(reader);
  endProgress();
  // Import the assets only here, because no other command needs these 100 kB.
  const { assets } = await import('./assets.js');
  await writeText(output, reportHtml(file, createReadStream(file), assets));
  if (output !== '-') {
    const size = byteSize(statSync(output).size);
    process.stdout.write(
      `${printable(output)}: ${counted(faults, 'fault')}, ${size}; open it in a browser\n`,
    );
  }
  tellDamage(file, damage);
}

/** The default name of a report, in the current folder. */
function nameFor(file: string): string {
  return `${basename(file).replace(/\.trace$/, '')}.html`;
}
