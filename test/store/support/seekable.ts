// Files in zstd's seekable format: one that another program has written, and some that no good program writes.

import { openCompressor } from '../../../src/store/compression.js';
import { openFrameTools } from '../../../src/store/frame-check.js';
import { encodeSeekTable } from '../../../src/store/seekable-table.js';
import { leaveOut } from '../../support/harness.js';

const PAGE = 4096;
/** Pages of the memory in `PYZSTD_FILE`. */
export const PYZSTD_PAGES = 20;

/** The memory in `PYZSTD_FILE`. */
export function pyzstdMemory(): Buffer {
  return Buffer.concat(
    Array.from({ length: PYZSTD_PAGES }, (_, page) =>
      Buffer.from(Uint8Array.from({ length: PAGE }, (_value, at) => page * 7 + (at >> 8) * 3 + 1)),
    ),
  );
}

/**
 * What SeekableZstdFile of the Python package pyzstd 0.17 writes with max_frame_content_size = 5 * 4096 + 100 and
 * checksumFlag: frames whose sizes are no multiples of a page, with checksums, and a table without.
 */
export const PYZSTD_FILE = Buffer.from(
  [
    'KLUv/QRYXQUAJAUBAQQHCg0QExYZHB8iJSgrLggLDhEUFxodICMmKSwvMjUPEhUYGx4hJCcqLTAzNjk8FhkcHyIlKCsuMTQ3',
    'Oj1AQx0gIyYpLC8yNTg7PkFER0okUZgQ8AcAEvj//9/BH4DP5/P5fD6fz+fz+Xw+n8/n4/P5fD6fz+fz+Xw+n8/n8/n5+Hw+',
    'n8/n8/l8Pp/P5/P5fD4fn8/n8/l8Pp/P5/P5fD6fj8/3e0QKxB2eaCi1L/0EWCUFACQFJCQnKi0wMzY5PD9CRUhLTlErLjE0',
    'Nzo9QENGSUxPUlVYMjU4Oz5BREdKTVBTVllcXzk8P0JFSEtOUVRXWl1gY2ZAQ0ZJTE9SVVhbXmFkZ2ptR1GUEPAHACtEPp/P',
    '5/P5fD6fz+fz+Xw+n4/P5/P5fD6fz+fz+Xw+n8/n8/H5fD6fz+fz+Xw+n8/n8/l8Pj6fz+fz+Xw+n8/n8/l8Pp/P95cUkAOQ',
    'zCi1L/0EWIUFADQFR0dKTVBTVllcX2JlaGtucXROUVRXWl1gY2ZpbG9ydXh7VVhbXmFkZ2ptcHN2eXx/glxfYmVoa25xdHd6',
    'fYCDholjZmlsb3J1eHt+gYSHio2Qam1SmBDwBwAS+P//HQQYBPMH8Pl8Pp/P5/P5fD6fz+fz+Xx8fj6fz+fz+Xw+n8/n8/l8',
    'Ph+fz8/n8/l8Pp/P5/P5fD6fz8fn8/n4fD6fz+fz+Xw+n8/n8/E/sHwK2f1XjCi1L/0EWAUFAAQFbW1wc3Z5fH+ChYiLjpGU',
    'l3F0d3p9gIOGiYyPkpWYm554e36BhIeKjZCTlpmcn6Klf4KFiIuOkZSXmp2go6aprIaJjI+SlZibnqGkp6qtsLNPlBDwBwAr',
    'fD6fz+fz+Xw+n8/n8/l8Pp+Pz+fz+Xw+n8/n8/l8Pp/P5/Px+Xw+n8/n8/l8Pp/P5/P5fD4+n8/n8/l8Pp/P5/P5fD5fP1PW',
    'X5JxXipNGCkAAAC4AAAAZFAAALEAAABkUAAAvQAAAGRQAACtAAAA1E4AAAQAAAAAseqSjw==',
  ].join(''),
  'base64',
);

/** A file with frames of these sizes. `table` may change what the table says of the frames. */
export async function seekableOf(
  memory: Buffer,
  sizes: readonly number[],
  table = (entries: Parameters<typeof encodeSeekTable>[0]) => encodeSeekTable(entries),
): Promise<Buffer> {
  const compressor = openCompressor() ?? leaveOut('there is no zstd here');
  const tools = await openFrameTools();
  const frames: Buffer[] = [];
  const entries: { length: number; dataLength: number; checksum: number }[] = [];
  let at = 0;
  for (const dataLength of sizes) {
    const data = memory.subarray(at, at + dataLength);
    const frame = Buffer.from(await compressor.compressLater(data, 1));
    frames.push(frame);
    entries.push({ length: frame.length, dataLength, checksum: tools.checksum(data) });
    at += dataLength;
  }
  compressor.close();
  tools.decompressor.close();
  return Buffer.concat([...frames, table(entries)]);
}
