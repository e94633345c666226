// Assembles the subcommands. Usage errors are printed, then thrown as CommanderError; nothing here ends the process.

import { Command } from 'commander';
import { VERSION } from './manifest.js';

/** The functions that add the subcommands, in the order of the help. Each is loaded when it is needed. */
const SUBCOMMANDS: Readonly<Record<string, () => Promise<(program: Command) => void>>> = {
  serve: async () => (await import('./serve/command.js')).addServe,
  pack: async () => (await import('./store/pack.js')).addPack,
  unpack: async () => (await import('./store/unpack.js')).addUnpack,
  info: async () => (await import('./store/info.js')).addInfo,
  verify: async () => (await import('./store/verify.js')).addVerify,
  prune: async () => (await import('./store/prune.js')).addPrune,
  cache: async () => (await import('./cache/command.js')).addCache,
  demo: async () => (await import('./demo/command.js')).addDemo,
  replay: async () => (await import('./replay/command.js')).addReplay,
  inspect: async () => (await import('./inspect/command.js')).addInspect,
  report: async () => (await import('./report/command.js')).addReport,
  simulate: async () => (await import('./simulate/command.js')).addSimulate,
  'check-handler': async () => (await import('./check-handler/command.js')).addCheckHandler,
  'record-handler': async () => (await import('./record-handler/command.js')).addRecordHandler,
  doctor: async () => (await import('./doctor/command.js')).addDoctor,
};
const VERSION_FLAGS = ['-V', '--version'];

/**
 * The command with the subcommands that these arguments need: the subcommand that they begin with, or all of them for
 * the help.
 */
export async function createProgram([first = '']: readonly string[]): Promise<Command> {
  const program = new Command('uffd')
    .description('Linux page faults, served from TypeScript')
    .version(VERSION, VERSION_FLAGS.join(', '), 'print the version')
    .helpOption('-h, --help', 'print this help')
    .helpCommand(false)
    .exitOverride()
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, 'uffd: ')) })
    .showHelpAfterError("Add '--help' for the options.")
    .addHelpText('after', "\n'uffd <command> --help' tells all of a command.\n");
  const one = Object.hasOwn(SUBCOMMANDS, first) || VERSION_FLAGS.includes(first);
  for (const [name, load] of Object.entries(SUBCOMMANDS)) {
    if (!one || name === first) (await load())(program);
  }
  return program;
}
