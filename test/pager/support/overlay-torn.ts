// A process that dies in the middle of a block that its overlay already holds: see overlay.once.test.ts.
//
//   node overlay-torn.js FILE BLOCK SIZE

import { execFileSync } from 'node:child_process';
import { Overlay } from '../../../src/pager/overlay-file.js';
import { blockOf } from './journal-blocks.js';

const [, , path = '', block = '', bytes = ''] = process.argv;
const [blockSize, size] = [Number(block), Number(bytes)];
const overlay = Overlay.open(path, { blockSize, size, identity: 'a' }, { durability: 'process' });
const write = (version: number): void =>
  overlay.write([{ offset: 2 * blockSize, bytes: blockOf(2, version, blockSize) }]);
write(1);
overlay.sync();
// A write up to this offset is cut there, and the next one fails.
execFileSync('prlimit', ['--pid', `${process.pid}`, `--fsize=${2.5 * blockSize}`]);
try {
  write(2);
} catch {
  process.kill(process.pid, 'SIGKILL');
}
