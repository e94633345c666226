// A run of the command, from its arguments to its exit code.

import { CommanderError } from 'commander';
import { EXIT, exitCodeOf, explain } from './exit.js';
import { createProgram } from './program.js';

export async function run(): Promise<void> {
  // A reader that has seen enough (`uffd … | head`) is no failure; a disk that is full is one.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code === 'EPIPE') return;
    process.stderr.write(`uffd: cannot write the output: ${error.message}\n`);
    process.exitCode = EXIT.failed;
  });
  try {
    await createProgram().parseAsync();
  } catch (error) {
    process.exitCode = exitCodeOf(error);
    // commander has said it already.
    if (!(error instanceof CommanderError)) process.stderr.write(`uffd: ${explain(error)}\n`);
  }
}
