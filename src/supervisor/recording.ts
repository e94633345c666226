// The recorder of what a handler does with a simulated guest's userfaultfd. The description of its trace has what an
// equal guest is made from, so that a replay can make the same calls again.

import type { KernelPort, LinearMemory } from '../kernel/port.js';
import type { Region } from '../serve/handoff-protocol.js';
import type { OpenParameters } from '../trace/open-parameters.js';
import { recordingKernel } from '../trace/recording-port.js';
import type { TraceWriter } from '../trace/writer.js';

/** What is recorded of a guest. */
interface RecordedGuest {
  readonly fd: number;
  readonly regions: readonly Region[];
  readonly features: OpenParameters['features'];
  readonly scratch: LinearMemory;
  readonly process: { readonly pid: number };
  readonly kernel: { readonly pageSize: number };
}

/** The operations that the monitor registers its memory for. */
const OPERATIONS = ['wake', 'copy', 'zero'] as const;

/** A port that records its calls. `making`: what an equal guest is made from, as JSON. */
export function recordingPort(
  port: KernelPort,
  { fd, regions, features, scratch, process, kernel }: RecordedGuest,
  writer: TraceWriter,
  making: Readonly<Record<string, unknown>>,
): KernelPort {
  const ranges = regions.map(({ start, length, pageSize }) => ({
    ...{ start: `${start}`, length, pageSize, modes: ['missing'] as const, operations: OPERATIONS },
  }));
  const origin: OpenParameters = { how: 'wrap', fd, options: { pid: process.pid }, features, ranges };
  const inner = { pageSize: kernel.pageSize, attach: () => port };
  return recordingKernel(inner, writer, { origin, guest: making }).attach(scratch);
}
