// `uffd unpack`: its options, its help, and how it ends.

import type { Command } from 'commander';
import { openStore, unpack } from '../../store/index.js';
import { EXIT_HELP } from '../exit.js';
import { interruptible } from '../signals.js';
import { TaskProgress } from '../task-progress.js';
import { byteSize, counted, printable } from '../text.js';
import {
  addStoreOptions,
  checkOutput,
  printLine,
  readIndex,
  STORE_HELP,
  type StoreFlags,
  storeOptions,
} from './options.js';

const HELP = `
What it does:
  Writes the memory that an index describes to FILE, which has holes where the
  memory is zeros. Each chunk is checked against its hash before it is written.
  Until FILE is complete, its name is FILE.uffd-partial; if the command fails,
  that file is removed. A file that is there is replaced only with --force.
${STORE_HELP}
Fields of the JSON object:
  file size fetchedChunks writtenBytes seconds
${EXIT_HELP}
Examples:
  uffd unpack vm.caibx vm.mem --store /srv/chunks
  uffd unpack vm.caibx vm.mem --store s3://snapshots/chunks
  uffd unpack https://cdn.example/vm.caibx vm.mem --store https://cdn.example/c
`;

interface Flags extends StoreFlags {
  store: string;
  force?: boolean;
  json?: boolean;
}

export function addUnpack(program: Command): void {
  const command = program
    .command('unpack')
    .summary('write the memory of a packed snapshot to a file')
    .description('Writes the memory of a packed snapshot to a file.')
    .argument('<INDEX>', 'the index, a path or URL')
    .argument('<FILE>', 'the memory file to write')
    .requiredOption('--store <STORE>', 'where the chunks are')
    .option('--force', 'replace FILE if it is there')
    .option('--json', 'print JSON');
  addStoreOptions(command, true).addHelpText('after', HELP).action(run);
}

async function run(place: string, file: string, flags: Flags): Promise<void> {
  const { force = false, json = false } = flags;
  checkOutput(file, [place]);
  const options = storeOptions(flags);
  const begun = performance.now();
  await interruptible(async (signal) => {
    const { index } = await readIndex(place, options, signal);
    const store = await openStore(flags.store, options);
    const progress = await TaskProgress.begin('unpacking', json);
    try {
      const { fetchedChunks, writtenBytes, size } = await unpack(index, store, file, {
        force,
        signal,
        progress: (counts) =>
          progress?.show(counts.doneBytes, counts.size, counted(counts.fetchedChunks, 'chunk')),
      });
      progress?.end();
      const seconds = Math.round(performance.now() - begun) / 1000;
      if (json) {
        process.stdout.write(`${JSON.stringify({ file, size, fetchedChunks, writtenBytes, seconds })}\n`);
        return;
      }
      printLine(
        `${printable(file)}: ${byteSize(size)}, of which ${byteSize(writtenBytes)} are no zeros; ` +
          `${counted(fetchedChunks, 'chunk')} fetched, each with the right hash`,
      );
    } finally {
      progress?.end();
      store.close();
    }
  });
}
