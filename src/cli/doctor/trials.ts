// The trials: each feature and each operation is used on scratch pages that a thread touches. A trial throws if the
// kernel does not do what is documented.

import { closeSync, openSync, readSync } from 'node:fs';
import {
  FEATURES,
  Mapping,
  type Mode,
  type OPERATIONS,
  type Pagefault,
  type SharedMapping,
  UffdError,
  Userfaultfd,
} from '../../index.js';
import { simulatedSupport } from '../../testing/index.js';
import type { OpenMethod, Trial } from './findings.js';
import { forksReported } from './fork-trial.js';
import { hugePages } from './machine.js';
import { createToucher, type Toucher } from './toucher.js';

type FeatureName = (typeof FEATURES)[number];
export type OperationName = (typeof OPERATIONS)[number];
/** Features and operations; 'write-protect' and 'continue' are part of the trial of a feature. */
export type TrialName = FeatureName | Exclude<OperationName, 'write-protect' | 'continue'> | 'system-calls';

/**
 * What the process tries, in order: methods to open a userfaultfd, features of a userfaultfd that is opened by `way`, or
 * what simulated checks of handlers need.
 */
export interface TrialTask {
  steps: readonly (OpenMethod | TrialName | 'check-simulated')[];
  way?: OpenMethod;
}

/** The kernel's answer to one method to open a userfaultfd; or an obstacle, which prevents all methods. */
export type OpenReply = { result: string; features?: string[]; pageSize?: number } | { obstacle: string };

/** Ends a trial that cannot be made on this machine, or that this user may not make; the message says why. */
class TrialStopped extends Error {
  constructor(
    readonly outcome: 'not tried' | 'refused',
    message: string,
  ) {
    super(message);
  }
}

/** The largest huge page with which a trial is made, because the trial copies one. */
const HUGE_PAGE_MOST_BYTES = 2 ** 25;
/** The bit of an entry in /proc/self/pagemap that says that a userfaultfd has write-protected the page. */
const PAGEMAP_WRITE_PROTECTED = 1n << 57n;
const PAGEMAP_ENTRY_BYTES = 8;

type FaultAnswer = (fault: Pagefault, uffd: Userfaultfd, memory: Mapping, nth: number) => void;

/** The plan of a trial: a thread touches one page of scratch memory, and the trial answers its faults. */
interface Plan {
  /** Makes the memory; default: private memory. */
  memory?: (pageSize: number) => Mapping;
  mode?: Mode;
  /** Prepares the memory once it is registered. */
  prepare?: (uffd: Userfaultfd, memory: Mapping) => void;
  /** What the thread does; default: it reads the last byte. */
  touch?: (toucher: Toucher, memory: SharedMapping) => Promise<unknown>;
  /** Answers a fault. If this is missing, a fault fails the trial. */
  answer?: FaultAnswer;
  /** The expected result of `touch`. */
  finds: unknown | ((faults: readonly Pagefault[], memory: Mapping) => unknown);
  /** The kinds of all faults; not checked if it is left out. */
  faults?: Mode[];
}

/** A trial on a userfaultfd with the feature of the trial's name, if there is such a feature. */
type TrialFunction = (uffd: Userfaultfd, toucher: Toucher, userModeOnly: boolean) => Promise<void>;

const anonymous = (pageSize: number): Mapping => Mapping.anonymous(pageSize);
const shared = (pageSize: number): Mapping => Mapping.memfd(pageSize);

const readLast = ({ read }: Toucher, memory: SharedMapping) => read(memory, memory.length - 1);
const sendAll = ({ send }: Toucher, memory: SharedMapping) => send(memory);
const writeAndRead = async ({ write, read }: Toucher, memory: SharedMapping): Promise<number> => {
  await write(memory, 2);
  return read(memory);
};

