// `uffd prune`: its options, its help, and how it ends.

import type { Command } from 'commander';
import { GRACE_MS, openStore, prune } from '../../store/index.js';
import { EXIT_HELP } from '../exit.js';
import { interruptible } from '../signals.js';
import { byteSize, counted, grouped } from '../text.js';
import {
  addStoreOptions,
  duration,
  printLine,
  readIndex,
  STORE_HELP,
  type StoreFlags,
  storeOptions,
} from './options.js';

const HELP = `
What it does:
  Removes the chunks of a store that none of the given indexes names. So give
  all indexes whose chunks are in the store: chunks of a forgotten one are lost.
  Run it with --dry-run first. If one index cannot be read, nothing is removed.

  Chunks that are younger than --grace stay, because they may belong to a pack
  that is not done. A pack gives the present time to chunks that it found and
  that are older than 12 hours. So with the default of 24 hours packs may run
  meanwhile, if each takes less than 12 hours. With a shorter --grace let no
  pack run. Files that are no chunks are never removed.
${STORE_HELP}
Fields of the JSON object:
  store dryRun namedChunks youngChunks removedChunks removedBytes otherObjects
${EXIT_HELP}
Examples:
  uffd prune a.caibx b.caibx --store /srv/chunks --dry-run
  uffd prune indexes/*.caibx --store s3://snapshots/chunks --grace 7d
`;

interface Flags extends StoreFlags {
  store: string;
  grace: number;
  dryRun?: boolean;
  json?: boolean;
}

export function addPrune(program: Command): void {
  const command = program
    .command('prune')
    .summary('remove the chunks of a store that no index names')
    .description('Removes the chunks of a store that no index names.')
    .argument('<INDEX...>', 'all indexes whose chunks are in the store')
    .requiredOption('--store <STORE>', 'the store: a folder or s3://')
    .option('--grace <TIME>', 'keep chunks younger than this, like 12h (default: 24h)', duration)
    .option('--dry-run', 'remove nothing: print what would be removed')
    .option('--json', 'print JSON');
  addStoreOptions(command, false).addHelpText('after', HELP).action(run);
}

async function run(places: string[], flags: Flags): Promise<void> {
  const { grace = GRACE_MS, dryRun = false, json = false } = flags;
  const options = storeOptions(flags);
  await interruptible(async (signal) => {
    const indexes = [];
    for (const place of places) indexes.push((await readIndex(place, options, signal)).index);
    const store = await openStore(flags.store, options);
    try {
      const counts = await prune(indexes, store, {
        graceMs: grace,
        dryRun,
        signal,
        removing: (key) => {
          if (dryRun && !json) printLine(`would remove ${key}`);
        },
      });
      if (json) {
        process.stdout.write(`${JSON.stringify({ store: store.name, dryRun, ...counts })}\n`);
        return;
      }
      const { removedChunks, removedBytes, namedChunks, youngChunks } = counts;
      printLine(
        `${counted(removedChunks, 'chunk')}, ${byteSize(removedBytes)}, ${dryRun ? 'would be ' : ''}removed; ` +
          `${grouped(namedChunks)} are named, ${grouped(youngChunks)} are too young`,
      );
    } finally {
      store.close();
    }
  });
}
