// `uffd verify`: its options, its help, and how it ends.

import type { Command } from 'commander';
import { openStore, verify } from '../../store/index.js';
import { interruptible } from '../signals.js';
import { TaskProgress } from '../task-progress.js';
import { counted, grouped, printable } from '../text.js';
import {
  addStoreOptions,
  printLine,
  readIndex,
  STORE_HELP,
  type StoreFlags,
  storeOptions,
} from './options.js';

/** Some chunks are not what the index says. */
const BAD = 3;

const HELP = `
What it does:
  Fetches each chunk of the index once, decompresses it into no more memory than
  the index allows, and compares its hash. A chunk that is wrong is fetched once
  more. Missing and damaged chunks are printed, a line for each. To mend them,
  remove the damaged ones from the store and pack the memory again.
${STORE_HELP}
Fields of the JSON object:
  index store distinctChunks bad (id offset state reason; state is missing,
  damaged or refused)

Exit codes:
  0    every chunk is there, and right
  1    it could not be checked; the reason is on stderr
  2    an option or an argument is wrong
  3    chunks are missing or damaged
  130  interrupted (Ctrl-C)
  143  terminated (SIGTERM)

Examples:
  uffd verify vm.caibx --store /srv/chunks
  uffd verify s3://snapshots/vm.caibx --store s3://snapshots/chunks --json
`;

interface Flags extends StoreFlags {
  store: string;
  json?: boolean;
}

export function addVerify(program: Command): void {
  const command = program
    .command('verify')
    .summary('check that a store has all chunks of a packed snapshot')
    .description('Checks that a store has all chunks of a packed snapshot, undamaged.')
    .argument('<INDEX>', 'the index, a path or URL')
    .requiredOption('--store <STORE>', 'where the chunks are')
    .option('--json', 'print JSON');
  addStoreOptions(command, true).addHelpText('after', HELP).action(run);
}

async function run(place: string, flags: Flags): Promise<void> {
  const { json = false } = flags;
  const options = storeOptions(flags);
  await interruptible(async (signal) => {
    const { index, name } = await readIndex(place, options, signal);
    const store = await openStore(flags.store, options);
    const progress = await TaskProgress.begin('verifying', json);
    try {
      const { bad, counts } = await verify(index, store, {
        signal,
        progress: ({ doneChunks, distinctChunks }) =>
          progress?.show(doneChunks, distinctChunks, counted(doneChunks, 'chunk')),
      });
      progress?.end();
      const { distinctChunks } = counts;
      if (bad.length > 0) process.exitCode = BAD;
      if (json) {
        process.stdout.write(`${JSON.stringify({ index: name, store: store.name, distinctChunks, bad })}\n`);
        return;
      }
      for (const { id, offset, state, reason } of bad)
        printLine(`${state} ${id} at byte ${offset}: ${printable(reason)}`);
      const chunks = counted(distinctChunks, 'chunk');
      if (bad.length === 0) printLine(`${chunks}: all are there, and right`);
      else printLine(`${chunks}: ${grouped(bad.length)} cannot be used`);
    } finally {
      progress?.end();
      store.close();
    }
  });
}