const zero: FaultAnswer = ({ page }, uffd) => void uffd.zero(page, uffd.pageSize);
const copy: FaultAnswer = ({ page }, uffd, { pageSize }) =>
  void uffd.copy(page, new Uint8Array(pageSize).fill(7));
const unprotect: FaultAnswer = ({ page }, uffd) => void uffd.writeProtect(page, uffd.pageSize, false);

const unprotected: Plan = {
  mode: 'write-protect',
  prepare: (uffd, { address, length }) => void uffd.writeProtect(address, length, true),
  touch: writeAndRead,
  answer: unprotect,
  finds: 2,
  faults: ['write-protect'],
};
const populated: Plan['prepare'] = (uffd, memory) => {
  memory.bytes.fill(1);
  uffd.writeProtect(memory.address, memory.length, true);
};
/** A page that is in the page cache, and not in the page table. */
const minor: Plan = {
  memory: shared,
  mode: 'minor',
  prepare(_uffd, memory) {
    using alias = memory.alias();
    alias.bytes.fill(3);
  },
  answer: ({ page }, uffd, memory) => void uffd.continue(page, memory.pageSize),
  finds: 3,
  faults: ['minor'],
};

const TRIALS: Record<TrialName, Plan | TrialFunction> = {
  async register(uffd) {
    using memory = anonymous(uffd.pageSize);
    const operations = uffd.register(memory.address, memory.length);
    for (const name of ['wake', 'copy', 'zero'] as const) {
      expect(`whether the range allows '${name}'`, operations.has(name), true);
    }
  },
  unregister: {
    answer: (_fault, uffd, memory) => uffd.unregister(memory.address, memory.length),
    finds: 0,
    faults: ['missing'],
  },
  // Woken without a page, the thread faults again.
  wake: {
    answer: (fault, uffd, memory, nth) =>
      nth === 1 ? uffd.wake(fault.page, uffd.pageSize) : zero(fault, uffd, memory, nth),
    finds: 0,
    faults: ['missing', 'missing'],
  },
  copy: { answer: copy, finds: 7, faults: ['missing'] },
  zero: { answer: zero, finds: 0, faults: ['missing'] },
  'pagefault-flag-wp': { ...unprotected, prepare: populated },
  async 'event-fork'(uffd) {
    const forks = await forksReported(uffd);
    if (forks === 0) throw new TrialStopped('not tried', 'this Node starts processes without a fork');
    expect('forks reported', forks, 1);
  },
  async 'event-remap'(uffd, toucher) {
    const { address, length } = await toucher.make(uffd.pageSize, 5);
    uffd.register(address, length);
    const { result, events } = await serve(uffd, toucher.relocate);
    expect('the move reported', events, [address, result.address, length]);
    expect('the byte at the new address', await toucher.read(result), 5);
  },
  async 'event-remove'(uffd, { make, discard, read }) {
    const memory = await make(uffd.pageSize, 5);
    uffd.register(memory.address, memory.length);
    const answer = ({ page }: Pagefault): void => void uffd.zero(page, uffd.pageSize);
    const { result, events } = await serve(uffd, () => discard().then(() => read(memory)), answer);
    expect('the removal reported', events, [memory.address, memory.address + BigInt(memory.length)]);
    expect('the byte after it', result, 0);
  },
  async 'event-unmap'(uffd, toucher) {
    const { address, length } = await toucher.make(uffd.pageSize, 5);
    uffd.register(address, length);
    const { events } = await serve(uffd, toucher.unmap);
    expect('the unmapping reported', events, [address, address + BigInt(length)]);
  },
  'missing-hugetlbfs': { memory: hugePage(Mapping.anonymous), answer: copy, finds: 7, faults: ['missing'] },
  'missing-shmem': { memory: shared, answer: copy, finds: 7, faults: ['missing'] },
  // A system call touches the page and gets an error; a thread would be killed.
  async sigbus(uffd, toucher, userModeOnly) {
    if (userModeOnly) throw new TrialStopped('not tried', 'it takes a fault of kernel mode to see it');
    await follow({ touch: sendAll, finds: 'EFAULT' }, uffd, toucher);
  },
  'thread-id': {
    touch: async ({ read, tid }, memory) => [await read(memory), await tid()],
    answer: zero,
    finds: ([fault]: Pagefault[]) => [0, fault?.tid],
  },
  'minor-hugetlbfs': { ...minor, memory: hugePage(Mapping.memfd) },
  'minor-shmem': minor,
  'exact-address': {
    touch: async ({ read }, memory) => [await read(memory, 123), memory.address + 123n],
    answer: zero,
    finds: ([fault]: Pagefault[]) => [0, fault?.address],
  },
  'wp-hugetlbfs-shmem': { ...unprotected, memory: shared, prepare: populated },
  'wp-unpopulated': unprotected,
  poison: {
    prepare(uffd, { address, length }) {
      uffd.poison(address, length);
      // The poison stays, but no thread waits for the userfaultfd any more.
      uffd.unregister(address, length);
    },
    touch: sendAll,
    finds: 'EFAULT',
  },
  'wp-async': {
    mode: 'write-protect',
    prepare(uffd, memory) {
      populated(uffd, memory);
      expectProtection(memory, true);
    },
    touch: writeAndRead,
    finds(_faults: unknown, memory: Mapping) {
      expectProtection(memory, false);
      return 2;
    },
  },
  move: {
    answer({ page }, uffd) {
      using source = anonymous(uffd.pageSize);
      source.bytes.fill(9);
      uffd.move(page, source.address, uffd.pageSize);
      expect('the byte left behind', source.bytes[0], 0);
    },
    finds: 9,
  },
  // A system call touches watched memory. With faults of user mode only it gets EFAULT.
  async 'system-calls'(uffd, toucher, userModeOnly) {
    const finds = userModeOnly ? 'EFAULT' : uffd.pageSize;
    await follow({ touch: sendAll, answer: zero, finds }, uffd, toucher);
    if (userModeOnly)
      throw new TrialStopped('refused', 'a system call that touches a missing page gets EFAULT');
  },
};

