// The demo's two runs. First, `serve` serves the file to a guest in a process of its own. Then it serves a second
// guest, with the pages of the first guest installed ahead. However the demo ends, it leaves no process, socket or
// folder behind.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ServeOptions, type Server, type Session, serve } from '../../serve/index.js';
import { Refusal } from '../exit.js';
import { Guest } from '../guest/guest.js';
import { aborted } from '../signals.js';
import { printable } from '../text.js';
import { checkWritable, sizeOf } from './file.js';
import type { DemoProgress } from './progress.js';
import { aboutOf, createReport, type DemoOptions, type Report } from './report.js';

/** @throws what `serve` throws; Refusal; GuestError; the signal's reason */
export async function runDemo(
  options: DemoOptions,
  progress: DemoProgress,
  signal: AbortSignal,
): Promise<Report> {
  const { record } = options;
  const fileBytes = sizeOf(options.file);
  if (record !== undefined) checkWritable(record);
  const folder = mkdtempSync(join(tmpdir(), 'uffd-demo-'));
  try {
    progress.begin(options, fileBytes);
    const scene = { options, socket: join(folder, 'socket'), progress, signal };
    const trace = record ?? join(folder, 'trace');
    const first = await serveGuest(scene, 'no prefetch', { record: trace, about: aboutOf(options) });
    // A trace that could not be written cannot be prefetched from.
    const again =
      first.recorded?.failure === null
        ? await serveGuest(scene, 'prefetch', { prefetch: [trace] })
        : undefined;
    const { recorded, pages, pageSize } = first;
    return createReport(options, {
      ...{ kernel: 'linux', recorded, fileBytes, pageSize, pages },
      first: first.found,
      again: again?.found,
    });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

interface Scene {
  options: DemoOptions;
  socket: string;
  progress: DemoProgress;
  signal: AbortSignal;
}

/** Serves one guest, which touches every page once. */
async function serveGuest(
  { options, socket, progress, signal }: Scene,
  title: string,
  how: Partial<ServeOptions>,
) {
  const { file: memory, window, wait, placement, threads, seed } = options;
  const vms = [{ socket, memory }];
  await using server = await serve({ vms, window, wait, placement, once: true, ...how });
  server.on('warned', (reason) => void process.stderr.write(`uffd: ${printable(reason)}\n`));
  const ended = endOf(server);
  const guest = new Guest({ socket, memory, handOver: false });
  try {
    await progress.follow(server, title);
    const work = async () => {
      const touched = await guest.touch({ threads, order: 'random', seed, handOver: true });
      const { pages, pageSize } = await guest.handedOver;
      await guest.end();
      const { tally, recorded } = await ended;
      return { found: { ...touched, faults: tally.get('faults') }, pages, pageSize, recorded };
    };
    return await Promise.race([aborted(signal), failureOf(ended), work()]);
  } finally {
    // Restore the terminal first, because the rest may take a while.
    progress.end();
    guest.kill();
    await guest.ended;
  }
}

/**
 * Resolves to the session when its guest has ended. Rejects if the guest cannot be served; its process is then killed,
 * or hangs.
 */
function endOf(server: Server): Promise<Session> {
  return new Promise((resolve, reject) => {
    server.on('refused', reject);
    server.on('ended', (session, end) => {
      if (end.how !== 'failed') resolve(session);
      else reject(told(end.error));
    });
  });
}

/** The error to print: with its stack if its message does not explain it. */
function told(error: Error): Error {
  const { code } = error as NodeJS.ErrnoException;
  return code === undefined ? error : new Refusal(`the guest cannot be served: ${error.message}`);
}

/** Rejects if another promise does, and otherwise never settles. */
function failureOf(promise: Promise<unknown>): Promise<never> {
  return new Promise((_, reject) => {
    promise.catch(reject);
  });
}
