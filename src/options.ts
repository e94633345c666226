// What callers may choose. Names and defaults are part of the public interface.

import type { PAGE_STATES } from './core.js';
import { Option } from './core.js';
import type { Feature } from './features.js';
import type { RegisteredRange } from './handler.js';
import type { Kernel } from './kernel.js';
import type { Wait } from './loop.js';

export interface OpenOptions {
  /** Features to turn on; one the kernel lacks is an error that names the version that brings it. */
  features?: Iterable<Feature>;
  /** Features to turn on where the kernel has them and allows them. */
  optional?: Iterable<Feature>;
  /** Serve faults of user mode only, which needs no privilege. 'auto' (default): where the full kind is refused. */
  userModeOnly?: boolean | 'auto';
  /** System call or /dev/userfaultfd. 'auto' (default): the system call, and the device where that is refused. */
  via?: 'auto' | 'syscall' | 'device';
  /** The kernel to run on. Default: Linux, through koffi. */
  kernel?: Kernel;
}

export interface WrapOptions {
  /** The features its opener turned on: they decide what events to expect. */
  features?: Iterable<Feature>;
  /** What is registered already: the `ranges` of the object it was released from. */
  ranges?: Iterable<RegisteredRange>;
  /** The kernel to run on. Default: Linux, through koffi. */
  kernel?: Kernel;
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

export interface StartOptions {
  /** How to wait for faults; default 'poll'. */
  wait?: Wait;
}

/** What is known of a page: see `Userfaultfd.pageState`. */
export type PageState = (typeof PAGE_STATES)[number];

/** The core's bits for a fill's options. */
export function fillBits(options: CopyOptions): number {
  return (options.dontWake ? Option.dontWake : 0) | (options.writeProtect ? Option.writeProtect : 0);
}
