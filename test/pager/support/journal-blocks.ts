// Blocks whose bytes tell which write they are of, so that a torn block is recognized; and what the processes that write
// them share.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { writeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { generator } from '../../support/harness.js';

/** The bytes of a block, a multiple of 4, as write number `version` makes it. Version 0: as the file was made. */
export function blockOf(block: number, version: number, length: number): Buffer {
  const words = new Uint32Array(length / 4);
  const random = generator(block * 65_599 + version * 2_654_435 + 1);
  const pattern = Uint32Array.from({ length: 16 }, () => random(2 ** 32));
  for (let at = 0; at < words.length; at++) words[at] = (pattern[at % 16] as number) ^ at;
  words[0] = block;
  words[1] = version;
  return Buffer.from(words.buffer);
}

/** The version of a block; undefined if its bytes are not all of one version. */
export function versionOf(bytes: Buffer, block: number): number | undefined {
  const version = bytes.readUInt32LE(4);
  return bytes.equals(blockOf(block, version, bytes.length)) ? version : undefined;
}

/** The blocks that batch number `version` of a seed writes. */
export function batchOf(seed: number, version: number, blocks: number): number[] {
  const random = generator(seed + version * 7919);
  const chosen = new Set<number>();
  for (let count = 1 + random(6); chosen.size < count; ) {
    // Runs, too: these are written in place with one call.
    const first = random(blocks);
    for (let block = first; block < Math.min(blocks, first + 1 + random(3)); block++) chosen.add(block);
  }
  return [...chosen];
}

/** A file of blocks of version 0; the last one is shorter. */
export function freshFile(blocks: number, blockSize: number, lastBytes: number): Buffer {
  return Buffer.concat(
    Array.from({ length: blocks }, (_, block) =>
      blockOf(block, 0, block === blocks - 1 ? lastBytes : blockSize),
    ),
  );
}

export function partsOf(
  blocks: readonly number[],
  version: number,
  blockSize: number,
  size: number,
): { offset: number; bytes: Buffer }[] {
  return blocks.map((block) => {
    const offset = block * blockSize;
    return { offset, bytes: blockOf(block, version, Math.min(blockSize, size - offset)) };
  });
}

/** Writes a line to the test, and waits while the pipe is full. */
export function report(line: string): void {
  for (;;) {
    try {
      writeSync(1, `${line}\n`);
      return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
}

/** Starts a writer, and kills it some time after it has reported `flushes` flushes: the last flush that it reported. */
export async function killed(
  writer: string,
  args: readonly string[],
  flushes: number,
  delayMs: number,
): Promise<number> {
  const child = spawn(process.execPath, [writer, ...args], { stdio: ['ignore', 'pipe', 'inherit'] });
  let output = '';
  const closed = once(child, 'close');
  await new Promise<void>((resolve, reject) => {
    child.stdout.setEncoding('latin1').on('data', (text: string) => {
      output += text;
      if (output.split('\n').length > flushes + 1) resolve();
    });
    child.on('exit', (code) => reject(new Error(`the writer has ended: ${code}`)));
  });
  await sleep(delayMs);
  child.kill('SIGKILL');
  await closed;
  return Number(output.split('\n').slice(1, -1).at(-1) ?? 0);
}
