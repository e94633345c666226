// The thread that serves userfaultfds, one after the other, each until its watch ends, it is stopped, or it fails. The
// thread then reports the end to its `GuestSession`, which closes the descriptor if it is still open. A thread that has
// served before is faster, because its code is compiled.

import '../kernel/linux.js';
import { EventEmitter, once } from 'node:events';
import { readFileSync } from 'node:fs';
import { parentPort } from 'node:worker_threads';
import { closeDescriptor } from '../../shim/descriptors.js';
import { anonymousAreas, view } from '../../shim/memory.js';
import { Errno, type UffdError } from '../errors/errors.js';
import { system } from '../kernel/default-kernel.js';
import type { KnownFeature, Mode, Operation } from '../kernel/features.js';
import type { Kernel } from '../kernel/port.js';
import { TraceWriter } from '../trace/writer.js';
import { prepareCore } from '../uffd/core.js';
import type { RegisteredRange } from '../uffd/registered-range.js';
import { Userfaultfd } from '../uffd/userfaultfd.js';
import { BackgroundFiller } from './background-filler.js';
import { Tally } from './counters.js';
import { type Region, SYSTEM_PAGE } from './handoff-protocol.js';
import { ImageSource, type MappedImage } from './image-source.js';
import { extentsOf, type MappedFile, mapAhead } from './memory-file.js';
import { openRecord } from './record-file.js';
import { memfdWriter, sharedSource } from './shared-pages.js';
import type { Pool } from './shortage.js';
import { SnapshotHandler, type Source } from './snapshot-handler.js';
import { featuresOf } from './uffd-features.js';
import { type WarmUp, warmUp } from './warm-up.js';
import {
  NEWS,
  postableError,
  type Recorded,
  type SessionCommand,
  type SessionRecord,
  type SessionReport,
  type SessionTask,
  SLEEP,
  type ThreadData,
} from './worker-messages.js';

/** Emits a session's id to end that session if it waits on the event loop. */
const ends = new EventEmitter();

type Report = (it: SessionReport) => void;

const report: Report = (it) => parentPort?.postMessage(it);

/**
 * The main function of a serving thread. It waits for the first command before it loads koffi: until then it may be
 * ended, by the end of a program that started it early.
 */
export function serveSessions(): void {
  parentPort?.once('message', (command: SessionCommand) => {
    if (command.is === 'begin') void begin(command.data);
  });
}

async function begin({ wanted, ...options }: ThreadData): Promise<void> {
  // Do the slow work before a guest needs it: load koffi, make a core.
  Userfaultfd.isSupported();
  prepareCore();
  detachBuffer();
  const isWanted = (): boolean => Atomics.load(wanted, 0) !== 0;
  parentPort?.on('message', (command: SessionCommand) => {
    if (command.is === 'task') void serve(command.task);
    else if (command.is === 'map') {
      mapAhead(command.file, command.ranges, isWanted);
      report({ is: 'mapped', address: command.file.address });
    } else if (command.is !== 'begin') ends.emit(`${command.id}`);
  });
  report({ is: 'ready' });
  await warmUp({
    ...options,
    wanted: isWanted,
    stopped: wanted.buffer as SharedArrayBuffer,
    serving: (stopHandle) => report({ is: 'warming', stopHandle }),
    serve: serveScratch,
  });
  report({ is: 'idle' });
}

/**
 * V8 compiles code that relies on no buffer having been detached, and throws all of it away when the first one is: when
 * the core's memory grows, for the first large guest. So this happens now, before any code is compiled.
 */
function detachBuffer(): void {
  const buffer = new ArrayBuffer(1);
  structuredClone(buffer, { transfer: [buffer] });
}

/** Serves a scratch guest to its end, without reports to the server. */
export const serveScratch: WarmUp['serve'] = async (task, serving, answered) => {
  const quiet: Report = (it) => {
    if (it.is === 'serving') serving(it.stopHandle);
    // The last page may have been installed in the background.
    if (it.is === 'settled') answered();
  };
  const session = new WorkerSession(task, quiet, answered);
  try {
    await session.run();
  } finally {
    if (session.release().open) closeDescriptor(task.fd);
  }
  prepareCore();
};

/** Serves one session to its end. Never rejects. */
async function serve(task: SessionTask): Promise<void> {
  const session = new WorkerSession(task, report);
  let end: Pick<SessionReport & { is: 'ended' }, 'how' | 'error'>;
  try {
    end = { how: await session.run() };
  } catch (error) {
    end = { how: 'failed', error: postableError(error) };
  }
  report({ is: 'ended', ...end, ...session.release() });
  prepareCore();
}

