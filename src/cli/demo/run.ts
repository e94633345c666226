// One run of the demo: watched memory of a file's size, a loop that fills it from the file, threads that touch
// it, and two hashes that must be equal. However a run ends, no thread is left behind.

import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { freemem } from 'node:os';
import { Mapping, Userfaultfd } from '../../index.js';
import { Refusal } from '../exit.js';
import { aborted } from '../signals.js';
import { byteSize } from '../text.js';
import { Board } from './board.js';
import type { HashTask, Touched, TouchTask } from './messages.js';
import type { Progress } from './progress.js';
import { checkWritable, type Recorded } from './recording.js';
import { aboutOf, createReport, type DemoOptions, type Report } from './report.js';
import { LoopThread, Thread } from './threads.js';

/** @throws what Mapping and Userfaultfd throw; Refusal; the signal's reason */
export async function runDemo(
  options: DemoOptions,
  progress: Progress,
  signal: AbortSignal,
): Promise<Report> {
  using source = Mapping.file(options.file, { writable: false });
  checkRoom(source.length);
  if (options.record !== undefined) checkWritable(options.record);
  using uffd = Userfaultfd.open();
  const { pageSize, userModeOnly = false, via } = uffd;
  const pages = Math.ceil(source.length / pageSize);
  using memory = Mapping.anonymous(pages * pageSize);
  uffd.register(memory.address, memory.length);
  const board = Board.forPages(pages);
  progress.begin(options, source.length, pages);
  const scene = { uffd, memory, source, board, pageSize, pages };
  const { touched, recorded } = await populate(scene, options, progress, signal);
  progress.hashing();
  // The userfaultfd is closed: a page that nobody has filled would be zeros now, and the hashes differ.
  const [memorySha256, fileSha256] = await hashBoth(options.file, memory, source.length, signal);
  return createReport(options, {
    kernel: 'linux',
    recorded,
    fileBytes: source.length,
    pageSize,
    pages,
    faults: board.faults,
    fills: board.fills,
    userModeOnly,
    via: via ?? 'syscall',
    touched,
    memorySha256,
    fileSha256,
  });
}

interface Scene {
  uffd: Userfaultfd;
  memory: Mapping;
  source: Mapping;
  board: Board;
  pageSize: number;
  pages: number;
}

/** Has every page touched once, and so filled. All threads have ended, and the userfaultfd is closed, after it. */
async function populate(
  scene: Scene,
  options: DemoOptions,
  progress: Progress,
  signal: AbortSignal,
): Promise<{ touched: Touched[]; recorded: Recorded | undefined }> {
  const { uffd, memory, source, board, pageSize, pages } = scene;
  const { wait, window, seed, threads, record } = options;
  const loop = new LoopThread(uffd, {
    board: board.shared,
    memory: memory.address,
    source: source.address,
    wait,
    window,
    ...(record === undefined ? {} : { record: { file: record, about: aboutOf(options) } }),
  });
  const crew: Thread[] = [];
  let touched: Touched[] = [];
  let recorded: Recorded | undefined;
  try {
    for (let index = 0; index < threads; index++) {
      const task = { board: board.shared, memory: memory.share(), pageSize, pages, seed, index, threads };
      const script = new URL('./touch-worker.js', import.meta.url);
      crew.push(new Thread(`touching thread ${index + 1}`, script, task satisfies TouchTask));
    }
    const work = async (): Promise<Touched[]> => {
      await Promise.all([loop.ready, ...crew.map((thread) => thread.next<'ready'>())]);
      board.begin();
      progress.watch(board);
      return Promise.all(crew.map((thread) => thread.next<Touched>()));
    };
    touched = await Promise.race([aborted(signal), loop.lost, work()]);
  } catch (error) {
    // The terminal first: whatever follows may take a while.
    progress.end();
    throw error;
  } finally {
    board.stop();
    recorded = await loop.end();
    await Promise.all(crew.map((thread) => thread.ended));
    progress.end();
  }
  return { touched, recorded };
}

/** The memory's digest, made by a thread of its own, and the file's, read as a stream meanwhile. */
async function hashBoth(
  file: string,
  memory: Mapping,
  length: number,
  signal: AbortSignal,
): Promise<[string, string]> {
  const task: HashTask = { memory: memory.share(), length };
  const hasher = new Thread('the hashing thread', new URL('./hash-worker.js', import.meta.url), task);
  try {
    return await Promise.race([
      aborted(signal),
      Promise.all([hasher.next<string>(), hashFile(file, length, signal)]),
    ]);
  } finally {
    await hasher.terminate();
  }
}

export async function hashFile(file: string, length: number, signal: AbortSignal): Promise<string> {
  const hash = createHash('sha256');
  const stream = createReadStream(file, { end: length - 1, highWaterMark: 2 ** 20, signal });
  for await (const chunk of stream) hash.update(chunk as Buffer);
  return hash.digest('hex');
}

/** The watched memory fills up completely: better refused now than killed for it later. */
export function checkRoom(bytes: number): void {
  const limit = process.constrainedMemory() || Number.POSITIVE_INFINITY;
  const available = Math.min(freemem(), limit);
  if (bytes <= available) return;
  throw new Refusal(
    `the file's ${byteSize(bytes)} would all be put into memory, and ${byteSize(available)} are available; ` +
      'choose a smaller file',
  );
}
