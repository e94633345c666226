// A process that writes random blocks through a journal, and reports each completed flush, until the test kills it: see
// journal-kill.once.test.ts.
//
//   node journal-writer.js FILE SEED BLOCK_SIZE DURABILITY FIRST

import { JournaledFile } from '../../../src/pager/journal-file.js';
import { batchOf, partsOf, report } from './journal-blocks.js';

const [, , path = '', seed = '', size = '', durability = 'process', first = '1'] = process.argv;
const blockSize = Number(size);
const file = JournaledFile.open(path, { blockSize, durability: durability as 'process' | 'power' });
const blocks = Math.ceil(file.size / blockSize);

report('ready');
for (let version = Number(first); ; version++) {
  file.write(partsOf(batchOf(Number(seed), version, blocks), version, blockSize, file.size));
  if (version % 3 === 0) {
    file.sync();
    report(`${version}`);
  }
}
