// The thread that serves userfaultfds, one after the other: each as soon as it is told which, until its watch ends, it is
// stopped, or it fails. Whoever gave it the descriptor hears of that, and takes it back. A thread that has served once is
// quicker the next time: its code is compiled.

import '../linux.js';
import { EventEmitter, once } from 'node:events';
import { readFileSync } from 'node:fs';
import { parentPort } from 'node:worker_threads';
import { prepareCore } from '../core.js';
import { Errno, type UffdError } from '../errors.js';
import { FEATURES, featureNames, type KnownFeature, type Operation } from '../features.js';
import type { RegisteredRange } from '../handler.js';
import type { Kernel } from '../kernel.js';
import { system } from '../system.js';
import { TraceWriter } from '../trace/writer.js';
import { Userfaultfd } from '../userfaultfd.js';
import { Answers } from './answers.js';
import { Background } from './background.js';
import { type Region, SYSTEM_PAGE } from './handoff.js';
import { type MappedFile, Stretches } from './memory-file.js';
import { openRecord } from './record-file.js';
import {
  type Recorded,
  type SessionOrder,
  type SessionRecord,
  type SessionReport,
  type SessionTask,
  toldError,
} from './session-task.js';
import type { Pool } from './shortage.js';
import { Tally } from './tally.js';

/** Of sessions that wait on the event loop, by their ids: something has ended them. */
const ends = new EventEmitter();

/** Runs in a thread of its own. */
export function serveSessions(): void {
  // What takes time, while nobody waits for it: koffi is loaded, and a core made.
  Userfaultfd.isSupported();
  prepareCore();
  parentPort?.on('message', (order: SessionOrder) => {
    if (order.is === 'task') void serve(order.task);
    else ends.emit(`${order.id}`);
  });
  report({ is: 'ready' });
}

function report(it: SessionReport): void {
  parentPort?.postMessage(it);
}

/** Never rejects. */
async function serve(task: SessionTask): Promise<void> {
  const session = new Serving(task);
  let end: Pick<SessionReport & { is: 'ended' }, 'how' | 'error'>;
  try {
    end = { how: await session.run() };
  } catch (error) {
    end = { how: 'failed', error: toldError(error) };
  }
  report({ is: 'ended', ...end, ...session.leave() });
  prepareCore();
}

class Serving {
  readonly #task: SessionTask;
  readonly #tally: Tally;
  #record: TraceWriter | undefined;
  /** Why it is not recorded, though it should be. */
  #unrecorded: string | undefined;
  #uffd: Userfaultfd | undefined;
  #farewell: UffdError | 'closed' | undefined;

  constructor(task: SessionTask) {
    this.#task = task;
    this.#tally = new Tally(task.tally);
  }

  async run(): Promise<'exited' | 'closed' | 'stopped'> {
    const { id, pid, memory, record, wait, stopped } = this.#task;
    // What cannot be seen cannot be followed.
    const placement = pid === 0 ? 'none' : this.#task.placement;
    if ('message' in memory) throw Object.assign(new Error(memory.message), memory);
    if (record) this.#startRecording(record);
    const uffd = this.#watch();
    this.#uffd = uffd;
    const answers = this.#answers(memory);
    report({ is: 'serving', stopHandle: uffd.stopHandle });
    const tally = this.#tally;
    const background = new Background(answers, { ...this.#task, tally }, uffd);
    const word = new Int32Array(stopped);
    let settled = false;
    while (!settled && !uffd.closed && Atomics.load(word, 0) === 0) {
      // Whoever waits comes first.
      uffd.poll(answers);
      const step = uffd.closed ? 'more' : background.step();
      if (step === 'more') continue;
      settled = step === 'done';
      if (background.pause === undefined) this.#settled(tally.get('leftOut'));
      else {
        this.#paused(background.pause);
        tally.add('paused');
      }
      uffd.start(answers, { wait, placement });
      // On the event loop `start` returns at once.
      if (uffd.waiting) await once(ends, `${id}`);
      if (uffd.waiting && !settled) uffd.stop();
    }
    if (this.#farewell === undefined) return 'stopped';
    return this.#farewell !== 'closed' && this.#farewell.code === 'ESRCH' ? 'exited' : 'closed';
  }

  /** Those that the monitor has turned on, which decide what is told. */
  #features(fd: number): readonly KnownFeature[] {
    const features = featuresOf(fd);
    if (features === undefined) return ['event-remove'];
    if (!features.includes('event-remove')) {
      const reason =
        "the monitor's userfaultfd does not tell removals ('event-remove' is off): a page that it takes away, for a balloon " +
        'say, before it was ever touched holds what the memory file has, and not zeros';
      report({ is: 'warned', reason });
    }
    return features;
  }

  /** The background is done. */
  #settled(leftOut: number): void {
    report({ is: 'settled' });
    if (leftOut === 0) return;
    const reason = `${leftOut} bytes were left out in the background: not mapped, not to be read, or there already`;
    report({ is: 'warned', reason });
  }

  /** The background waits for memory; that is said once. */
  #paused(reason: string): void {
    if (this.#tally.get('paused') === 0) {
      report({ is: 'warned', reason: `nothing is installed in the background for now: ${reason}` });
    }
    report({ is: 'paused' });
  }

