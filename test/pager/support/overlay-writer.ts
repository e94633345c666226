// A process that writes random blocks to an overlay, and reports each completed flush, until the test kills it: see
// overlay.once.test.ts.
//
//   node overlay-writer.js FILE SEED BLOCK_SIZE DURABILITY FIRST SIZE

import { Overlay } from '../../../src/pager/overlay-file.js';
import { batchOf, partsOf, report } from './journal-blocks.js';

const [, , path = '', seed = '', block = '', durability = 'process', first = '1', bytes = ''] = process.argv;
const [blockSize, size] = [Number(block), Number(bytes)];
const blocks = Math.ceil(size / blockSize);
// It is killed while it makes the file, too.
report('ready');
const overlay = Overlay.open(
  path,
  { blockSize, size, identity: 'the test' },
  { durability: durability as 'process' | 'power' },
);
for (let version = Number(first); ; version++) {
  overlay.write(partsOf(batchOf(Number(seed), version, blocks), version, blockSize, size));
  if (version % 3 === 0) {
    overlay.sync();
    report(`${version}`);
  }
}
