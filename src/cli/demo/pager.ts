// The demo of the pager: threads read a file or a URL through memory of which only a part is resident, first at random
// and then in order, and every byte is compared with a read that does not use the pager.
//
// Rule: this thread never touches the memory. So it can draw progress and handle signals while the readers wait.

import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { resolve } from 'node:path';
import type { Worker } from 'node:worker_threads';
import { startThread } from '../../embed.js';
import { fileSource, httpSource, Pager, type PagerSource, type PagerStats } from '../../pager/index.js';
import { COMMAND } from '../command-file.js';
import { Refusal } from '../exit.js';
import { aborted } from '../signals.js';
import { byteSize, counted, printable } from '../text.js';
import { PagerProgress } from './pager-progress.js';
import { DIGEST_BYTES, type ReaderAnswer, type ReaderCommand, type ReaderPlan } from './pager-reader.js';
import {
  type PagerDemoOptions,
  type PagerReport,
  type Phase,
  phaseOf,
  WRONG_LISTED,
} from './pager-report.js';

/** Most pieces, so that their digests fit into little memory. */
const PIECES_MOST = 2 ** 20;
/** The random phase reads this many times what may be resident, unless the source is smaller. */
const RANDOM_PART = 4;
/** Readers that have not ended by then wait for data. */
const END_MS = 1000;
/** By then the reason is printed, and the exit code is set. */
const EXIT_MS = 100;
const SAMPLE_MS = 20;

/** Whether an argument is a URL, and not the name of a file. */
export function isUrl(source: string): boolean {
  return /^https?:\/\//i.test(source);
}

/** A source as it may be printed: a URL without its user name and password. */
function withoutPassword(source: string): string {
  if (!isUrl(source)) return source;
  const url = new URL(source);
  url.username = '';
  url.password = '';
  return url.href;
}

/** @throws Refusal if the source cannot be opened; the signal's reason */
async function opened(source: PagerSource, resident: number, signal: AbortSignal): Promise<Pager> {
  try {
    return await Pager.open({ source, resident, signal });
  } catch (error) {
    signal.throwIfAborted();
    throw new Refusal((error as Error).message, { cause: error });
  }
}

/** @throws Refusal; the signal's reason */
export async function runPagerDemo(
  options: PagerDemoOptions,
  silent: boolean,
  signal: AbortSignal,
): Promise<PagerReport> {
  const { source, resident, threads, seed } = options;
  const remote = isUrl(source);
  const pager = await opened(remote ? httpSource(source) : fileSource(source), resident, signal);
  const run = new PagerRun(options, pager, new PagerProgress(silent));
  run.progress.say(
    `${printable(withoutPassword(source))}: ${byteSize(pager.size)}, of which ${byteSize(resident)} may be resident; ` +
      `${counted(threads, 'thread')} reading, seed ${seed}`,
  );
  let isClosed = false;
  try {
    const report = await Promise.race([aborted(signal), run.failed, run.all(signal)]);
    isClosed = await run.end();
    return report;
  } finally {
    // If a reader still waits for data, to close would end this process by SIGSEGV, and Node would wait for the reader.
    if (isClosed || (await run.end())) await pager.close();
    else setTimeout(() => process.exit(), EXIT_MS);
  }
}

class PagerRun {
  readonly progress: PagerProgress;
  /** Rejects if a reader fails. */
  readonly failed: Promise<never>;
  readonly #options: PagerDemoOptions;
  readonly #pager: Pager;
  readonly #pieceBytes: number;
  readonly #pieces: number;
  readonly #digests: Uint8Array;
  readonly #read: Float64Array;
  readonly #stop = new Int32Array(new SharedArrayBuffer(4));
  readonly #readers: Worker[];
  readonly #wrong = new Set<number>();
  #residentMost = 0;

