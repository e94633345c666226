// `recordHandler`: records a page-fault handler in any language, as a program, on the real kernel.

import { checkFunction, checkOptions, invalidValue, outOfRange, wrongType } from '../errors/arguments.js';
import type { HandlerRecording } from '../supervisor/record-handler.js';
import type { RecordedTrace } from '../supervisor/record-run.js';
import { loadSuite } from './check-handler.js';

export type { HandlerRecording, RecordedTrace };

export interface RecordHandlerOptions {
  /** The handler's program and its words. */
  command: readonly string[];
  /**
   * The file of the trace, which is made or emptied. If the handler serves further userfaultfds, their traces are
   * `TRACE.2`, `TRACE.3`, and so on.
   */
  trace: string;
  /** Ends the handler with SIGTERM, and with SIGKILL after 3 s. The traces are closed, and `recordHandler` resolves. */
  signal?: AbortSignal | undefined;
  /** Called with what cannot be recorded, and why. */
  onWarning?: ((text: string) => void) | undefined;
  /**
   * Whether the kernel switches to the handler at once with an answer, if it can (Linux 6.6). Default true; false is
   * for measurements.
   */
  syncWakeUp?: boolean | undefined;
}

/** Checks by option name. */
const CHECKS: Readonly<Record<keyof RecordHandlerOptions, (value: unknown, name: string) => void>> = {
  command(value, name) {
    if (!Array.isArray(value) || !value.every((word) => typeof word === 'string'))
      throw wrongType(name, 'a list of words', value);
    if (value.length === 0) throw outOfRange(name, 'a list of at least one word', '[]');
  },
  trace(value, name) {
    if (typeof value !== 'string') throw wrongType(name, 'a path, a string', value);
  },
  signal(value, name) {
    if (value !== undefined && !(value instanceof AbortSignal))
      throw wrongType(name, 'an AbortSignal', value);
  },
  onWarning(value, name) {
    if (value !== undefined) checkFunction(value, name);
  },
  syncWakeUp(value, name) {
    if (value !== undefined && typeof value !== 'boolean') throw wrongType(name, 'a boolean', value);
  },
};

/**
 * Runs a page-fault handler in any language, and records what it does with its userfaultfds, on the real kernel. Its
 * reads and ioctls are trapped (seccomp) and made for it, one after the other. `inspect`, `report` and Perfetto read the
 * traces. The handler's output goes where this process's output goes.
 *
 * It needs Linux 5.6 on x64 or arm64, and the right to trace the handler, which a user has for his own programs if
 * `kernel.yama.ptrace_scope` is at most 1. docs/guides/test-your-handler.md has an example.
 *
 * @returns the handler's exit status, and its traces
 * @throws TypeError, RangeError naming the wrong option; RecordError if the trace cannot be written; UnsupportedError,
 *   UffdError if system calls of other processes cannot be trapped here
 */
export async function recordHandler(options: RecordHandlerOptions): Promise<HandlerRecording> {
  checkOptions(options, 'options');
  for (const name of Object.keys(options))
    if (!Object.hasOwn(CHECKS, name))
      throw invalidValue(`options: there is no '${name}'; there are ${Object.keys(CHECKS).join(', ')}`);
  for (const [name, check] of Object.entries(CHECKS))
    check(options[name as keyof RecordHandlerOptions], name);
  return (await loadSuite()).recordProgram(options);
}
