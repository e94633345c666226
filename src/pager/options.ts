// Options of a pager, and their checks.

import {
  checkBoolean,
  checkFunction,
  checkInteger,
  checkOneOf,
  checkOptions,
  outOfRange,
  wrongType,
} from '../errors/arguments.js';
import { BLOCKS_LEAST, type PagerBudget } from './budget.js';
import type { ChunkSource } from './chunk-description.js';
import { type CustomSource, checkSource } from './custom-source.js';
import type { FileSource } from './file-description.js';
import type { HttpSource } from './http-description.js';
import type { ModuleSource } from './module-description.js';
import { checkSink, type Sink } from './sink.js';

/** Where the data comes from. */
export type PagerSource = FileSource | HttpSource | ChunkSource | ModuleSource | CustomSource;

/** A part of the data that cannot be read, for now. */
export interface ReadFailure {
  /** Bytes, from the start of the data. */
  readonly offset: number;
  readonly length: number;
  readonly message: string;
}

/**
 * What happens if data cannot be read. `retry` (default): it is tried again, with growing delays of up to 10 s, and
 * threads that touch it wait; after `deadlineMs` it is poisoned. `poison`: threads that touch it get SIGBUS. A function
 * is called in the program's thread, which must not be asleep in a fault of this memory, and returns one of the two.
 * An error that trying again cannot mend (the data has changed) always poisons.
 */
export type OnReadError = 'retry' | 'poison' | ((failure: ReadFailure) => 'retry' | 'poison');

/** Where changes go, and how. */
export interface Writable {
  /**
   * A path: the source stays as it is, and changed blocks go to the file at that path, an overlay. It is made if it is
   * not there. To see the changes again, open the same source with the same `to` and `blockSize`; another source, or
   * another version of it, is refused. A source of the program or of a module needs an `identity` for that.
   *
   * A sink: its `write` gets the changes, in this thread, which must then never touch the memory. The source must return
   * what was written.
   *
   * Default: to the source itself, which is a `fileSource`, or a `moduleSource` whose object has `write` (a `Sink`).
   */
  to?: string | Sink;
  /**
   * What a completed `flush` survives, if changes go to a file: the end of the process (`process`, the default), or also
   * a loss of power (`power`: two calls of fdatasync for each batch of blocks; three for blocks new in an overlay).
   */
  durability?: 'process' | 'power';
  /**
   * Path of the journal, if changes go to a file. Default: beside the file, with `.uffd-journal` appended. With
   * `durability: 'power'`, that of a block device needs another one, on a disk. Pass the same path each time, also to
   * `Pager.recover`: a journal that is not found is not recovered.
   */
  journal?: string;
  /** Milliseconds between two writes of all changes in the background; 0: only when memory is short, and at `flush`. Default 1000. */
  flushMs?: number;
}

/** What all pagers have in common. */
interface CommonOptions {
  /** Bytes of data in memory at most: 16 blocks or more. Or a limit that it shares with other pagers (`Pager.budget`). */
  resident: number | PagerBudget;
  /** Bytes that are read, evicted and written as one: a power of two, from 4096 to 4 MiB. Default 64 KiB. */
  blockSize?: number;
  /** Whether system calls that touch missing pages are served, too. 'auto' (default): if the kernel allows it. */
  userModeOnly?: boolean | 'auto';
  /** File to record all faults and answers to, for `uffd replay`. Default: none. */
  record?: string;
  /** Ends the opening; later it has no effect. */
  signal?: AbortSignal;
}

export interface PagerOptions extends CommonOptions {
  source: PagerSource;
  /** Bytes that are read ahead for one sequential reader at most; 0: nothing is read ahead. Default 4 MiB. */
  readAhead?: number;
  onError?: OnReadError;
  /**
   * Milliseconds after which data that cannot be read is poisoned, or that a source does not answer for: from when the
   * source is asked first, and again from each part that arrives. With `poison`, for a source that does not answer.
   * Default: never.
   */
  deadlineMs?: number;
  /** Whether the program may write, and where the changes go. true: to the source itself. Default: it may not. */
  writable?: boolean | Writable;
}

export interface AnonymousPagerOptions extends CommonOptions {
  /** Folder of the swap file, which has no name there and is gone when the process ends. Default: the system's folder for temporary files. */
  swap?: string;
  /**
   * How blocks are compressed in the swap file. `auto` (default): with zstd, where that saves an eighth or more, and not
   * at all without zstd (`stats.compression`). zstd is a part of Node from 22.15 on; else libzstd.so.1 is needed.
   */
  compress?: 'auto' | 'zstd' | 'none';
  /** Whether the swap file is encrypted, with a key that is never written anywhere. Default false. */
  encrypt?: boolean;
}