class WorkerSession {
  readonly #task: SessionTask;
  readonly #report: Report;
  /** Called after each batch. */
  readonly #answered: (() => void) | undefined;
  readonly #tally: Tally;
  #record: TraceWriter | undefined;
  /** Why the session is not recorded although it should be. */
  #unrecorded: string | undefined;
  #uffd: Userfaultfd | undefined;
  /** The source, if it is an image of chunks. */
  #source: ImageSource | undefined;
  #closeReason: UffdError | 'closed' | undefined;

  constructor(task: SessionTask, report: Report, answered?: () => void) {
    this.#task = task;
    this.#report = report;
    this.#answered = answered;
    this.#tally = new Tally(task.tally);
  }

  async run(): Promise<'exited' | 'closed' | 'stopped'> {
    const { id, pid, memory, record, wait, stopped, news } = this.#task;
    // A process that is not visible cannot be followed.
    const placement = pid === 0 ? 'none' : this.#task.placement;
    if ('message' in memory) throw Object.assign(new Error(memory.message), memory);
    if (record) this.#startRecording(record);
    const uffd = this.#watch();
    this.#uffd = uffd;
    const handler = this.#handler(memory);
    this.#report({ is: 'serving', stopHandle: uffd.stopHandle });
    const tally = this.#tally;
    const background = new BackgroundFiller(handler, { ...this.#task, tally }, uffd);
    const word = new Int32Array(stopped);
    const words = new Int32Array(news);
    let settled = false;
    /** The count of the news that the last look has taken in. */
    let looked = 0;
    // Once everything is installed, only chunks that come are a reason to interrupt the loop and to start it again.
    while (!(settled && this.#source === undefined) && !uffd.closed && Atomics.load(word, 0) === 0) {
      const count = Atomics.load(words, NEWS.count);
      if (count !== looked) this.#source?.arrived();
      if (count !== looked) handler.arrived(uffd);
      looked = count;
      // Threads that wait for pages come first.
      if (!uffd.closed) uffd.poll(handler);
      const step: ReturnType<BackgroundFiller['step']> = uffd.closed
        ? 'more'
        : settled
          ? 'done'
          : background.step();
      if (step === 'more') continue;
      if (step === 'done' && !settled) this.#settled(tally.get('leftOut'));
      settled = step === 'done';
      if (step === 'paused') {
        this.#paused(background.pause as string);
        tally.add('paused');
      }
      Atomics.store(words, NEWS.sleep, step === 'waiting' ? SLEEP.any : SLEEP.asked);
      if (Atomics.load(words, NEWS.count) === looked) {
        uffd.start(handler, { wait, placement });
        // On the event loop `start` returns at once.
        if (uffd.waiting) await once(ends, `${id}`);
        if (uffd.waiting) uffd.stop();
      }
      Atomics.store(words, NEWS.sleep, SLEEP.awake);
    }
    if (this.#closeReason === undefined) return 'stopped';
    return this.#closeReason !== 'closed' && this.#closeReason.code === 'ESRCH' ? 'exited' : 'closed';
  }

  /** The features that the monitor has turned on, which decide which events come. */
  #features(fd: number): readonly KnownFeature[] {
    const features = featuresOf(fd);
    if (features === undefined) return ['event-remove'];
    if (!features.includes('event-remove')) {
      const reason =
        "the monitor's userfaultfd does not tell removals ('event-remove' is off): a page that it takes away, for a balloon " +
        'say, before it was ever touched holds what the memory file has, and not zeros';
      this.#report({ is: 'warned', reason });
    }
    return features;
  }

  /** Reports that the background work is done. */
  #settled(leftOut: number): void {
    this.#report({ is: 'settled' });
    if (leftOut === 0) return;
    const reason = `${leftOut} bytes were left out in the background: not mapped, not to be read, or there already`;
    this.#report({ is: 'warned', reason });
  }

  /** Reports, once, that the background work waits for memory. */
  #paused(reason: string): void {
    if (this.#tally.get('paused') === 0) {
      this.#report({ is: 'warned', reason: `nothing is installed in the background for now: ${reason}` });
    }
    this.#report({ is: 'paused' });
  }

  #watch(): Userfaultfd {
    const { fd, pid, regions, shared } = this.#task;
    return Userfaultfd.wrap(fd, {
      features: this.#features(fd),
      ranges: regions.map((region) => rangeOf(region, shared !== undefined)),
      // The process is watched even if its PID is not visible here. This process's PID then stands in for it, and nothing
      // is looked up by it.
      pid: pid > 0 ? pid : process.pid,
      kernel: kernelWithoutPidfds(),
      ...(this.#record ? { record: this.#record } : {}),
    });
  }

  /** If the recording fails, report it, and serve the guest without it. */
  #startRecording({ file, about, protectedFiles }: SessionRecord): void {
    const warn = (reason: string): void => this.#report({ is: 'warned', reason });
    try {
      this.#record = TraceWriter.toDescriptor(openRecord(file, protectedFiles), { about, warn });
    } catch (error) {
      this.#unrecorded = (error as Error).message;
      warn(this.#unrecorded);
    }
  }

  get #recorded(): Recorded | undefined {
    if (this.#unrecorded !== undefined) return { records: 0, bytes: 0, failure: this.#unrecorded };
    if (!this.#record) return undefined;
    const { records, bytesWritten, failure } = this.#record;
    return { records, bytes: bytesWritten, failure: failure?.message ?? null };
  }

  /** Releases everything. `open`: whether the descriptor is still open, for the `GuestSession` to close. */
  release(): { open: boolean; recorded: Recorded | undefined } {
    const open = this.#uffd === undefined || !this.#uffd.closed;
    if (this.#uffd?.closed === false) this.#uffd.release();
    this.#record?.close();
    return { open, recorded: this.#recorded };
  }

  #sourceOf(memory: MappedFile | MappedImage): Source {
    if ('states' in memory) {
      this.#source = new ImageSource(
        memory,
        (address, into) => into.set(new Uint8Array(view(address, into.length))),
        (chunks) => this.#report({ is: 'wanted', chunks }),
      );
      return this.#source;
    }
    const extents = extentsOf(memory);
    return {
      mapped: true,
      stretchAt: (offset) => extents.at(offset),
      bytesAt: (offset) => memory.address + BigInt(offset),
    };
  }

  #handler(memory: MappedFile | MappedImage): SnapshotHandler {
    const { id, pid, regions, window, latency, onStarved, deadlineMs, shared } = this.#task;
    const source = this.#sourceOf(memory);
    const tally = this.#tally;
    const answered = this.#answered;
    return new SnapshotHandler({
      regions,
      source,
      ...(shared && { share: sharedSource(shared.marks, memfdWriter(shared.address, source)) }),
      ...(deadlineMs === undefined ? {} : { deadlineMs }),
      tally,
      shortage: { onStarved, pool: poolOf, report: (reason) => this.#report({ is: 'short', reason }) },
      window,
      zerosAreFree: freeZeros(pid),
      latency(ns, faults) {
        const whole = Math.max(1, Math.round(ns));
        for (let fault = 0; fault < faults; fault++) latency.record(whole);
        tally.took(ns / 1e9, faults);
        answered?.();
      },
      now: () => performance.now(),
      closed: (error) => {
        this.#closeReason = error ?? 'closed';
        ends.emit(`${id}`);
      },
    });
  }
}

/**
 * Linux without pidfds: the memory may belong to another process than the one that connected, or another process may
 * have the PID by now. So the thread checks five times a second whether the memory still exists.
 */
function kernelWithoutPidfds(): Kernel {
  const kernel = system().kernel();
  return {
    ...kernel,
    attach: (memory) => Object.assign(kernel.attach(memory), { pidfd: () => -(Errno.ENOSYS as number) }),
  };
}

/** The machine's huge pages of this size. */
function poolOf(pageSize: number): Pool | undefined {
  if (pageSize === SYSTEM_PAGE) return undefined;
  const count = (name: string): number =>
    Number(readFileSync(`/sys/kernel/mm/hugepages/hugepages-${pageSize / 1024}kB/${name}_hugepages`, 'utf8'));
  try {
    // Reserved pages count as free, but only their mappings can use them.
    return { free: Math.max(0, count('free') - count('resv')), total: count('nr') };
  } catch {
    return undefined;
  }
}

/**
 * Whether pages of zeros take no memory in a region of a process: in private anonymous memory, by the mappings of the
 * time when the first source is added. If they change later, that costs memory at most.
 */
function freeZeros(pid: number): (region: Region) => boolean {
  let areas: ReturnType<typeof anonymousAreas> | undefined;
  return ({ start, length, pageSize }) => {
    if (pid <= 0 || pageSize !== SYSTEM_PAGE) return false;
    areas ??= anonymousAreas(pid);
    const area = areas[lastIndexAtMost(areas, start)];
    return area !== undefined && start + BigInt(length) <= area.end;
  };
}

/** Index of the last area that starts at or below an address; −1: none. */
function lastIndexAtMost(areas: readonly { start: bigint }[], address: bigint): number {
  let [low, high] = [0, areas.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((areas[middle] as { start: bigint }).start <= address) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

function rangeOf({ start, length, pageSize }: Region, shared: boolean): RegisteredRange {
  // The operations that the kernel offers for such memory; huge pages have no zero page.
  const operations: Operation[] = pageSize === 4096 ? ['copy', 'zero', 'wake'] : ['copy', 'wake'];
  const modes: Mode[] = ['missing'];
  if (shared) {
    operations.push('continue');
    modes.push('minor');
  }
  return { start, length, pageSize, modes: new Set(modes), operations: new Set(operations) };
}
