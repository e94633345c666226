// `uffd pack`: its options, its help, and how it ends.

import { basename } from 'node:path';
import { type Command, Option } from 'commander';
import {
  CHUNK_DEFAULT,
  DIGESTS,
  type Digest,
  indexHash,
  isSeekableName,
  isUrl,
  MemoryImage,
  makeWorkingSet,
  openStore,
  pack,
  packSeekable,
  workingSetPlace,
  writePlace,
} from '../../store/index.js';
import { byteCount } from '../arguments.js';
import { EXIT_HELP, Usage } from '../exit.js';
import { interruptible } from '../signals.js';
import { renderTable } from '../table.js';
import { TaskProgress } from '../task-progress.js';
import { byteSize, counted, grouped, outputStyleOf, printable } from '../text.js';
import {
  addStoreOptions,
  checkOutput,
  collected,
  STORE_HELP,
  type StoreFlags,
  storeOptions,
} from './options.js';

const HELP = `
What it does:
  Cuts the memory into chunks of one size, and writes to the store each chunk
  that the store does not have, compressed with zstd. Holes of the file are not
  read, and chunks of zeros are stored once. At the end it writes an index, a
  small file that names the chunks in order.

  If it is interrupted, run it again: chunks that are in the store already are
  not sent again. The index is written last, so one that is there is complete.
  'uffd prune' may run at the same time, if its --grace is a day or more: chunks
  that are there for 12 hours get the present time (a plain web server gets them
  again), and at the end the command looks whether what it found is still there.

Diff snapshots:
  --layer adds one of Firecracker's diff snapshots: its holes mean "as in the
  memory below". So copy a diff with its holes, and with no others: not with
  cp --sparse=always, which makes holes of pages of zeros.

One file (--seekable, instead of --store):
  Writes MEMORY.zst, a zstd file in the seekable format, which any zstd
  decompresses. Put it on a web server, or in S3, as one object. uffd serve
  reads the parts of it that a guest touches.

Working set:
  --trace takes a trace of a guest that this memory was served to (uffd serve
  --record). The pages that the guest touched are listed in NAME.working-set
  beside the index, in the order of the first touch.
${STORE_HELP}
Fields of the JSON object (with --seekable: file fileBytes size chunkSize frames
seconds):
  index indexSha256 store size chunkSize digest chunks zeroChunks
  distinctChunks presentChunks storedChunks storedBytes workingSet (file
  ranges bytes; null without --trace) seconds
${EXIT_HELP}
Examples:
  uffd pack vm.mem --store /srv/chunks
  uffd pack vm.mem --store s3://snapshots/chunks -o vm.caibx
  uffd pack base.mem --layer monday.diff --layer tuesday.diff --store chunks
  uffd pack vm.mem --store s3://snapshots/chunks -o s3://snapshots/vm.caibx
  uffd pack vm.mem --seekable -o vm.mem.zst

docs/guides/snapshots-in-s3.md has the steps from an empty bucket on.
`;

interface Flags extends StoreFlags {
  store?: string;
  seekable?: boolean;
  output?: string;
  chunk: number;
  digest: Digest;
  layer?: string[];
  trace?: string[];
  force?: boolean;
  json?: boolean;
}

export function addPack(program: Command): void {
  const command = program
    .command('pack')
    .summary('store the memory of a snapshot as chunks, in a folder or in S3')
    .description('Stores the memory of a snapshot as chunks, in a folder or in S3.')
    .argument('<MEMORY>', "the snapshot's memory file")
    .option('--store <STORE>', 'where the chunks go')
    .option('--seekable', 'write one file instead, in the seekable format of zstd')
    .option(
      '-o, --output <INDEX>',
      'the index, a path or URL, or the file (default: MEMORY.caibx or MEMORY.zst, here)',
    )
    .option('--chunk <SIZE>', 'bytes of a chunk: a multiple of 4096', byteCount(4096), CHUNK_DEFAULT)
    .addOption(
      new Option('--digest <name>', 'the hash that names chunks').choices(DIGESTS).default('sha512-256'),
    )
    .option('--layer <DIFF>', 'a diff snapshot on top of it; may repeat', collected)
    .option('--trace <TRACE>', 'a recorded run, for the working set; may repeat', collected)
    .option('--force', 'accept traces of other memory files')
    .option('--json', 'print JSON');
  addStoreOptions(command, false).addHelpText('after', HELP).action(run);
}