export const KIB = 1024;
export const BLOCK_SIZE = 64 * KIB;
export const READ_AHEAD = 4 * 2 ** 20;
export const FLUSH_MS = 1000;
/** Blocks are numbered with 31 bits. */
export const BLOCKS_MOST = 2 ** 31 - 1;

/** @throws TypeError, RangeError */
export function checkCommon(options: CommonOptions): void {
  checkOptions(options, 'options');
  const { blockSize = BLOCK_SIZE, resident, userModeOnly = 'auto', record, signal } = options;
  checkInteger(blockSize, 'blockSize', 4 * KIB, 4 * 2 ** 20);
  if (!Number.isInteger(Math.log2(blockSize))) throw outOfRange('blockSize', 'a power of two', blockSize);
  if (typeof resident === 'object') checkBudget(resident);
  checkInteger(bytesOf(resident), 'resident', BLOCKS_LEAST * blockSize, Number.MAX_SAFE_INTEGER);
  checkOneOf(userModeOnly, 'userModeOnly', [true, false, 'auto']);
  if (record !== undefined && typeof record !== 'string') throw wrongType('record', 'a path', record);
  if (signal !== undefined && !(signal instanceof AbortSignal))
    throw wrongType('signal', 'an AbortSignal', signal);
}

/** @throws TypeError */
function checkBudget(budget: PagerBudget): void {
  checkOptions(budget, 'resident');
  if (budget.kind !== 'budget' || !(budget.state instanceof SharedArrayBuffer))
    throw wrongType('resident', 'a number of bytes, or what Pager.budget returns', budget);
}

/** The bytes that may be in memory. */
export function bytesOf(resident: number | PagerBudget): number {
  return typeof resident === 'object' ? resident.bytes : resident;
}

/** @throws TypeError, RangeError */
export function checkPagerOptions(options: PagerOptions): void {
  checkCommon(options);
  const { source, readAhead = READ_AHEAD, onError = 'retry', deadlineMs, writable = false } = options;
  checkOptions(source, 'source');
  if ('kind' in source) checkOneOf(source.kind, 'source.kind', ['file', 'http', 'chunks', 'module']);
  else checkSource(source, 'source');
  checkInteger(readAhead, 'readAhead', 0, 2 ** 30);
  if (typeof onError === 'function') checkFunction(onError, 'onError');
  else checkOneOf(onError, 'onError', ['retry', 'poison']);
  if (deadlineMs !== undefined) checkInteger(deadlineMs, 'deadlineMs', 0, 2 ** 31 - 1);
  if (writable === true) checkWritable({}, source);
  else if (writable !== false) checkWritable(writable, source);
}

function checkWritable(writable: Writable, source: PagerSource): void {
  checkOptions(writable, 'writable');
  const { to, durability, journal, flushMs = FLUSH_MS } = writable;
  const kind = 'kind' in source ? source.kind : 'program';
  if (durability !== undefined) checkOneOf(durability, 'writable.durability', ['process', 'power']);
  if (journal !== undefined && (typeof journal !== 'string' || journal === ''))
    throw wrongType('writable.journal', 'a path', journal);
  checkInteger(flushMs, 'writable.flushMs', 0, 2 ** 31 - 1);
  if (typeof to === 'string') {
    if (to === '') throw outOfRange('writable.to', 'a path, or an object with write', "''");
    if (kind === 'program' && (source as CustomSource).identity === undefined)
      throw wrongType('source.identity', 'a string, because writable.to is a file', undefined);
    return;
  }
  if (to === undefined) {
    if (kind !== 'file' && kind !== 'module')
      throw outOfRange(
        'writable.to',
        'a path, or an object with write: this source cannot be written to',
        to,
      );
  } else {
    checkSink(to, 'writable.to', 'a path, or an object with write');
    if (kind === 'http' || kind === 'chunks') {
      const what = kind === 'http' ? 'a remote file' : 'a snapshot';
      throw outOfRange(
        'writable.to',
        `a path: ${what} is pinned to one version, and no sink can change it`,
        to,
      );
    }
  }
  if (kind === 'file' && to === undefined) return;
  for (const [name, value] of Object.entries({ durability, journal })) {
    if (value !== undefined)
      throw outOfRange(`writable.${name}`, 'left out, because changes go to code and not to a file', value);
  }
}

/** @throws TypeError, RangeError */
export function checkAnonymousOptions(length: number, options: AnonymousPagerOptions): void {
  checkInteger(length, 'length', 1, Number.MAX_SAFE_INTEGER);
  checkCommon(options);
  const { swap, compress = 'auto', encrypt = false } = options;
  if (swap !== undefined && typeof swap !== 'string') throw wrongType('swap', 'the path of a folder', swap);
  checkOneOf(compress, 'compress', ['auto', 'zstd', 'none']);
  checkBoolean(encrypt, 'encrypt');
}