  #watch(): Userfaultfd {
    const { fd, pid, regions } = this.#task;
    return Userfaultfd.wrap(fd, {
      features: this.#features(fd),
      ranges: regions.map(rangeOf),
      // One that cannot be seen from here has to be watched all the same; nothing is looked up by the number then.
      pid: pid > 0 ? pid : process.pid,
      kernel: kernelWithoutPidfds(),
      ...(this.#record ? { record: this.#record } : {}),
    });
  }

  /** What goes wrong with it is told, and the guest is served without. */
  #startRecording({ file, about, kept }: SessionRecord): void {
    const warn = (reason: string): void => report({ is: 'warned', reason });
    try {
      this.#record = TraceWriter.toDescriptor(openRecord(file, kept), { about, warn });
    } catch (error) {
      this.#unrecorded = (error as Error).message;
      warn(this.#unrecorded);
    }
  }

  get #recorded(): Recorded | undefined {
    if (this.#unrecorded !== undefined) return { records: 0, bytes: 0, failure: this.#unrecorded };
    return this.#record && toldRecording(this.#record);
  }

  /** Lets go of everything; the descriptor is its owner's again, if it is open still. */
  leave(): { open: boolean; recorded: Recorded | undefined } {
    const open = this.#uffd === undefined || !this.#uffd.closed;
    if (this.#uffd?.closed === false) this.#uffd.release();
    this.#record?.close();
    return { open, recorded: this.#recorded };
  }

  #answers(file: MappedFile): Answers {
    const { id, regions, window, latency, onStarved } = this.#task;
    const tally = this.#tally;
    const stretches = new Stretches(file);
    return new Answers({
      regions,
      source: {
        mapped: true,
        stretchAt: (offset) => stretches.at(offset),
        bytesAt: (offset) => file.address + BigInt(offset),
      },
      tally,
      shortage: { onStarved, pool: poolOf, report: (reason) => report({ is: 'short', reason }) },
      window,
      latency(ns, faults) {
        const whole = Math.max(1, Math.round(ns));
        for (let fault = 0; fault < faults; fault++) latency.record(whole);
        tally.took(ns / 1e9, faults);
      },
      now: () => performance.now(),
      closed: (error) => {
        this.#farewell = error ?? 'closed';
        ends.emit(`${id}`);
      },
    });
  }
}

/**
 * Linux, without pidfds: whose memory it is may be another process than the one that connected, or the PID another's by
 * now. That it is gone is asked of the memory itself, five times a second.
 */
function kernelWithoutPidfds(): Kernel {
  const kernel = system().kernel();
  return {
    ...kernel,
    attach: (memory) => Object.assign(kernel.attach(memory), { pidfd: () => -(Errno.ENOSYS as number) }),
  };
}

/** The features that are on, as the kernel's fdinfo says; undefined: it cannot be read. */
function featuresOf(fd: number): readonly KnownFeature[] | undefined {
  try {
    const info = readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1');
    const bits = /^API:\s*[0-9a-f]+:([0-9a-f]+):/m.exec(info)?.[1];
    if (bits === undefined) return undefined;
    const names = featureNames(BigInt(`0x${bits}`));
    return FEATURES.filter((name) => names.has(name));
  } catch {
    return undefined;
  }
}

/** The machine's huge pages of so many bytes. */
function poolOf(pageSize: number): Pool | undefined {
  if (pageSize === SYSTEM_PAGE) return undefined;
  const count = (name: string): number =>
    Number(readFileSync(`/sys/kernel/mm/hugepages/hugepages-${pageSize / 1024}kB/${name}_hugepages`, 'utf8'));
  try {
    // Reserved ones are free, but for their mappings only.
    return { free: Math.max(0, count('free') - count('resv')), total: count('nr') };
  } catch {
    return undefined;
  }
}

function toldRecording({ records, bytesWritten, failure }: TraceWriter): Recorded {
  return { records, bytes: bytesWritten, failure: failure?.message ?? null };
}

function rangeOf({ start, length, pageSize }: Region): RegisteredRange {
  // What the kernel answers for such memory; huge pages have no zero page.
  const operations: Operation[] = pageSize === 4096 ? ['copy', 'zero', 'wake'] : ['copy', 'wake'];
  return { start, length, pageSize, modes: new Set(['missing']), operations: new Set(operations) };
}
