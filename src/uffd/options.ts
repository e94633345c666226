// Options of the public API. Names and defaults are part of the interface.

import { ADAPTIVE, Option, SourceKind, ZERO_RUNS } from '../bindings/core.js';
import { checkInteger, checkOptions } from '../errors/arguments.js';
import type { Feature, Operation } from '../kernel/features.js';
import type { Kernel } from '../kernel/port.js';
import type { Placement } from '../scheduling/affinity.js';
import type { TraceWriter } from '../trace/writer.js';
import type { PAGE_STATES } from './core.js';
import type { Wait } from './event-loop.js';
import type { HandlerOf, OnError } from './handler.js';
import type { RegisteredRange } from './registered-range.js';

export interface OpenOptions {
  /** Features to turn on. If the kernel lacks one, the error names the version that brings it. */
  features?: Iterable<Feature>;
  /** Features to turn on if the kernel has and allows them. */
  optional?: Iterable<Feature>;
  /**
   * Serve only faults of user mode, which needs no privilege. 'auto' (default): only if the kernel refuses a descriptor
   * for all faults.
   */
  userModeOnly?: boolean | 'auto';
  /**
   * System call or /dev/userfaultfd. 'auto' (default): the system call, or the device if the kernel refuses the system
   * call.
   */
  via?: 'auto' | 'syscall' | 'device';
  /** The process whose memory is watched: when it exits, `closed` is called. Default: this process. */
  pid?: number;
  /** The kernel to run on. Default: Linux, through koffi. */
  kernel?: Kernel;
  /** Records everything that crosses the port, until this is closed or released. One writer records one userfaultfd. */
  record?: TraceWriter;
}

/** What a kernel offers. */
export interface Probe {
  /**
   * How the descriptor was opened. `probe` tries descriptors for all faults before those for faults of user mode only.
   */
  readonly via: 'syscall' | 'device';
  readonly userModeOnly: boolean;
  /** All features of this kernel. Turning on 'event-fork' also needs CAP_SYS_PTRACE. */
  readonly features: ReadonlySet<Feature>;
  /** The operations of the descriptor itself. `register` returns the operations of a range. */
  readonly operations: ReadonlySet<Operation>;
  /** Bytes of a page. */
  readonly pageSize: number;
}

/** Options of `probe`. */
export type ProbeOptions = Pick<OpenOptions, 'via' | 'userModeOnly' | 'kernel'>;

export interface RegisterOptions {
  /** Bytes of a page of this memory. By default `register` reads it from /proc/PID/smaps, and throws if that fails. */
  pageSize?: number;
}

/**
 * How many pages are installed for a fault at most, its own page included. A number from 1: the missing pages in the
 * aligned block of this many pages that holds the fault. `adaptive`: the window is one page at first, and doubles each
 * time a fault follows right after the last window, up to 256 KiB. So a sequential run gets larger and larger windows,
 * and random access gets single pages.
 */
export type Window = number | 'adaptive';

export interface SourceOptions {
  /** How many pages to install for a fault, the missing pages around it included. Default: 1. */
  window?: Window;
  /**
   * How faults of removed pages are answered. `'zeros'`: with zeros, which is what Linux does without a userfaultfd.
   * `'ask'` (default): by the handler. If the source is 'zeros', they are answered with zeros in either case.
   */
  removed?: 'ask' | 'zeros';
  /**
   * Whether a fault that is answered with zeros (of a removed page, or from a source of 'zeros') also installs zeros
   * around it. The first such fault installs 2 pages, and each further one twice as many, up to the aligned 2 MiB that
   * hold it. Use this for private anonymous memory, where pages of zeros take no memory. Default: false.
   */
  zeroRuns?: boolean;
}

export interface WrapOptions extends Pick<OpenOptions, 'kernel' | 'record'> {
  /** The features that were turned on when the descriptor was opened. They decide which events to expect. */
  features?: Iterable<Feature>;
  /** The ranges that are registered already: `ranges` of the object that released the descriptor. */
  ranges?: Iterable<RegisteredRange>;
  /**
   * The process whose memory is watched. When it exits or calls exec, the watch ends and `closed` gets ESRCH. Without
   * `pid`, only a later fill shows that the process is gone, because the descriptor reports neither.
   */
  pid?: number;
}

