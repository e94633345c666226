// A tool that is published as one file. It hashes a file without reading it: it maps empty memory of the file's size
// and hands it to a page-fault handler. A thread hashes the memory, and each page arrives when the thread touches it.
//
//   node tool.mjs FILE

import { createHash } from 'node:crypto';
import { mkdtempSync, realpathSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { getAsset, getRawAsset, isSea } from 'node:sea';
import { parentPort, workerData } from 'node:worker_threads';
import { Mapping, Userfaultfd } from 'userfaultfd';
import { type EmbedOptions, embed, startThread } from 'userfaultfd/embed';
import { handOver, serve } from 'userfaultfd/serve';

/** Finds the bundle and koffi's binary: files beside each other, or assets of a single executable. */
function bundle(): Pick<EmbedOptions, 'entry' | 'koffi'> {
  if (isSea()) {
    return {
      entry: { code: getAsset('tool.cjs', 'utf8') },
      koffi: new Uint8Array(getRawAsset('koffi.node') as ArrayBuffer),
    };
  }
  const file = realpathSync(process.argv[1] as string);
  return { entry: file, koffi: join(dirname(file), 'koffi.node') };
}

interface Task {
  socket: string;
  bytes: number;
}

/** Runs in a thread of its own, as the guest. */
function hash(): void {
  const { socket, bytes }: Task = workerData;
  using uffd = Userfaultfd.open({ features: ['event-remove'] });
  using memory = Mapping.anonymous(Math.ceil(bytes / uffd.pageSize) * uffd.pageSize);
  uffd.register(memory.address, memory.length);
  const region = { start: memory.address, length: memory.length, offset: 0, pageSize: uffd.pageSize };
  handOver(socket, [region], uffd.fd).close();
  parentPort?.postMessage(createHash('sha256').update(memory.bytes.subarray(0, bytes)).digest('hex'));
}

async function main(file: string): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'lazy-hash-'));
  try {
    const socket = join(folder, 'handler.sock');
    await using server = await serve({ vms: [{ socket, memory: file }] });
    let faults = 0;
    server.on('ended', (guest) => {
      faults = guest.tally.get('faults');
    });
    const task: Task = { socket, bytes: statSync(file).size };
    const thread = startThread('hash', { workerData: task });
    const digest = await new Promise((resolve, reject) => {
      thread.once('message', resolve).once('error', reject);
    });
    await server.close();
    console.log(`${digest}  ${file}`);
    console.error(`${faults} page faults`);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

if (!embed({ ...bundle(), parts: { hash } })) {
  const [, , file] = process.argv;
  if (file === undefined) {
    console.error('usage: tool FILE');
    process.exitCode = 2;
  } else {
    main(file).catch((error) => {
      console.error(`tool: ${error.message}`);
      process.exitCode = 1;
    });
  }
}
