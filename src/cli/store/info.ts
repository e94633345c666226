// `uffd info`: what an index and its working set describe.

import type { Command } from 'commander';
import {
  chunkId,
  indexHash,
  isSeekableName,
  parseWorkingSet,
  readPlace,
  SeekableReader,
  StoreError,
  WORKING_SET_BYTES_MOST,
  workingSetPlace,
  zeroIds,
} from '../../store/index.js';
import { EXIT_HELP } from '../exit.js';
import { interruptible } from '../signals.js';
import { renderTable } from '../table.js';
import { byteSize, counted, grouped, outputStyleOf, printable } from '../text.js';
import { addStoreOptions, type ReadIndex, readIndex, type StoreFlags, storeOptions } from './options.js';

const HELP = `
What it shows:
  The size of the memory, its chunks, and its working set, if there is a file
  INDEX.working-set. The store is not needed. A working set of another index is
  an error.

Fields of the JSON object:
  index sha256 size chunkSize digest chunks zeroChunks distinctChunks
  workingSet (file ranges bytes; null if there is none)
  of a file in zstd's seekable format: file fileBytes size chunkSize chunks
  frames checksums ("table" or "frames")
${EXIT_HELP}
Examples:
  uffd info vm.caibx
  uffd info s3://snapshots/vm.caibx --json
  uffd info https://host/vm.mem.zst
`;

interface Flags extends StoreFlags {
  json?: boolean;
}

export function addInfo(program: Command): void {
  const command = program
    .command('info')
    .summary('show what the index of a packed snapshot describes')
    .description('Shows what the index of a packed snapshot describes.')
    .argument('<INDEX>', 'the index, or a file in the seekable format of zstd; a path or URL')
    .option('--json', 'print JSON');
  addStoreOptions(command, false).addHelpText('after', HELP).action(run);
}

async function run(place: string, flags: Flags): Promise<void> {
  const options = storeOptions(flags);
  if (isSeekableName(place)) return describeSeekable(place, flags);
  await interruptible(async (signal) => {
    const read = await readIndex(place, options, signal);
    const { size, chunkSize, digest, count } = read.index;
    const ids = Array.from({ length: count }, (_, chunk) => chunkId(read.index, chunk));
    const zero = zeroIds(read.index);
    const zeroChunks = ids.filter(
      (id, chunk) => id === (chunk === count - 1 ? zero.last : zero.whole),
    ).length;
    const distinctChunks = new Set(ids).size;
    const touched = await workingSetOf(place, read, flags, signal);
    const report = {
      ...{ index: read.name, sha256: indexHash(read.bytes), size, chunkSize, digest },
      ...{ chunks: count, zeroChunks, distinctChunks, workingSet: touched ?? null },
    };
    if (flags.json) {
      process.stdout.write(`${JSON.stringify(report)}\n`);
      return;
    }
    const rows: [string, string][] = [
      ['index', read.name],
      ['its SHA-256', report.sha256],
      ['memory', `${byteSize(size)} (${grouped(size)} bytes)`],
      ['chunks', `${grouped(count)} of ${byteSize(chunkSize)}, named by ${digest}`],
      ['zeros', counted(zeroChunks, 'chunk')],
      ['distinct', counted(distinctChunks, 'chunk')],
      [
        'working set',
        touched ? `${byteSize(touched.bytes)} in ${counted(touched.ranges, 'range')}` : 'none is recorded',
      ],
    ];
    process.stdout.write(`${renderTable(rows, outputStyleOf(process.stdout).columns)}\n`);
  });
}

async function describeSeekable(place: string, flags: Flags): Promise<void> {
  await interruptible(async (signal) => {
    const reader = await SeekableReader.open(place, storeOptions(flags), signal);
    reader.close();
    const { fileBytes, index, table } = reader;
    const file = printable(place.replace(/\?.*/, ''));
    const report = {
      ...{ file, fileBytes, size: index.size, chunkSize: index.chunkSize },
      ...{ chunks: index.count, frames: table.frames, checksums: table.checksums ? 'table' : 'frames' },
    };
    if (flags.json) {
      process.stdout.write(`${JSON.stringify(report)}\n`);
      return;
    }
    const rows: [string, string][] = [
      ['file', `${file}, ${byteSize(fileBytes)}`],
      ['memory', `${byteSize(index.size)} (${grouped(index.size)} bytes)`],
      [
        'frames',
        `${grouped(table.frames)}, with checksums in ${table.checksums ? 'the seek table' : 'the frames'}`,
      ],
      ['chunks', `${grouped(index.count)} of ${byteSize(index.chunkSize)}`],
    ];
    process.stdout.write(`${renderTable(rows, outputStyleOf(process.stdout).columns)}\n`);
  });
}

async function workingSetOf(
  place: string,
  { bytes: index, name }: ReadIndex,
  flags: Flags,
  signal: AbortSignal,
): Promise<{ file: string; ranges: number; bytes: number } | undefined> {
  const file = workingSetPlace(place);
  let content: Uint8Array;
  try {
    content = await readPlace(file, WORKING_SET_BYTES_MOST, storeOptions(flags), signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    // S3 also refuses what is not there, if the bucket may not be listed.
    if (error instanceof StoreError && ['missing', 'refused'].includes(error.kind)) return undefined;
    throw error;
  }
  const ranges = parseWorkingSet(content, index, workingSetPlace(name));
  return { file, ranges: ranges.length, bytes: ranges.reduce((sum, { length }) => sum + length, 0) };
}
