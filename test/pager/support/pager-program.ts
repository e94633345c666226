// Programs of the tests of the pager that may be ended by a signal: see `program` in pager-tools.ts. Each prints what it
// has seen with `say`, which works even if the process dies right after it.
//
//   node pager-program.js CASE ARGUMENT…

import { once } from 'node:events';
import { closeSync, openSync, statfsSync, truncateSync, unlinkSync, writeFileSync, writeSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { parentPort, Worker } from 'node:worker_threads';
import {
  fileSource,
  httpSource,
  moduleSource,
  Pager,
  PagerMemory,
  type PagerOptions,
} from '../../../src/pager/index.js';
import { generator } from '../../support/harness.js';
import { holdings } from '../../support/real-kernel.js';
import { FileServer } from './http-server.js';
import { controlOf, DOES, Does, READS, SOURCE, wrongByte } from './pager-source.js';
import { KIB, MIB, type PagerUser, userOf } from './pager-tools.js';

const [, , what = '', ...args] = process.argv;
const [first = '', second = ''] = args;

function say(text: unknown): void {
  writeSync(1, `${text}\n`);
}

/** A pager of a controlled source. */
async function controlled(
  options: Partial<Parameters<typeof Pager.open>[0]> = {},
  does = Does.READ,
): Promise<{ pager: Pager; words: Int32Array; user: PagerUser }> {
  const control = controlOf(4 * MIB);
  Atomics.store(control.words, DOES, does);
  const pager = await Pager.open({ source: moduleSource(SOURCE, control), resident: MIB, ...options });
  return { pager, words: control.words, user: await userOf(pager) };
}

/** Reads all bytes that are right, then some of a file that has changed. */
async function changed(change: () => void): Promise<void> {
  const pager = await Pager.open({ source: fileSource(first), resident: MIB, readAhead: 0 });
  const bytes = pager.bytes;
  say(`before ${wrongByte(bytes.subarray(0, MIB), 0)}`);
  change();
  say(`kept ${wrongByte(bytes.subarray(MIB - 1000, MIB), MIB - 1000)}`);
  say(`after ${bytes[2 * MIB]}`);
}

/** Options of a pager whose data never comes. */
async function silent(kind: string): Promise<Pick<PagerOptions, 'source'>> {
  const control = controlOf(4 * MIB);
  switch (kind) {
    case 'module that stalls':
      Atomics.store(control.words, DOES, Does.STALL);
      return { source: moduleSource(SOURCE, control) };
    case 'module that fails':
      Atomics.store(control.words, DOES, Does.FAIL);
      return { source: moduleSource(SOURCE, control) };
    case 'server that stalls': {
      const server = new FileServer(Buffer.alloc(4 * MIB, 1));
      await server.listen();
      server.answers.push((_, response, range) => server.serve(response, range));
      server.answer = () => {};
      server.unref();
      return { source: httpSource(server.url()) };
    }
    default:
      return { source: { size: 4 * MIB, read: () => new Promise(() => {}) } };
  }
}

const CASES: Record<string, () => unknown> = {
  truncated: () => changed(() => truncateSync(first, 3 * MIB)),
  'truncated-below': () => changed(() => truncateSync(first, MIB)),
  rewritten: () => changed(() => writeFileSync(first, Buffer.alloc(4 * MIB, 0x99))),

  async 'write-to-read-only'() {
    const pager = await Pager.open({ source: fileSource(first), resident: MIB });
    say(pager.bytes[5]);
    pager.bytes[5] = 1;
    say('written');
  },

  async poison() {
    const { pager, words } = await controlled({ onError: 'poison' });
    say(wrongByte(pager.view(0, 100), 0));
    Atomics.store(words, DOES, Does.FAIL);
    say(`read ${pager.view(MIB, 1)[0]}`);
  },

  async deadline() {
    const { pager, words } = await controlled({ deadlineMs: 300 }, Does.FAIL);
    const begun = performance.now();
    await pager.prefetch({ offset: 0, length: 1 });
    const took = performance.now() - begun;
    say(`poisoned ${pager.stats.poisonedBytes}, ${took >= 300}, ${Atomics.load(words, READS) > 1}`);
    say(`read ${pager.view(0, 1)[0]}`);
  },

  async permanent() {
    const { pager } = await controlled({}, Does.FAIL_FOR_GOOD);
    say(`read ${pager.view(0, 1)[0]}`);
  },

  /** A function decides, while a thread waits. */
  async decides() {
    let asked = 0;
    const { user } = await controlled(
      {
        onError: ({ offset, length, message }) => {
          say(`${offset} ${length} ${message}`);
          return ++asked < 3 ? 'retry' : 'poison';
        },
      },
      Does.FAIL,
    );
    say(`read ${await user.bytes(MIB, 1)}`);
  },

  /** A failure that passes, seen by threads of which one sleeps. */
  async passes() {
    const { words, user, pager } = await controlled({}, Does.FAIL);
    const reading = user.wrong(0, MIB);
    while (Atomics.load(words, READS) < 4) await sleep(1);
    say(`failures ${pager.stats.failures >= 3}`);
    Atomics.store(words, DOES, Does.FAIL_HALFWAY);
    while (Atomics.load(words, READS) < 5) await sleep(1);
    Atomics.store(words, DOES, Does.THROW_UNDEFINED);
    while (Atomics.load(words, READS) < 6) await sleep(1);
    Atomics.store(words, DOES, Does.READ);
    say(`read ${await reading}`);
    await user.end();
    await pager.close();
    say('closed');
  },

  /** Messages that differ in a number alone. */
  async 'fails-by-numbers'() {
    let reads = 0;
    const source = {
      size: 4 * MIB,
      read(_: number, into: Uint8Array): void {
        if (++reads <= 5) throw new Error(`attempt ${reads} came to nothing`);
        into.fill(1);
      },
    };
    const pager = await Pager.open({ source, resident: MIB });
    await pager.withPinned({ length: 1 }, () => say(`byte ${pager.bytes[0]}, reads ${reads >= 6}`));
    await pager.close();
  },

  /** The disk of the recording is full; `first`: the file to page, or nothing for a module. */
  async 'record-into-full-disk'() {
    const control = controlOf(4 * MIB);
    const source = first ? fileSource(first) : moduleSource(SOURCE, control);
    const pager = await Pager.open({ source, resident: MIB, record: '/dev/full' });
    say(`wrong ${wrongByte(pager.view(0, 4 * MIB), 0)}`);
    await pager.close();
  },

  async 'touch-after-close'() {
    const { pager } = await controlled();
    const view = pager.view(0, 100);
    say(view[1]);
    await pager.close();
    try {
      say(pager.bytes);
    } catch (error) {
      say((error as NodeJS.ErrnoException).code);
    }
    say(`read ${view[1]}`);
  },

  async 'close-asleep'() {
    const { pager, user } = await controlled({}, Does.STALL);
    user.bytes(MIB, 1).then((bytes) => say(`read ${bytes}`));
    await user.asleep();
    say('asleep');
    await pager.close({ discard: true });
    // The thread ends the process as soon as it runs.
    await sleep(20_000);
  },

  /** Ends while a thread sleeps in a fault that is never answered, by process.exit or because nothing is left to do. */
  async 'end-asleep'() {
    const pager = await Pager.open({ ...(await silent(second)), resident: MIB });
    const user = await userOf(pager);
    user.bytes(MIB, 1).then((bytes) => say(`read ${bytes}`));
    await user.asleep();
    say('asleep');
    if (first === 'exit') process.exit(7);
    process.exitCode = 7;
    user.unref();
  },

  /** A pager does not keep the process alive. */
  async 'end-open'() {
    const pager = await Pager.open({ source: fileSource(first), resident: MIB });
    const other = await Pager.anonymous(MIB, { resident: MIB });
    other.bytes[5] = 6;
    say(pager.bytes[5]);
  },

  /** Ended while a file's pager is open in a worker. */
  async 'worker-ends'() {
    const worker = new Worker(new URL(import.meta.url), { argv: ['in-worker', first] });
    await new Promise((resolve) => worker.once('message', resolve));
    await worker.terminate();
    say('terminated');
  },
  async 'in-worker'() {
    const pager = await Pager.open({ source: fileSource(first), resident: MIB });
    parentPort?.postMessage(pager.bytes[5]);
    await sleep(1e6);
  },

  async uncaught() {
    const pager = await Pager.open({ source: fileSource(first), resident: MIB });
    say(pager.bytes[5]);
    throw new Error('of the program');
  },

  async 'user-mode-only'() {
    const pager = await Pager.open({
      source: fileSource(first),
      resident: MIB,
      userModeOnly: true,
      readAhead: 0,
    });
    say(pager.stats.userModeOnly);
    const fd = openSync(second, 'w');
    const code = (offset: number): unknown => {
      try {
        return writeSync(fd, pager.view(offset, 1000));
      } catch (error) {
        return (error as NodeJS.ErrnoException).code;
      }
    };
    say(code(MIB));
    say(await pager.withPinned({ offset: MIB, length: 1000 }, () => code(MIB)));
    say(wrongByte(pager.view(0, 4 * MIB), 0));
    say(code(2000));
    closeSync(fd);
    await pager.close();
    // A writable one, whose limit is passed.
    const swap = await Pager.anonymous(2 * MIB, { resident: MIB, swap: dirname(second), userModeOnly: true });
    for (let at = 0; at < swap.size; at += 4 * KIB) swap.bytes[at] = 1 + ((at / (4 * KIB)) % 255);
    for (let at = 0; at < swap.size; at += 4 * KIB)
      if (swap.bytes[at] !== 1 + ((at / (4 * KIB)) % 255)) say(`wrong at ${at}`);
    await swap.close();
    say('closed');
  },

  /** A pager that needs a privilege that this user may not have. */
  async 'refused-user'() {
    const record = join(dirname(second), 'trace');
    const open = (): Promise<Pager> =>
      Pager.open({ source: fileSource(first), resident: MIB, userModeOnly: false, record });
    await open().then(
      () => say('opened'),
      (error) => say(error.code),
    );
    const { descriptors } = holdings();
    for (let times = 0; times < 5; times++) await open().catch(() => {});
    say(`descriptors ${holdings().descriptors - descriptors}`);
  },

  /** Writes versions of blocks, to an overlay if it is named, and says which are flushed, until it is killed. */
  async 'writes-until-killed'() {
    const pager = await Pager.open({
      source: fileSource(first),
      resident: 16 * 16 * KIB,
      blockSize: 16 * KIB,
      writable: { flushMs: 20, ...(args[3] && { to: args[3] }), ...(args[4] && { journal: args[4] }) },
    });
    const random = generator(Number(second));
    const words = new Uint32Array(pager.bytes.buffer, 0, pager.size / 4);
    const perBlock = (16 * KIB) / 4;
    for (let version = Number(args[2]); ; version++) {
      for (let count = 0; count < 6; count++) {
        const block = random(words.length / perBlock);
        words.fill(version, block * perBlock, (block + 1) * perBlock);
      }
      if (version % 3 === 0) {
        await pager.flush();
        say(version);
      }
    }
  },

  /**
   * With a small disk: changes stay, flush rejects, and works when there is room. The first folder is in it, and the
   * second is the one to use, which is the same or is on a disk whose blocks are a file in the first.
   */
  async 'full-target'() {
    const path = join(second, 'target');
    writeFileSync(path, '');
    truncateSync(path, 8 * MIB);
    const durability = args[2] === 'power' ? 'power' : 'process';
    const writable = { flushMs: 10, durability } as const;
    await full(await Pager.open({ source: fileSource(path), resident: MIB, writable }), true);
  },
  async 'full-swap'() {
    await full(await Pager.anonymous(8 * MIB, { resident: MIB, swap: second, compress: 'none' }), false);
  },

  /** Reads 48 MiB, for which the memory does not suffice until the test gives more. */
  async 'short-of-memory'() {
    const source = first === 'file' ? fileSource(second) : moduleSource(SOURCE, controlOf(48 * MIB));
    const pager = await Pager.open({ source, resident: 256 * MIB });
    const user = await userOf(pager);
    await user.wrong(0, MIB);
    say('ready');
    say(`read ${await user.wrong(0, pager.size)}`);
    say(`failures ${pager.stats.failures > 0}, poisoned ${pager.stats.poisonedBytes}`);
    await user.end();
    await pager.close();
    say('closed');
  },

  /** Writes until there is no memory left, and the kernel kills the process. */
  async 'killed-for-memory'() {
    const pager = await Pager.open({ source: fileSource(first), resident: 256 * MIB, writable: true });
    const user = await userOf(pager);
    await user.fill(0, 4 * MIB, 1);
    await pager.flush();
    say('flushed');
    for (let at = 0; at < pager.size; at += MIB) await user.fill(at, MIB, 2);
    say('written');
  },

  async swaps() {
    const pager = await Pager.anonymous(4 * MIB, { resident: MIB, compress: 'none' });
    const user = await userOf(pager);
    const hammering = user.hammer({ first: 1, threads: 1, own: 0, ms: 400, random: true });
    say('ready');
    const { wrong, shadow } = await hammering;
    const bytes = await user.bytes(0, pager.size);
    say(`read ${wrong > 0 ? `${wrong} wrong` : bytes.findIndex((byte, at) => byte !== shadow[at])}`);
    await user.end();
    await pager.close();
  },

  async 'sink-fails'() {
    let fails = true;
    const data = new Uint8Array(MIB);
    const pager = await Pager.open({
      source: {
        size: data.length,
        read: (offset, into) => into.set(data.subarray(offset, offset + into.length)),
      },
      resident: MIB,
      writable: {
        flushMs: 1,
        to: {
          async write(offset, bytes) {
            await sleep(1);
            // One of the blocks fails, the others do not.
            if (fails && offset === 0) throw new Error('the sink is full');
            data.set(bytes, offset);
          },
        },
      },
    });
    const user = await userOf(pager);
    for (let times = 0; times < 5; times++) {
      await user.fill(0, 1, 5);
      await user.fill(512 * KIB, 1, times);
      await pager.flush().catch(() => {});
    }
    say('failed');
    fails = false;
    await pager.flush();
    say(data[0] === 5 && data[512 * KIB] === 4 ? 'written' : 'lost');
    await user.end();
    await pager.close();
  },

  /** What a machine without zstd does: this process does not find it. */
  async 'without-zstd'() {
    for (const compress of ['auto', 'none', 'zstd'] as const) {
      try {
        const pager = await Pager.anonymous(MIB, { resident: MIB, compress });
        say(`${compress}: ${pager.stats.compression}`);
        await pager.close();
      } catch (error) {
        const { name, code, message } = error as NodeJS.ErrnoException;
        say(`${name} ${code} ${message}`);
      }
    }
  },

  async 'reads-slowly'() {
    const { pager, user, words } = await controlled({}, Does.STALL);
    const reading = user.wrong(0, 4 * MIB);
    const flip = setInterval(
      () => Atomics.store(words, DOES, Atomics.load(words, DOES) === 0 ? Does.STALL : 0),
      7,
    );
    say('ready');
    say(`read ${await reading}`);
    clearInterval(flip);
    Atomics.store(words, DOES, Does.READ);
    await user.end();
    await pager.close();
  },
  /** The thread that has opened a pager ends, and another one touches its memory. First: a file, or ''; then how. */
  async 'opener-ends'() {
    const { thread, memory } = await opener(first || undefined, second as 'exits' | 'returns');
    const user = await userOf(memory);
    say(`read ${wrongByte(await user.bytes(0, 100), 0)}`);
    thread.postMessage('end');
    await once(thread, 'exit');
    say('ended');
    await user.bytes(MIB, 100);
    say('the memory can still be read');
  },

  /** The only thread that has loaded koffi is terminated. */
  async 'opener-is-terminated'() {
    const thread = new Worker(new URL('./pager-opener.js', import.meta.url), {
      workerData: { path: undefined, how: 'stays' },
    });
    await once(thread, 'message');
    await thread.terminate();
    say('terminated');
  },
};

/** A thread that opens a pager, and the pager's memory. */
async function opener(
  path: string | undefined,
  how: 'exits' | 'returns' | 'stays',
): Promise<{ thread: Worker; memory: PagerMemory }> {
  const thread = new Worker(new URL('./pager-opener.js', import.meta.url), { workerData: { path, how } });
  const [shared] = await once(thread, 'message');
  return { thread, memory: PagerMemory.attach(shared) };
}

/** `keeps`: whether changes outlive the pager, so that it cannot be closed before they are written. */
async function full(pager: Pager, keeps: boolean): Promise<void> {
  const filler = join(first, 'filler');
  const { bavail, bsize } = statfsSync(first);
  writeFileSync(filler, Buffer.alloc(bavail * bsize - 300 * KIB));
  const user = await userOf(pager);
  const filling = (async () => {
    for (let at = 0; at < 3 * MIB; at += 64 * KIB) await user.fill(at, 64 * KIB, 1 + at / (64 * KIB));
  })();
  let code: unknown;
  for (let tries = 0; !code && tries < 1000; tries++) {
    await pager.flush().catch((error) => {
      code = `${error.code} ${error.message}`;
    });
    await sleep(5);
  }
  say(`flush: ${code}`);
  if (keeps) await pager.close().catch((error) => say(`close: ${error.code}`));
  // It still serves what can be had.
  say(`closed: ${pager.closed}`);
  unlinkSync(filler);
  await filling;
  await pager.flush();
  for (let at = 0; at < 3 * MIB; at += 64 * KIB) {
    const bytes = await user.bytes(at, 64 * KIB);
    const value = 1 + at / (64 * KIB);
    if (!bytes.every((byte) => byte === value)) say(`wrong at ${at}`);
  }
  say('flushed');
  await user.end();
  await pager.close();
}

await CASES[what]?.();
