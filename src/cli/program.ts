// Puts the subcommands together. Usage errors are thrown as CommanderError, after they were printed; nothing
// here ends the process.

import { Command } from 'commander';
import { addDemo } from './demo/command.js';
import { addDoctor } from './doctor/command.js';
import { addInspect } from './inspect/command.js';
import { VERSION } from './manifest.js';
import { addReplay } from './replay/command.js';
import { addReport } from './report/command.js';
import { addServe } from './serve/command.js';
import { addSimulate } from './simulate/command.js';

export function createProgram(): Command {
  const program = new Command('uffd')
    .description('Linux page faults, served from TypeScript')
    .version(VERSION, '-V, --version', 'print the version')
    .helpOption('-h, --help', 'print this help')
    .helpCommand(false)
    .exitOverride()
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, 'uffd: ')) })
    .showHelpAfterError("Add '--help' for the options.")
    .addHelpText('after', "\n'uffd <command> --help' tells all of a command.\n");
  addServe(program);
  addDemo(program);
  addReplay(program);
  addInspect(program);
  addReport(program);
  addSimulate(program);
  addDoctor(program);
  return program;
}