  constructor(options: PagerDemoOptions, pager: Pager, progress: PagerProgress) {
    const { threads, source, seed } = options;
    this.progress = progress;
    this.#options = options;
    this.#pager = pager;
    let pieceBytes = pager.blockSize;
    while (pager.size / pieceBytes > PIECES_MOST) pieceBytes *= 2;
    this.#pieceBytes = pieceBytes;
    this.#pieces = Math.ceil(pager.size / pieceBytes);
    const remote = isUrl(source);
    this.#digests = new Uint8Array(new SharedArrayBuffer(remote ? this.#pieces * DIGEST_BYTES : 0));
    this.#read = new Float64Array(new SharedArrayBuffer(8 * threads));
    const plan: Omit<ReaderPlan, 'index'> = {
      ...{ memory: pager.share(), file: remote ? undefined : resolve(source), pieceBytes, threads, seed },
      ...{ digests: this.#digests, read: this.#read, stop: this.#stop },
    };
    this.#readers = Array.from({ length: threads }, (_, index) =>
      startThread('pager-reader', { workerData: { ...plan, index } satisfies ReaderPlan }, COMMAND),
    );
    this.failed = new Promise((_, reject) => {
      for (const reader of this.#readers) reader.once('error', reject);
    });
    this.failed.catch(() => {});
  }

  async all(signal: AbortSignal): Promise<PagerReport> {
    const { resident } = this.#options;
    const { size, blockSize } = this.#pager;
    const pieces = Math.min(this.#pieces, Math.ceil((RANDOM_PART * resident) / this.#pieceBytes));
    const random = await this.#phase({ order: 'random', pieces }, Math.min(size, pieces * this.#pieceBytes));
    const inOrder = await this.#phase({ order: 'in order' }, size);
    const remote = isUrl(this.#options.source);
    if (remote) await this.#download(signal);
    const { failures, userModeOnly } = this.#pager.stats;
    const wrong = [...this.#wrong].sort((one, other) => one - other);
    return {
      ...this.#options,
      source: withoutPassword(this.#options.source),
      ...{ bytes: size, blockSize, userModeOnly, random, inOrder },
      ...{ residentMostBytes: this.#residentMost, failures },
      comparedWith: remote ? 'a second download' : 'read(2)',
      equal: wrong.length === 0 && inOrder.readBytes === size,
      wrong: wrong.slice(0, WRONG_LISTED).map((piece) => piece * this.#pieceBytes),
      ...{ wrongCount: wrong.length, pieceBytes: this.#pieceBytes },
    };
  }

  /** Stops the readers. False: one of them waits for data, and cannot be stopped. */
  async end(): Promise<boolean> {
    this.progress.end();
    Atomics.store(this.#stop, 0, 1);
    const ended = this.#readers.map((reader) => {
      if (reader.threadId < 0) return undefined;
      reader.postMessage('end');
      return once(reader, 'exit');
    });
    const late = new AbortController();
    const tooLong = new Promise<false>((resolve) => {
      const timer = setTimeout(() => resolve(false), END_MS);
      late.signal.addEventListener('abort', () => clearTimeout(timer));
    });
    try {
      return await Promise.race([Promise.all(ended).then(() => true), tooLong]);
    } finally {
      late.abort();
      for (const reader of this.#readers) reader.unref();
    }
  }

  /** Lets all readers do a phase. */
  async #phase(command: ReaderCommand, bytes: number): Promise<Phase> {
    const before = this.#stats();
    const begun = performance.now();
    const sample = () => {
      const stats = this.#stats();
      const { readBytes, durationMs, ...counts } = phaseOf(
        this.#readBytes(),
        performance.now() - begun,
        before,
        stats,
      );
      return { read: readBytes, ms: durationMs, stats: { ...stats, ...counts } };
    };
    this.#read.fill(0);
    await this.progress.follow(command.order, bytes, sample);
    const sampling = setInterval(() => this.#stats(), SAMPLE_MS);
    try {
      const answers = this.#readers.map(async (reader): Promise<ReaderAnswer> => {
        reader.postMessage(command);
        const [answer] = await once(reader, 'message');
        return answer;
      });
      for (const { wrong } of await Promise.all(answers)) for (const piece of wrong) this.#wrong.add(piece);
    } finally {
      clearInterval(sampling);
    }
    const phase = phaseOf(this.#readBytes(), performance.now() - begun, before, this.#stats());
    this.progress.end(command.order, bytes, sample());
    return phase;
  }

  #readBytes(): number {
    return this.#read.reduce((sum, bytes) => sum + bytes, 0);
  }

  /** The pager's counts. */
  #stats(): PagerStats {
    const { stats } = this.#pager;
    this.#residentMost = Math.max(this.#residentMost, stats.residentBytes);
    return stats;
  }

  /** Reads the URL again, without the pager, and compares the digest of each piece. @throws Refusal */
  async #download(signal: AbortSignal): Promise<void> {
    this.progress.say('a second download, to compare with');
    const pieces = new PieceDigests(this.#pieceBytes, (piece, digest) => {
      const place = piece * DIGEST_BYTES;
      const known = this.#digests.subarray(place, place + DIGEST_BYTES);
      if (!digest.subarray(0, DIGEST_BYTES).equals(known)) this.#wrong.add(piece);
    });
    try {
      for await (const chunk of await bodyOf(this.#options.source, signal)) pieces.add(chunk);
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof Refusal) throw error;
      const { cause, message } = error as Error;
      throw new Refusal(
        `the second download has failed: ${(cause as Error | undefined)?.message ?? message}`,
      );
    }
    const bytes = pieces.end();
    if (bytes !== this.#pager.size)
      throw new Refusal(`the second download has ${bytes} bytes, and the pager ${this.#pager.size}`);
  }
}

/** Digests of the pieces of a stream. */
class PieceDigests {
  readonly #pieceBytes: number;
  readonly #use: (piece: number, digest: Buffer) => void;
  #hash = createHash('sha256');
  #bytes = 0;

  constructor(pieceBytes: number, use: (piece: number, digest: Buffer) => void) {
    this.#pieceBytes = pieceBytes;
    this.#use = use;
  }

  add(chunk: Uint8Array): void {
    for (let done = 0; done < chunk.length; ) {
      const more = Math.min(chunk.length - done, this.#pieceBytes - (this.#bytes % this.#pieceBytes));
      this.#hash.update(chunk.subarray(done, done + more));
      this.#bytes += more;
      done += more;
      if (this.#bytes % this.#pieceBytes === 0) this.#next();
    }
  }

  /** Returns how many bytes there were. */
  end(): number {
    if (this.#bytes % this.#pieceBytes !== 0) this.#next();
    return this.#bytes;
  }

  #next(): void {
    this.#use(Math.ceil(this.#bytes / this.#pieceBytes) - 1, this.#hash.digest());
    this.#hash = createHash('sha256');
  }
}

/** The body of a URL, by Node's own client. @throws Refusal; errors of fetch */
async function bodyOf(source: string, signal: AbortSignal): Promise<AsyncIterable<Uint8Array>> {
  const url = new URL(source);
  const { username, password } = url;
  const headers: Record<string, string> = { 'accept-encoding': 'identity' };
  if (username !== '' || password !== '') {
    const credentials = `${decodeURIComponent(username)}:${decodeURIComponent(password)}`;
    headers.authorization = `Basic ${Buffer.from(credentials).toString('base64')}`;
    url.username = '';
    url.password = '';
  }
  const answer = await fetch(url, { signal, headers });
  if (!answer.ok || !answer.body)
    throw new Refusal(`the second download has failed: ${answer.status} ${answer.statusText}`);
  return answer.body;
}
