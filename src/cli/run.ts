// A run of the command, from its arguments to its exit code.

import { CommanderError } from 'commander';
import { EXIT, exitCodeOf, explain } from './exit.js';
import { createProgram } from './program.js';

export async function run(): Promise<void> {
  // If the reader of stdout closes it (`uffd … | head`), that is no failure; a full disk is one.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') return;
    process.stderr.write(`uffd: cannot write the output: ${error.message}\n`);
    process.exitCode = EXIT.failed;
  });
  try {
    const program = await createProgram(process.argv.slice(2));
    await program.parseAsync();
  } catch (error) {
    process.exitCode = exitCodeOf(error);
    // commander has already printed it.
    if (!(error instanceof CommanderError)) process.stderr.write(`uffd: ${explain(error)}\n`);
  }
}
