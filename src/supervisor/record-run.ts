// The run of a handler that is recorded, in a thread of its own, because answering trapped calls blocks: starts the
// handler, answers its calls, and writes a trace of each of its userfaultfds.
//
// Rules:
//  - The run ends with the handler's first process. What is left of its process group is ended then.
//  - A trace that cannot be written any more does not disturb the handler.

import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parentPort, workerData } from 'node:worker_threads';
import { drainEventfd } from '../../shim/watch.js';
import { errnoName, UffdError, UnsupportedError } from '../errors/errors.js';
import { featureNames } from '../kernel/features.js';
import type { Region } from '../serve/handoff-protocol.js';
import { openRecord, recordPath } from '../serve/record-file.js';
import { encodeRange, type OpenParameters } from '../trace/open-parameters.js';
import { TraceWriter } from '../trace/writer.js';
import { Launcher } from './launcher.js';
import { RecordedCalls } from './recorded-calls.js';
import { RecordedUffd } from './recorded-uffd.js';
import { SeenHandOffs } from './seen-hand-offs.js';

/** What the thread is started with. */
export interface RecordOrder {
  readonly command: readonly string[];
  readonly trace: string;
  /** Readable when `stop` has changed. */
  readonly wake: number;
  /** Not 0: end the handler. */
  readonly stop: Int32Array;
  readonly syncWakeUp: boolean;
}

/** A trace that was written. */
export interface RecordedTrace {
  readonly file: string;
  readonly records: number;
  /** Calls whose results are not in the trace, because the kernel carried them out, and the handler ended then. */
  readonly unseen: number;
  /** Why the trace is not complete. */
  readonly failure?: string;
}

/** What the thread reports. */
export type RecordMessage =
  | { readonly warning: string }
  /** The handler's process group. */
  | { readonly group: number }
  | { readonly result: { readonly status: number; readonly traces: readonly RecordedTrace[] } }
  | { readonly refused: { readonly errno?: number; readonly syscall?: string; readonly message: string } };

/** The kernel's own mark among the features of a userfaultfd that is in use. */
const INITIALIZED = 1n << 31n;
/** How long a handler has after SIGTERM. */
const TERMINATED_MS = 3000;
/** After so long without a call, the traces are written as far as they are. */
const IDLE_MS = 200;

class Recording {
  readonly #order: RecordOrder;
  readonly #warn: (text: string) => void;
  readonly #launcher: Launcher;
  readonly #calls: RecordedCalls;
  readonly #handOffs = new SeenHandOffs();
  readonly #folder = mkdtempSync(join(tmpdir(), 'uffd-record-'));
  readonly #recorded: { readonly file: string; readonly uffd: RecordedUffd }[] = [];
  readonly #warned = new Set<string>();

