// `uffd cache`: what is in a cache of chunks; empties it; fills it before a server needs it.

import { statSync } from 'node:fs';
import type { Command } from 'commander';
import { CACHE_BYTES, cacheContents, clearCache, warmCache } from '../../serve/index.js';
import {
  openStore,
  parseWorkingSet,
  readPlace,
  WORKING_SET_BYTES_MOST,
  workingSetPlace,
} from '../../store/index.js';
import { byteCount } from '../arguments.js';
import { EXIT_HELP, Refusal } from '../exit.js';
import { interruptible } from '../signals.js';
import { addStoreOptions, readIndex, STORE_HELP, type StoreFlags, storeOptions } from '../store/options.js';
import { TaskProgress } from '../task-progress.js';
import { byteSize, counted, printable } from '../text.js';

const HELP = `
The cache of uffd serve (--cache) is a folder with a file for each chunk, which
servers share. Nothing else in the folder is touched. Servers may run meanwhile:
they go on with what they have mapped.
${EXIT_HELP}
Examples:
  uffd cache info /var/cache/uffd
  uffd cache warm vm.caibx --store s3://snapshots/chunks --cache /var/cache/uffd
  uffd cache clear /var/cache/uffd
`;

const WARM_HELP = `
What it does:
  Fetches the chunks of the working set that lies beside the index (uffd pack
  --trace), or with --all every chunk, as far as they are not in the cache.
  Chunks that are there are verified.
${STORE_HELP}
Fields of the JSON object:
  index chunks cachedChunks fetchedChunks
${EXIT_HELP}
Example:
  uffd cache warm vm.caibx --store s3://snapshots/chunks --cache /var/cache/uffd
`;

interface WarmFlags extends StoreFlags {
  store: string;
  cache: string;
  cacheSize?: number;
  all?: boolean;
  json?: boolean;
}

export function addCache(program: Command): void {
  const cache = program
    .command('cache')
    .summary('look at, fill or empty the cache of uffd serve')
    .description('Looks at, fills or empties the cache of uffd serve.')
    .addHelpText('after', HELP);
  cache
    .command('info')
    .description('Prints how much is in a cache.')
    .argument('<DIR>', 'the folder of the cache')
    .option('--json', 'print JSON')
    .action((folder: string, { json = false }: { json?: boolean }) => {
      const found = cacheContents(existing(folder));
      process.stdout.write(
        json ? `${JSON.stringify({ cache: folder, ...found })}\n` : `${printable(folder)}: ${told(found)}\n`,
      );
    });
  cache
    .command('clear')
    .description('Removes all chunks of a cache.')
    .argument('<DIR>', 'the folder of the cache')
    .action((folder: string) => {
      const removed = clearCache(existing(folder));
      process.stdout.write(`${printable(folder)}: ${told(removed)} were removed\n`);
    });
  const warm = cache
    .command('warm')
    .description('Fetches the chunks of a snapshot into a cache.')
    .argument('<INDEX>', 'the index, a path or URL')
    .requiredOption('--store <STORE>', 'where the chunks are')
    .requiredOption('--cache <DIR>', 'the folder of the cache')
    .option('--cache-size <SIZE>', "the cache's size, like 50G (default: 20G)", byteCount(1))
    .option('--all', 'every chunk, and not only the working set')
    .option('--json', 'print JSON');
  addStoreOptions(warm, true).addHelpText('after', WARM_HELP).action(runWarm);
}

async function runWarm(place: string, flags: WarmFlags): Promise<void> {
  const { cache, cacheSize: cacheBytes = CACHE_BYTES, all = false, json = false } = flags;
  const options = storeOptions(flags);
  await interruptible(async (signal) => {
    const { name, bytes, index } = await readIndex(place, options, signal);
    const ranges = all ? undefined : await workingSetOf(place, bytes, flags, signal);
    const store = await openStore(flags.store, options);
    const progress = await TaskProgress.begin('warming', json);
    try {
      const counts = await warmCache(index, store, {
        ...{ cache, cacheBytes, signal, ...(ranges && { ranges }) },
        progress: ({ chunks, cachedChunks, fetchedChunks }) =>
          progress?.show(cachedChunks + fetchedChunks, chunks, counted(fetchedChunks, 'chunk')),
      });
      progress?.end();
      const { chunks, cachedChunks, fetchedChunks } = counts;
      process.stdout.write(
        json
          ? `${JSON.stringify({ index: name, ...counts })}\n`
          : `${name}: ${counted(chunks, 'chunk')}, of which ${cachedChunks} were in the cache and ${fetchedChunks} were fetched\n`,
      );
    } finally {
      progress?.end();
      store.close();
    }
  });
}

async function workingSetOf(place: string, index: Uint8Array, flags: WarmFlags, signal: AbortSignal) {
  const beside = workingSetPlace(place);
  const name = printable(beside.replace(/\?.*/, ''));
  let bytes: Uint8Array;
  try {
    bytes = await readPlace(beside, WORKING_SET_BYTES_MOST, storeOptions(flags), signal);
  } catch (error) {
    throw new Refusal(
      `there is no working set ${name}, and --all was not given: ${(error as Error).message}`,
    );
  }
  return parseWorkingSet(bytes, index, name);
}

function existing(folder: string): string {
  if (statSync(folder, { throwIfNoEntry: false })?.isDirectory()) return folder;
  throw new Refusal(`there is no folder ${printable(folder)}`);
}

function told({ chunks, bytes }: { chunks: number; bytes: number }): string {
  return `${counted(chunks, 'chunk')}, ${byteSize(bytes)}`;
}