/** Options of a fill. */
export interface FillOptions {
  /** Do not wake the waiters. They sleep until `wake` is called for them. */
  dontWake?: boolean;
}

/** Options of `copy` and `continue`. */
export interface CopyOptions extends FillOptions {
  /** Install the pages write-protected. The range must be registered for write-protect. */
  writeProtect?: boolean;
}

/** Options of `move`. */
export interface MoveOptions extends FillOptions {
  /** Skip pages that the source does not have, instead of failing. The target stays empty there. */
  allowHoles?: boolean;
}

/** Options of `poll`. */
export interface PollOptions {
  /**
   * Decides what follows an error of the handler. Default: the loop ends with the error. If a callback throws inside
   * `start` or `poll`, the error reaches their caller. If it throws on the event loop, or if a promise rejects, the
   * error is an uncaught exception.
   */
  onError?: OnError;
}

/** Options of `start`. */
export interface StartOptions extends PollOptions {
  /** How to wait for faults; default 'poll'. */
  wait?: Wait;
  /**
   * On which processors the loop's thread runs; default 'none'. Other values have no effect if the kernel port cannot
   * choose processors.
   */
  placement?: Placement;
}

/** Options of `start` for a type of handler. If `pagefault` always returns a promise, the wait must be 'poll'. */
export type StartOptionsFor<Handler extends HandlerOf<never>> = [ReturnType<Handler['pagefault']>] extends [
  never,
]
  ? StartOptions
  : ReturnType<Handler['pagefault']> extends PromiseLike<unknown>
    ? StartOptions & { wait?: 'poll' }
    : StartOptions;

/**
 * The state of a page: see `Userfaultfd.pageState`.
 *
 * @useDeclaredType
 */
export type PageState = (typeof PAGE_STATES)[number];

/** An adaptive window grows to this many pages of 4 KiB. */
const ADAPTIVE_MOST = 64;

/** A window in the core's encoding. */
export function windowBits(window: Window): number {
  return window === 'adaptive' ? ADAPTIVE + ADAPTIVE_MOST : window;
}

const KIND_SHIFT = 29;
const WINDOW_MOST = ZERO_RUNS - 1;

export function checkWindow(window: unknown, argument: string): asserts window is Window {
  if (window !== 'adaptive') checkInteger(window, argument, 1, WINDOW_MOST);
}

/** A source's window in the core's encoding. */
export function sourceWindow(window: Window, zeroRuns: boolean): number {
  return windowBits(window) + (zeroRuns ? ZERO_RUNS : 0);
}

/** A source's kind and window in 32 bits, for a trace. */
export function sourceBits(kind: SourceKind, window: number): number {
  return window | (kind << KIND_SHIFT);
}

/** The kind and the options that `sourceBits` encoded. */
export function sourceOptions(bits: number): { kind: SourceKind; options: SourceOptions } {
  const kind = ((bits >>> KIND_SHIFT) & 3) as SourceKind;
  const window = bits < 0 ? 'adaptive' : bits & WINDOW_MOST;
  const removed = kind === SourceKind.DATA ? 'ask' : 'zeros';
  return { kind, options: { window, removed, zeroRuns: (bits & ZERO_RUNS) !== 0 } };
}

/** A fill's options in the core's encoding. */
export function fillBits(options: CopyOptions): number {
  checkOptions(options, 'options');
  return (options.dontWake ? Option.DONTWAKE : 0) | (options.writeProtect ? Option.WRITE_PROTECT : 0);
}

/** The options that `bits` holds in the core's encoding. */
export function fillOptions(bits: number): CopyOptions & MoveOptions {
  return {
    dontWake: (bits & Option.DONTWAKE) !== 0,
    writeProtect: (bits & Option.WRITE_PROTECT) !== 0,
    allowHoles: (bits & Option.ALLOW_HOLES) !== 0,
  };
}
