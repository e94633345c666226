// Simulated processes and threads. A thread's program is a generator. It yields the thread's next action, and gets the
// outcome of that action back: `const value = yield read(address)`.

import { hex } from '../errors/format.js';
import { ADVICE, E, PROT } from './abi.js';
import { AddressSpace, isShared, LOCKED } from './memory.js';
import {
  fork,
  madvise,
  mbind,
  mprotect,
  mremap,
  munmap,
  overlay,
  type SyscallSteps,
  type Wait,
} from './memory-syscalls.js';
import { type AccessMode, type FaultingThread, touch } from './touch.js';

/**
 * The outcome of an action: a number ≥ 0, the name of an errno, or the signal that memory raised ('SIGSEGV',
 * 'SIGBUS').
 */
export type Outcome = number | string;

/** One action of a thread. Made by `read`, `write`, `madvise` and the others. */
export interface Action {
  /** Description of the action. */
  readonly text: string;
  /** @internal */
  steps(thread: SimulatedThread): SyscallSteps<Outcome>;
}

/** The actions of a thread, in order. */
export type Program = Generator<Action, void, Outcome>;

/** What a process needs from the kernel. */
export interface ProcessHost {
  /** An address at which `length` bytes are free. */
  place(length: number): number;
  /**
   * Makes a child process; the caller copies the memory. `descriptors`: the child shares those of its parent, or copies
   * them.
   */
  process(parent: SimulatedProcess, descriptors: 'shared' | 'copied'): SimulatedProcess;
  thread(program: Program | undefined, process: SimulatedProcess): SimulatedThread;
  /** To call when the process has ended or called exec: closes its descriptors. */
  ended(process: SimulatedProcess): void;
  /** To call when a thread has completed an action. */
  progressed(): void;
}

/** A process of the simulated kernel: its memory, and whether it is alive. */
export class SimulatedProcess {
  readonly pid: number;
  /** @internal */
  readonly host: ProcessHost;
  /** @internal */
  space: AddressSpace;
  /** CAP_SYS_PTRACE. */
  privileged: boolean;
  exited = false;
  /** Whether the process has called exec. If so, it lives on, with other memory. */
  executed = false;
  readonly threads: SimulatedThread[] = [];
  /** Children that do not run yet. */
  readonly notStarted = new Set<SimulatedProcess>();

  /** @internal */
  constructor(pid: number, host: ProcessHost, space: AddressSpace, privileged: boolean) {
    this.pid = pid;
    this.host = host;
    this.space = space;
    this.privileged = privileged;
  }

  /** The process exits, whatever its threads are doing. */
  exit(): void {
    if (this.exited) return;
    this.exited = true;
    this.releaseMemory();
    this.host.ended(this);
  }

  /** The process continues with other memory. All of its descriptors are close-on-exec, and are closed. */
  exec(): void {
    this.executed = true;
    this.releaseMemory();
    this.space = new AddressSpace(this.space.pageSize);
    this.host.ended(this);
  }

  /** Ends the process's threads, and frees its memory. */
  releaseMemory(): void {
    for (const thread of this.threads) thread.stop();
    for (const child of this.notStarted) child.exit();
    this.space.end();
  }
}

/** Descriptions of what a thread waits for. */
const SLEEPS = {
  fault: 'asleep in a page fault',
  event: 'asleep until its message is read',
  read: 'waits',
} as const;

/** A thread of the simulated kernel: `SimulatedKernel.thread` makes it. */
export class SimulatedThread implements FaultingThread {
  readonly tid: number;
  readonly process: SimulatedProcess;
  /** The current action; undefined between two actions and at the end. */
  action: Action | undefined;
  /** @internal */
  wait: Wait | undefined;
  done = false;
  /** Pending signals. */
  signals = 0;
  /** The outcome of its last action. */
  outcome: Outcome = 0;
  /** The step at which it had its last turn, for the fair choice of the scheduler. */
  turn = 0;
  readonly #program: Program | undefined;
  #last: Action | undefined;
  #steps: SyscallSteps<Outcome> | undefined;
  /** Whether it is in the middle of a step. The step may make a call that lets other threads run. */
  #stepping = false;

  /** A thread without a program performs the actions that `begin` gives it. */
  constructor(tid: number, process: SimulatedProcess, program: Program | undefined) {
    this.tid = tid;
    this.process = process;
    this.#program = program;
    process.threads.push(this);
  }

  /** @internal */
  get space(): AddressSpace {
    return this.process.space;
  }