async function run(memory: string, flags: Flags): Promise<void> {
  const { layer = [], trace = [], chunk, digest, force = false, json = false } = flags;
  if (flags.store !== undefined ? flags.seekable : !flags.seekable)
    throw new Usage('give either --store STORE or --seekable');
  if (flags.seekable && trace.length > 0) throw new Usage('--trace needs --store');
  const output = flags.output ?? `${basename(memory)}${flags.seekable ? '.zst' : '.caibx'}`;
  if (chunk % 4096 !== 0) throw new Usage(`--chunk must be a multiple of 4096; it is ${chunk}`);
  checkOutput(output, [memory, ...layer, ...trace]);
  if (flags.store === undefined) return runSeekable(memory, output, flags);
  const place = flags.store;
  const options = storeOptions(flags);
  const begun = performance.now();
  await interruptible(async (signal) => {
    const image = new MemoryImage(memory, layer);
    const store = await openStore(place, options);
    const progress = await TaskProgress.begin('packing', json);
    try {
      warnOfWholeDiffs(image);
      const { index, counts } = await pack(image, store, {
        chunkSize: chunk,
        digest,
        signal,
        progress: ({ doneBytes, size, storedBytes }) =>
          progress?.show(doneBytes, size, `${byteSize(storedBytes)} sent`),
      });
      progress?.end();
      const touched = trace.length === 0 ? undefined : makeWorkingSet(trace, image, index, force);
      const touchedPlace = workingSetPlace(output);
      if (touched) await writePlace(touchedPlace, touched.bytes, options, signal);
      await writePlace(output, index, options, signal);
      if (touched?.truncated !== undefined) process.stderr.write(`uffd: ${printable(touched.truncated)}\n`);
      const bytes = touched?.ranges.reduce((sum, { length }) => sum + length, 0) ?? 0;
      const { doneBytes: _, ...about } = counts;
      const report = {
        ...{ index: output, indexSha256: indexHash(index), store: store.name },
        ...{ chunkSize: chunk, digest, ...about },
        workingSet: touched ? { file: touchedPlace, ranges: touched.ranges.length, bytes } : null,
        seconds: Math.round(performance.now() - begun) / 1000,
      };
      process.stdout.write(json ? `${JSON.stringify(report)}\n` : described(report));
    } finally {
      progress?.end();
      store.close();
      image.close();
    }
  });
}

function warnOfWholeDiffs({ wholeDiffs }: MemoryImage): void {
  for (const diff of wholeDiffs)
    process.stderr.write(`uffd: ${printable(diff)} has no holes: it replaces all memory below it\n`);
}

async function runSeekable(memory: string, output: string, flags: Flags): Promise<void> {
  const { layer = [], chunk, json = false } = flags;
  if (!isSeekableName(output)) throw new Usage(`uffd serve knows the file by its name: let it end with .zst`);
  if (isUrl(output)) throw new Usage('--seekable writes a file: copy it to the server then');
  const begun = performance.now();
  await interruptible(async (signal) => {
    const image = new MemoryImage(memory, layer);
    const progress = await TaskProgress.begin('packing', json);
    try {
      warnOfWholeDiffs(image);
      const { size, frames, fileBytes } = await packSeekable(image, output, {
        ...{ chunkSize: chunk, signal },
        progress: (counts) =>
          progress?.show(counts.doneBytes, counts.size, `${byteSize(counts.fileBytes)} written`),
      });
      progress?.end();
      const seconds = Math.round(performance.now() - begun) / 1000;
      const report = { file: output, fileBytes, size, chunkSize: chunk, frames, seconds };
      const rows: [string, string][] = [
        ['memory', `${byteSize(size)}, ${counted(frames, 'frame')} of ${byteSize(chunk)}`],
        ['file', `${printable(output)}, ${byteSize(fileBytes)}`],
      ];
      process.stdout.write(
        json
          ? `${JSON.stringify(report)}\n`
          : `${renderTable(rows, outputStyleOf(process.stdout).columns)}\n`,
      );
    } finally {
      progress?.end();
      image.close();
    }
  });
}

interface Report {
  readonly index: string;
  readonly indexSha256: string;
  readonly store: string;
  readonly size: number;
  readonly chunkSize: number;
  readonly chunks: number;
  readonly zeroChunks: number;
  readonly distinctChunks: number;
  readonly presentChunks: number;
  readonly storedChunks: number;
  readonly storedBytes: number;
  readonly workingSet: { readonly file: string; readonly ranges: number; readonly bytes: number } | null;
}

function described(report: Report): string {
  const { chunks, zeroChunks, distinctChunks, presentChunks, storedChunks, workingSet } = report;
  const rows: [string, string][] = [
    ['memory', `${byteSize(report.size)}, ${counted(chunks, 'chunk')} of ${byteSize(report.chunkSize)}`],
    ['zeros', counted(zeroChunks, 'chunk')],
    ['distinct', `${counted(distinctChunks, 'chunk')}, of which the store had ${grouped(presentChunks)}`],
    [
      'sent',
      `${counted(storedChunks, 'chunk')}, ${byteSize(report.storedBytes)} to ${printable(report.store)}`,
    ],
    ...(workingSet
      ? [['working set', `${byteSize(workingSet.bytes)}, ${printable(workingSet.file)}`] as [string, string]]
      : []),
    ['index', printable(report.index)],
    ['its SHA-256', report.indexSha256],
  ];
  return `${renderTable(rows, outputStyleOf(process.stdout).columns)}\n`;
}
