// What callers may choose. Names and defaults are part of the public interface.

import { checkInteger, checkOptions } from './arguments.js';
import type { PAGE_STATES } from './core.js';
import { ADAPTIVE, Option } from './core.js';
import type { Feature, Operation } from './features.js';
import type { FaultHandler, OnError, RegisteredRange } from './handler.js';
import type { Kernel } from './kernel.js';
import type { Wait } from './loop.js';
import type { Placement } from './placement.js';
import type { TraceWriter } from './trace/writer.js';

export interface OpenOptions {
  /** Features to turn on; one the kernel lacks is an error that names the version that brings it. */
  features?: Iterable<Feature>;
  /** Features to turn on where the kernel has them and allows them. */
  optional?: Iterable<Feature>;
  /** Serve faults of user mode only, which needs no privilege. 'auto' (default): where the full kind is refused. */
  userModeOnly?: boolean | 'auto';
  /** System call or /dev/userfaultfd. 'auto' (default): the system call, and the device where that is refused. */
  via?: 'auto' | 'syscall' | 'device';
  /** The process whose memory it is, to see it exit: `closed` is told then. Default: this one, which cannot outlive itself. */
  pid?: number;
  /** The kernel to run on. Default: Linux, through koffi. */
  kernel?: Kernel;
  /** Writes down everything that crosses the port, until this is closed or released. It takes one userfaultfd. */
  record?: TraceWriter;
}

/** What a kernel offers. */
export interface Probe {
  /** The way that was open; the kind that serves all faults is tried first. */
  readonly via: 'syscall' | 'device';
  readonly userModeOnly: boolean;
  /** All features this kernel has; asking for 'event-fork' needs CAP_SYS_PTRACE besides. */
  readonly features: ReadonlySet<Feature>;
  /** The operations of the descriptor itself; those of a range are told by `register`. */
  readonly operations: ReadonlySet<Operation>;
  /** Bytes of a page. */
  readonly pageSize: number;
}

/** Options of `probe`. */
export type ProbeOptions = Pick<OpenOptions, 'via' | 'userModeOnly' | 'kernel'>;

export interface RegisterOptions {
  /** Bytes of a page there. Default: as /proc/PID/smaps says, and an error where that cannot be read. */
  pageSize?: number;
}

/**
 * How many pages a fault gets, itself included, at most: an integer from 1, for those around it, in an aligned block of so
 * many. `adaptive`: the page alone, and twice as many as before where a fault goes on behind what the last one got, up to
 * 256 KiB; so a run in ascending order gets ever more, and random access nothing in vain.
 */
export type Window = number | 'adaptive';

export interface SourceOptions {
  /** Pages to install for a fault: those around it that are missing, too. Default: 1. */
  window?: Window;
}

export interface WrapOptions {
  /** The features its opener turned on: they decide what events to expect. */
  features?: Iterable<Feature>;
  /** What is registered already: the `ranges` of the object it was released from. */
  ranges?: Iterable<RegisteredRange>;
  /**
   * The process whose memory it is. Its exit and exec end the watch, and `closed` is told ESRCH; the descriptor
   * alone would say nothing of either.
   */
  pid?: number;
  /** The kernel to run on. Default: Linux, through koffi. */
  kernel?: Kernel;
  /** Writes down everything that crosses the port, until this is closed or released. It takes one userfaultfd. */
  record?: TraceWriter;
}

/** Options of a fill. */
export interface FillOptions {
  /** Leave the sleepers asleep; they need a `wake`. */
  dontWake?: boolean;
}

/** Options of `copy` and `continue`. */
export interface CopyOptions extends FillOptions {
  /** Install the pages write-protected. The range must be registered for write-protect. */
  writeProtect?: boolean;
}

/** Options of `move`. */
export interface MoveOptions extends FillOptions {
  /** Pages that the source does not have are no error; the target stays empty there. */
  allowHoles?: boolean;
}

/** Options of `poll`. */
export interface PollOptions {
  /**
   * Decides what follows an error of the handler's. Default: the loop ends with it. What is thrown while `start` or `poll` run
   * reaches their caller; on the event loop, and for a promise that rejects, it is an uncaught exception.
   */
  onError?: OnError;
}

/** Options of `start`. */
export interface StartOptions extends PollOptions {
  /** How to wait for faults; default 'poll'. */
  wait?: Wait;
  /** Where the thread of the loop runs meanwhile; default 'none'. Where there are no processors to choose from, that. */
  placement?: Placement;
}

/** Options of `start` for a handler: one whose `pagefault` always returns a promise takes the wait 'poll' only. */
export type StartOptionsFor<Handler extends FaultHandler> = [ReturnType<Handler['pagefault']>] extends [never]
  ? StartOptions
  : ReturnType<Handler['pagefault']> extends PromiseLike<unknown>
    ? StartOptions & { wait?: 'poll' }
    : StartOptions;

/**
 * What is known of a page: see `Userfaultfd.pageState`.
 *
 * @useDeclaredType
 */
export type PageState = (typeof PAGE_STATES)[number];

/** Pages of 4 KiB that an adaptive window grows to. */
const ADAPTIVE_MOST = 64;

/** The core's word for a window. */
export function windowBits(window: Window): number {
  return window === 'adaptive' ? ADAPTIVE + ADAPTIVE_MOST : window;
}

export function checkWindow(window: unknown, argument: string): asserts window is Window {
  if (window !== 'adaptive') checkInteger(window, argument, 1, 0x7fffffff);
}

/** The core's bits for a fill's options. */
export function fillBits(options: CopyOptions): number {
  checkOptions(options, 'options');
  return (options.dontWake ? Option.dontWake : 0) | (options.writeProtect ? Option.writeProtect : 0);
}

/** The options that the core's bits stand for. */
export function fillOptions(bits: number): CopyOptions & MoveOptions {
  return {
    dontWake: (bits & Option.dontWake) !== 0,
    writeProtect: (bits & Option.writeProtect) !== 0,
    allowHoles: (bits & Option.allowHoles) !== 0,
  };
}