  /** Whether it can take a step now. */
  get runnable(): boolean {
    if (this.done || this.#stepping) return false;
    if (this.wait) return this.wait.over();
    return this.#program !== undefined || this.#steps !== undefined;
  }

  /** Whether it has no action, and gets none unless `begin` is called. */
  get idle(): boolean {
    return this.done || (this.#program === undefined && this.#steps === undefined);
  }

  /** Gives it an action. */
  begin(action: Action): void {
    this.action = action;
    this.#last = action;
    this.#steps = action.steps(this);
  }

  /** Takes one step: up to the next point at which other threads may run. */
  step(): void {
    this.#stepping = true;
    try {
      this.#step();
    } finally {
      this.#stepping = false;
    }
  }

  /** Describes its last step and the result. */
  describe(): string {
    const text = this.#last?.text ?? '';
    if (this.done) return text ? `${text}; it ends` : 'ends';
    if (this.wait) return `${text}: ${SLEEPS[this.wait.place]}`;
    return this.action ? `${text}: goes on` : `${text} → ${this.outcome}`;
  }

  #step(): void {
    this.wait = undefined;
    this.#last = this.action;
    if (!this.#steps) {
      const { value, done } = (this.#program as Program).next(this.outcome);
      if (done) {
        this.stop();
        return;
      }
      this.begin(value);
    }
    const { value, done } = (this.#steps as SyscallSteps<Outcome>).next();
    if (this.done) return;
    if (!done) {
      this.wait = value as Wait | undefined;
      return;
    }
    this.outcome = value as Outcome;
    this.#steps = undefined;
    this.action = undefined;
    this.process.host.progressed();
  }

  /** Ends it, whatever it is doing. */
  stop(): void {
    if (this.done) return;
    this.done = true;
    this.process.host.progressed();
    this.wait?.abandon?.();
    this.wait = undefined;
    this.#steps = undefined;
    this.action = undefined;
  }
}

// ---- what threads do ---------------------------------------------------------------------------------------

const ERRNO_NAMES: Readonly<Record<number, string>> = Object.fromEntries(
  Object.entries(E).map(([name, value]) => [value, `E${name}`]),
);

const ADVICE_NAMES: Readonly<Record<number, string>> = Object.fromEntries(
  Object.entries(ADVICE).map(([name, value]) => [value, name]),
);

/** Touches an address, again after each wake, until the touch succeeds or is refused. */
function* touchUntilDone(
  thread: SimulatedThread,
  address: number,
  write: boolean,
  by: AccessMode,
  space = thread.space,
): SyscallSteps<string | Uint8Array> {
  for (;;) {
    const result = touch({ tid: thread.tid, space }, address, write, by);
    if (result.is === 'refused') return result.outcome;
    if (result.is === 'page') return result.entry.is === 'page' ? result.entry.frame.bytes : EMPTY;
    const { context, waiter } = result;
    yield {
      place: 'fault',
      over: () => waiter.woken || thread.signals > 0,
      abandon: () => context.removeWaiter(waiter),
    };
    if (!waiter.woken) context.removeWaiter(waiter);
    // If the program itself touches memory, it handles the signal now. In a system call the signal stays pending.
    if (by === 'user') thread.signals = 0;
  }
}

/** The bytes of the zero page. */
const EMPTY = new Uint8Array(0);

function touching(
  address: bigint,
  by: AccessMode,
  value?: number,
): (thread: SimulatedThread) => SyscallSteps<Outcome> {
  return function* (thread) {
    const at = Number(address);
    const bytes = yield* touchUntilDone(thread, at, value !== undefined, by);
    if (typeof bytes === 'string') return bytes;
    const { space } = thread;
    const offset = at - space.startOf(at);
    if (value === undefined) {
      const found = bytes[offset] ?? 0;
      space.observer?.read(space, at, found);
      return found;
    }
    bytes[offset] = value;
    space.observer?.wrote(space, at, value);
    return 0;
  };
}

function calling(
  call: (thread: SimulatedThread) => SyscallSteps<number>,
): (thread: SimulatedThread) => SyscallSteps<Outcome> {
  return function* (thread) {
    const result = yield* call(thread);
    return result < 0 ? (ERRNO_NAMES[result] ?? `E${-result}`) : result;
  };
}

/** Reads the byte at an address, 0 to 255. `by` 'kernel': in a system call of the program. */
export function read(address: bigint, by: AccessMode = 'user'): Action {
  return { text: `read ${hex(address)}`, steps: touching(address, by) };
}

/** Writes a byte, 0 to 255. */
export function write(address: bigint, value: number, by: AccessMode = 'user'): Action {
  return { text: `write ${value} to ${hex(address)}`, steps: touching(address, by, value) };
}

/** Makes the kernel touch each page of a range: what madvise(POPULATE_*) and mlock do. */
function* populate(
  thread: SimulatedThread,
  address: bigint,
  length: number,
  writes: (at: number) => boolean,
): SyscallSteps<Outcome> {
  const end = Number(address) + length;
  for (let at = Number(address); at < end; at = thread.space.startOf(at) + thread.space.sizeAt(at)) {
    const reached = yield* touchUntilDone(thread, at, writes(at), 'kernel');
    if (typeof reached === 'string') return reached;
  }
  return 0;
}

/**
 * madvise(2): DONTNEED 4, FREE 8, REMOVE 9, DONTFORK 10, DOFORK 11, DONTDUMP 16, DODUMP 17, POPULATE_READ 22,
 * POPULATE_WRITE 23, GUARD_INSTALL 102, GUARD_REMOVE 103.
 */
export function advise(address: bigint, length: number, advice: number): Action {
  const text = `madvise(${hex(address)}, ${length}, ${ADVICE_NAMES[advice] ?? advice})`;
  if (advice === ADVICE.POPULATE_READ || advice === ADVICE.POPULATE_WRITE) {
    return {
      text,
      steps: (thread) => populate(thread, address, length, () => advice === ADVICE.POPULATE_WRITE),
    };
  }
  return { text, steps: calling((thread) => madvise(thread.space, Number(address), length, advice)) };
}

/** mlock(2) of writable memory: makes its pages resident. It writes to private memory, and reads shared memory. */
export function lock(address: bigint, length: number): Action {
  return {
    text: `mlock(${hex(address)}, ${length})`,
    *steps(thread) {
      const start = Number(address);
      thread.space.change(start, start + length, (vma) => {
        vma.traits |= LOCKED;
      });
      return yield* populate(thread, address, length, (at) => {
        const vma = thread.space.at(at);
        return vma === undefined || !isShared(vma);
      });
    },
  };
}

export function unmap(address: bigint, length: number): Action {
  return {
    text: `munmap(${hex(address)}, ${length})`,
    steps: calling((thread) => munmap(thread.space, Number(address), length)),
  };
}

/** mremap(2), whose outcome is the new address. Flags: MAYMOVE 1, FIXED 2, DONTUNMAP 4. */
export function remap(
  address: bigint,
  oldLength: number,
  newLength: number,
  flags: number,
  target = 0n,
): Action {
  return {
    text: `mremap(${hex(address)}, ${oldLength}, ${newLength}, ${flags}, ${hex(target)})`,
    steps: calling((thread) =>
      mremap(
        thread.space,
        { address: Number(address), oldLength, newLength, flags, target: Number(target) },
        (length) => thread.process.host.place(length),
      ),
    ),
  };
}

/** mprotect(2): READ 1, WRITE 2. */
export function protect(address: bigint, length: number, protection: number): Action {
  return {
    text: `mprotect(${hex(address)}, ${length}, ${protection})`,
    steps: calling(function* (thread) {
      yield undefined;
      return mprotect(thread.space, Number(address), length, protection);
    }),
  };
}

/** mbind(2): binds memory to a node, or ends the binding. */
export function bind(address: bigint, length: number, bound = true): Action {
  return {
    text: `mbind(${hex(address)}, ${length}, ${bound ? 'bind' : 'default'})`,
    steps: calling(function* (thread) {
      yield undefined;
      return mbind(thread.space, Number(address), length, bound);
    }),
  };
}

/** mmap(2) with MAP_FIXED: fresh memory in place of the memory that is mapped there. */
export function replace(
  address: bigint,
  length: number,
  protection: number = PROT.READ | PROT.WRITE,
): Action {
  return {
    text: `mmap(${hex(address)}, ${length}, fixed)`,
    steps: calling((thread) => overlay(thread.space, Number(address), length, protection)),
  };
}

export interface ForkOptions {
  /** The child's program, which runs in a thread of its own. */
  program?: () => Program;
  /** Whether the child has copies of the descriptors (default), or shares them (clone's CLONE_FILES). */
  descriptors?: 'shared' | 'copied';
  /** Called with the child's thread before it runs. */
  started?: (thread: SimulatedThread) => void;
}

/** fork(2), whose outcome is the child's pid. */
export function forked({ program, descriptors = 'copied', started }: ForkOptions = {}): Action {
  return {
    text: 'fork()',
    steps: calling(function* (thread) {
      const { host } = thread.process;
      const child = host.process(thread.process, descriptors);
      thread.process.notStarted.add(child);
      yield* fork(thread.space, child.space);
      thread.process.notStarted.delete(child);
      const born = host.thread(program?.(), child);
      started?.(born);
      return child.pid;
    }),
  };
}

/** Reads the byte at an address of another process, as process_vm_readv(2) does. */
export function readOf(process: SimulatedProcess, address: bigint): Action {
  return {
    text: `read ${hex(address)} of process ${process.pid}`,
    *steps(thread) {
      const bytes = yield* touchUntilDone(thread, Number(address), false, 'kernel', process.space);
      return typeof bytes === 'string'
        ? bytes
        : (bytes[Number(address) - process.space.startOf(Number(address))] ?? 0);
    },
  };
}

/** execve(2): the process continues with other memory, and its other threads end. */
export function exec(): Action {
  return leaving('exec()', (process) => process.exec());
}

/** Ends the thread's whole process. */
export function exit(): Action {
  return leaving('exit()', (process) => process.exit());
}

function leaving(text: string, leave: (process: SimulatedProcess) => void): Action {
  return {
    text,
    *steps({ process }) {
      yield undefined;
      leave(process);
      return 'gone';
    },
  };
}