/** Runs in a process of its own, which ends with the process that started it; see trial-runner.ts. */
export function runTrials(): void {
  // A thread that sleeps in a fault would block an ordinary exit.
  process.on('disconnect', () => process.kill(process.pid, 'SIGKILL'));
  process.once('message', async ({ steps, way }: TrialTask) => {
    const toucher = way && createToucher();
    for (const step of steps) {
      if (typeof step === 'object') process.send?.(open(step));
      else if (step === 'check-simulated') process.send?.(await simulatedSupport());
      else if (way && toucher) process.send?.(await attempt(step, way, toucher));
    }
  });
}

function open(way: OpenMethod): OpenReply {
  try {
    const { features, pageSize } = Userfaultfd.probe(way);
    return { result: 'ok', features: [...features], pageSize };
  } catch (error) {
    return error instanceof UffdError ? { result: error.code } : { obstacle: (error as Error).message };
  }
}

async function attempt(name: TrialName, way: OpenMethod, toucher: Toucher): Promise<Trial> {
  try {
    using uffd = Userfaultfd.open({ ...way, features: FEATURES.filter((feature) => feature === name) });
    const trial = TRIALS[name];
    await (typeof trial === 'function'
      ? trial(uffd, toucher, way.userModeOnly)
      : follow(trial, uffd, toucher));
    return { outcome: 'ok' };
  } catch (error) {
    const { message } = error as Error;
    if (error instanceof TrialStopped) return { outcome: error.outcome, detail: message };
    if (error instanceof UffdError && error.code === 'EPERM' && error.syscall === 'UFFDIO_API') {
      return { outcome: 'refused', detail: 'it needs CAP_SYS_PTRACE' };
    }
    return { outcome: 'failed', detail: message };
  }
}