  constructor(order: RecordOrder, warn: (text: string) => void) {
    this.#order = order;
    this.#warn = (text) => {
      if (this.#warned.has(text)) return;
      this.#warned.add(text);
      warn(text);
    };
    try {
      const { command, syncWakeUp } = order;
      const options = { calls: 'recorded', inherits: true, memories: [''], syncWakeUp } as const;
      this.#launcher = new Launcher({ ...options, command, folder: this.#folder });
    } catch (error) {
      rmSync(this.#folder, { recursive: true, force: true });
      throw error;
    }
    const begin = (fd: number, pid: number): RecordedUffd => this.#begin(fd, pid);
    this.#calls = new RecordedCalls(this.#launcher, this.#handOffs, begin, (errno) => this.#refused(errno));
  }

  #refused(errno: number): void {
    this.#warn(
      `a userfaultfd of the handler cannot be recorded: pidfd_getfd failed with ${errnoName(-errno)}; ` +
        'the handler goes on without',
    );
  }

  /** Begins the trace of a userfaultfd. */
  #begin(fd: number, pid: number): RecordedUffd {
    const { trace, command } = this.#order;
    const file = recordPath(trace, this.#recorded.length + 1);
    const options = { about: { command, pid }, warn: this.#warn };
    const writer = this.#writer(file, options);
    const uffd = new RecordedUffd(fd, writer, { origin: originOf(fd, this.#handOffs.regionsOf(fd)) });
    uffd.onLetThrough = (name) =>
      this.#warn(`${name} is carried out by the kernel, and recorded at the thread's next call`);
    this.#recorded.push({ file, uffd });
    return uffd;
  }

  #writer(file: string, options: ConstructorParameters<typeof TraceWriter>[1]): TraceWriter {
    try {
      return TraceWriter.toDescriptor(openRecord(file, []), options);
    } catch (error) {
      this.#warn((error as Error).message);
      const sink = {
        write(): void {
          throw error;
        },
        close(): void {},
      };
      return new TraceWriter(sink, { ...options, warn: () => {} });
    }
  }

  get group(): number {
    return this.#launcher.group;
  }

  /** Answers calls until the handler has ended. Returns its status, as a shell has it. */
  run(): number {
    const { wake, stop } = this.#order;
    this.#launcher.watch([wake]);
    this.#launcher.start(0);
    let endsAt = Number.POSITIVE_INFINITY;
    for (;;) {
      const happened = this.#launcher.wait(Math.min(IDLE_MS, Math.max(0, endsAt - performance.now())));
      if (happened === 'call') {
        if (this.#calls.handle()) this.#launcher.watch([wake, ...this.#calls.awaited]);
      } else if (happened === 'ended') return this.#launcher.status as number;
      else if (happened === 'ready') {
        this.#calls.answerHeld();
        this.#launcher.watch([wake, ...this.#calls.awaited]);
        if (Atomics.load(stop, 0) === 0 || endsAt < Number.POSITIVE_INFINITY) continue;
        drainEventfd(wake);
        this.#launcher.terminate();
        endsAt = performance.now() + TERMINATED_MS;
      } else if (performance.now() >= endsAt) {
        this.#launcher.kill();
        return this.#launcher.status as number;
      } else for (const { uffd } of this.#recorded) uffd.writer.flush();
    }
  }

  close(): RecordedTrace[] {
    this.#launcher.close();
    this.#calls.close();
    this.#handOffs.close();
    rmSync(this.#folder, { recursive: true, force: true });
    return this.#recorded.map(({ file, uffd: { writer, unseen } }) => ({
      ...{ file, records: writer.records, unseen },
      ...(writer.failure && { failure: writer.failure.message }),
    }));
  }
}

/** How the userfaultfd began, as far as it is known. */
function originOf(fd: number, regions: readonly Region[] = []): OpenParameters {
  return {
    how: 'handler',
    options: {},
    features: [...featureNames(featuresOf(fd))],
    ranges: regions.map(({ start, length, pageSize, shared }) =>
      encodeRange({
        ...{ start, length, pageSize },
        modes: new Set(shared ? (['missing', 'minor'] as const) : (['missing'] as const)),
        operations: new Set(),
      }),
    ),
  };
}

/** The features of a userfaultfd, as its fdinfo shows them; none before UFFDIO_API. */
function featuresOf(fd: number): bigint {
  const path = `/proc/self/fdinfo/${fd}`;
  const bits = existsSync(path) && /^API:\s*[0-9a-f]+:([0-9a-f]+):/m.exec(readFileSync(path, 'latin1'))?.[1];
  return bits ? BigInt(`0x${bits}`) & ~INITIALIZED : 0n;
}

/** The thread's main function. */
export function runRecording(): void {
  const post = (message: RecordMessage): void => parentPort?.postMessage(message);
  try {
    const recording = new Recording(workerData as RecordOrder, (warning) => post({ warning }));
    post({ group: recording.group });
    let status: number;
    let traces: RecordedTrace[] = [];
    try {
      status = recording.run();
    } finally {
      traces = recording.close();
    }
    post({ result: { status, traces } });
  } catch (error) {
    if (error instanceof UffdError)
      post({ refused: { errno: error.errno, syscall: error.syscall, message: error.message } });
    else if (error instanceof UnsupportedError) post({ refused: { message: error.message } });
    else throw error;
  }
}