async function follow(plan: Plan, uffd: Userfaultfd, toucher: Toucher): Promise<void> {
  const { answer = unexpected, touch = readLast, finds } = plan;
  using memory = (plan.memory ?? anonymous)(uffd.pageSize);
  uffd.register(memory.address, memory.length, plan.mode ?? 'missing');
  plan.prepare?.(uffd, memory);
  const { result, faults } = await serve(
    uffd,
    () => touch(toucher, memory.share()),
    (fault, nth) => answer(fault, uffd, memory, nth),
  );
  expect('what the thread found', result, typeof finds === 'function' ? finds(faults, memory) : finds);
  expect(
    'faults',
    faults.map(({ kind }) => kind),
    plan.faults ?? faults.map(({ kind }) => kind),
  );
}

function unexpected({ kind }: Pagefault): void {
  throw new Error(`a fault of kind '${kind}' came that was not expected`);
}

/** Serves a userfaultfd until `touch` has returned. Returns its result, all faults, and the arguments of all events. */
async function serve<T>(
  uffd: Userfaultfd,
  touch: () => Promise<T>,
  answer: (fault: Pagefault, nth: number) => void = unexpected,
): Promise<{ result: T; faults: Pagefault[]; events: unknown[] }> {
  const faults: Pagefault[] = [];
  const events: unknown[] = [];
  const event = (...args: unknown[]): void => void events.push(...args);
  const pagefault = (fault: Pagefault): void => answer(fault, faults.push(fault));
  try {
    const result = await new Promise<T>((resolve, reject) => {
      const onError = (error: unknown): 'continue' => {
        reject(error);
        // Wakes the thread that waits for the answer.
        uffd.close();
        return 'continue';
      };
      uffd.start({ pagefault, removed: event, unmapped: event, remapped: event }, { onError });
      touch().then(resolve, reject);
    });
    return { result, faults, events };
  } finally {
    uffd.stop();
  }
}

/** Fails the trial unless two values are the same. */
function expect(what: string, found: unknown, expected: unknown): void {
  const text = (value: unknown): string => {
    if (Array.isArray(value)) return value.map(text).join(' ') || 'none';
    return typeof value === 'bigint' ? `0x${value.toString(16)}` : String(value);
  };
  if (text(found) !== text(expected)) throw new Error(`${what}: ${text(found)} instead of ${text(expected)}`);
}

/** Fails the trial unless the page table says so; passes if this process may not read its own page table. */
function expectProtection(memory: Mapping, expected: boolean): void {
  let fd: number;
  try {
    fd = openSync('/proc/self/pagemap', 'r');
  } catch {
    return;
  }
  try {
    const entry = Buffer.alloc(PAGEMAP_ENTRY_BYTES);
    const page = Number(memory.address / BigInt(memory.pageSize));
    readSync(fd, entry, 0, entry.length, page * PAGEMAP_ENTRY_BYTES);
    const found = (entry.readBigUInt64LE() & PAGEMAP_WRITE_PROTECTED) !== 0n;
    expect('whether the page is write-protected', found, expected);
  } finally {
    closeSync(fd);
  }
}

/** Makes memory of one huge page. */
function hugePage(make: (length: number, options: { pageSize: number }) => Mapping): () => Mapping {
  return () => {
    const bytes = hugePages()?.bytes;
    if (!bytes) throw new TrialStopped('not tried', 'this kernel has no huge pages');
    if (bytes > HUGE_PAGE_MOST_BYTES) {
      throw new TrialStopped('not tried', `huge pages of ${bytes} bytes are too large to try`);
    }
    try {
      return make(bytes, { pageSize: bytes });
    } catch (error) {
      if (!(error instanceof UffdError && error.code === 'ENOMEM')) throw error;
      throw new TrialStopped('not tried', 'no huge pages are free, see vm.nr_hugepages');
    }
  };
}
