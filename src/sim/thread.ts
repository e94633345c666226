// Simulated processes and threads. A thread's program is a generator function that yields what it does next, and is
// given what came of it: `const value = yield read(address)`.

import { ADVICE, E, PROT } from './abi.js';
import { AddressSpace, LOCKED } from './memory.js';
import {
  fork,
  madvise,
  mbind,
  mprotect,
  mremap,
  munmap,
  overlay,
  type Steps,
  type Wait,
} from './mutators.js';
import { type By, type Toucher, touch } from './touch.js';

/**
 * What came of a step: a number ≥ 0, −errno as the name of an errno, or the signal that memory raised ('SIGSEGV',
 * 'SIGBUS').
 */
export type Outcome = number | string;

/** One thing that a thread does. Made by `read`, `write`, `madvise` and the others. */
export interface Action {
  /** For people. */
  readonly text: string;
  /** @internal */
  steps(thread: SimulatedThread): Steps<Outcome>;
}

/** What a thread does, one after the other. */
export type Program = Generator<Action, void, Outcome>;

/** What a process needs of the world around it. */
export interface Surroundings {
  /** A place where `length` bytes can be mapped. */
  place(length: number): number;
  /** Begins another process: its memory is a copy that the caller makes. `descriptors`: shared with its parent, or copied. */
  process(parent: SimulatedProcess, descriptors: 'shared' | 'copied'): SimulatedProcess;
  thread(program: Program | undefined, process: SimulatedProcess): SimulatedThread;
  /** The process ends: descriptors it holds are closed. */
  ended(process: SimulatedProcess): void;
  /** A thread has done what it was doing. */
  progressed(): void;
}

/** A process of the simulated kernel: its memory, and whether it lives. */
export class SimulatedProcess {
  readonly pid: number;
  /** @internal */
  readonly world: Surroundings;
  /** @internal */
  space: AddressSpace;
  /** CAP_SYS_PTRACE. */
  privileged: boolean;
  exited = false;
  /** It has called exec: it lives on, with other memory. */
  executed = false;
  readonly threads: SimulatedThread[] = [];
  /** Children that do not run yet. */
  readonly unborn = new Set<SimulatedProcess>();

  /** @internal */
  constructor(pid: number, world: Surroundings, space: AddressSpace, privileged: boolean) {
    this.pid = pid;
    this.world = world;
    this.space = space;
    this.privileged = privileged;
  }

  /** The process exits, in the middle of whatever its threads do. */
  exit(): void {
    if (this.exited) return;
    this.exited = true;
    this.leaveMemory();
    this.world.ended(this);
  }

  /** The process goes on with other memory: descriptors that are close-on-exec are gone, as all here are. */
  exec(): void {
    this.executed = true;
    this.leaveMemory();
    this.space = new AddressSpace(this.space.pageSize);
    this.world.ended(this);
  }

  /** Its threads end, and its memory is gone. */
  leaveMemory(): void {
    for (const thread of this.threads) thread.stop();
    for (const child of this.unborn) child.exit();
    this.space.end();
  }
}

/** How it sleeps, for people. */
const SLEEPS = {
  fault: 'asleep in a page fault',
  event: 'asleep until its message is read',
  read: 'waits',
} as const;

/** A thread of the simulated kernel: `SimulatedKernel.thread` makes it. */
export class SimulatedThread implements Toucher {
  readonly tid: number;
  readonly process: SimulatedProcess;
  /** What it is doing; undefined between two actions and at the end. */
  action: Action | undefined;
  /** @internal */
  wait: Wait | undefined;
  done = false;
  /** Signals that it has not handled. */
  signals = 0;
  /** What came of its last action. */
  outcome: Outcome = 0;
  /** When it was its turn last, for a scheduler that is fair. */
  turn = 0;
  readonly #program: Program | undefined;
  #last: Action | undefined;
  #steps: Steps<Outcome> | undefined;
  /** It is in the middle of a step, which may be a call that lets others run. */
  #stepping = false;

  /** Without a program it does what `begin` gives it. */
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

  /** Whether it can do something now. */
  get runnable(): boolean {
    if (this.done || this.#stepping) return false;
    if (this.wait) return this.wait.over();
    return this.#program !== undefined || this.#steps !== undefined;
  }

  /** Whether it has nothing to do, and will not have without being told. */
  get idle(): boolean {
    return this.done || (this.#program === undefined && this.#steps === undefined);
  }

  /** Gives it something to do. */
  begin(action: Action): void {
    this.action = action;
    this.#last = action;
    this.#steps = action.steps(this);
  }

  /** Does one step: up to the next point where others may run. */
  step(): void {
    this.#stepping = true;
    try {
      this.#step();
    } finally {
      this.#stepping = false;
    }
  }

  /** What its last step did, and where that left it, for people. */
  describe(): string {
    const said = this.#last?.text ?? '';
    if (this.done) return said ? `${said}; it ends` : 'ends';
    if (this.wait) return `${said}: ${SLEEPS[this.wait.place]}`;
    return this.action ? `${said}: goes on` : `${said} → ${this.outcome}`;
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
    const { value, done } = (this.#steps as Steps<Outcome>).next();
    if (this.done) return;
    if (!done) {
      this.wait = value as Wait | undefined;
      return;
    }
    this.outcome = value as Outcome;
    this.#steps = undefined;
    this.action = undefined;
    this.process.world.progressed();
  }

  /** Ends it wherever it is. */
  stop(): void {
    if (this.done) return;
    this.done = true;
    this.process.world.progressed();
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

/** A number ≥ 0, or the errno's name. */
export function outcomeOf(result: number): Outcome {
  return result < 0 ? (ERRNO_NAMES[result] ?? `E${-result}`) : result;
}

const ADVICE_NAMES: Readonly<Record<number, string>> = Object.fromEntries(
  Object.entries(ADVICE).map(([name, value]) => [value, name]),
);

/** Touches an address until it gets through. */
function* reach(
  thread: SimulatedThread,
  address: number,
  write: boolean,
  by: By,
  space = thread.space,
): Steps<string | Uint8Array> {
  for (;;) {
    const touched = touch({ tid: thread.tid, space }, address, write, by);
    if (touched.is === 'refused') return touched.outcome;
    if (touched.is === 'page') return touched.entry.is === 'page' ? touched.entry.frame.bytes : EMPTY;
    const { context, sleeper } = touched;
    yield {
      place: 'fault',
      over: () => sleeper.woken || thread.signals > 0,
      abandon: () => context.forget(sleeper),
    };
    if (!sleeper.woken) context.forget(sleeper);
    // The program's own touch returns to it, so it handles the signal; in a system call the signal stays.
    if (by === 'user') thread.signals = 0;
  }
}

/** The zero page. */
const EMPTY = new Uint8Array(0);

function touching(address: bigint, by: By, value?: number): (thread: SimulatedThread) => Steps<Outcome> {
  return function* (thread) {
    const at = Number(address);
    const bytes = yield* reach(thread, at, value !== undefined, by);
    if (typeof bytes === 'string') return bytes;
    const { space } = thread;
    const offset = at - space.startOf(at);
    if (value === undefined) {
      const found = bytes[offset] ?? 0;
      space.witness?.read(space, at, found);
      return found;
    }
    bytes[offset] = value;
    space.witness?.wrote(space, at, value);
    return 0;
  };
}

function calling(
  call: (thread: SimulatedThread) => Steps<number>,
): (thread: SimulatedThread) => Steps<Outcome> {
  return function* (thread) {
    return outcomeOf(yield* call(thread));
  };
}

const hex = (address: bigint): string => `0x${address.toString(16)}`;

/** The byte at an address: 0 to 255. `by` 'kernel': in a system call. */
export function read(address: bigint, by: By = 'user'): Action {
  return { text: `read ${hex(address)}`, steps: touching(address, by) };
}

/** Writes a byte, 0 to 255. */
export function write(address: bigint, value: number, by: By = 'user'): Action {
  return { text: `write ${value} to ${hex(address)}`, steps: touching(address, by, value) };
}

/** Makes the kernel touch each page of a range: what madvise(POPULATE_*) and mlock do. */
function* populate(thread: SimulatedThread, address: bigint, length: number, write: boolean): Steps<Outcome> {
  const end = Number(address) + length;
  for (let at = Number(address); at < end; at = thread.space.startOf(at) + thread.space.sizeAt(at)) {
    const reached = yield* reach(thread, at, write, 'kernel');
    if (typeof reached === 'string') return reached;
  }
  return 0;
}

/** madvise(2): DONTNEED 4, FREE 8, DONTDUMP 16, DODUMP 17, POPULATE_READ 22, POPULATE_WRITE 23, GUARD_INSTALL 102, GUARD_REMOVE 103. */
export function advise(address: bigint, length: number, advice: number): Action {
  const text = `madvise(${hex(address)}, ${length}, ${ADVICE_NAMES[advice] ?? advice})`;
  if (advice === ADVICE.POPULATE_READ || advice === ADVICE.POPULATE_WRITE) {
    return { text, steps: (thread) => populate(thread, address, length, advice === ADVICE.POPULATE_WRITE) };
  }
  return { text, steps: calling((thread) => madvise(thread.space, Number(address), length, advice)) };
}

/** mlock(2) of writable memory: its pages are brought in. */
export function lock(address: bigint, length: number): Action {
  return {
    text: `mlock(${hex(address)}, ${length})`,
    *steps(thread) {
      const start = Number(address);
      thread.space.change(start, start + length, (vma) => {
        vma.traits |= LOCKED;
      });
      return yield* populate(thread, address, length, true);
    },
  };
}

export function unmap(address: bigint, length: number): Action {
  return {
    text: `munmap(${hex(address)}, ${length})`,
    steps: calling((thread) => munmap(thread.space, Number(address), length)),
  };
}

/** mremap(2): the new address. Flags: MAYMOVE 1, FIXED 2, DONTUNMAP 4. */
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
        (length) => thread.process.world.place(length),
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

/** mbind(2): binds memory to a node, or lets it go. */
export function bind(address: bigint, length: number, bound = true): Action {
  return {
    text: `mbind(${hex(address)}, ${length}, ${bound ? 'bind' : 'default'})`,
    steps: calling(function* (thread) {
      yield undefined;
      return mbind(thread.space, Number(address), length, bound);
    }),
  };
}

/** mmap(2) with MAP_FIXED: fresh memory in place of what is there. */
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
  /** What the child does, as a thread of its own. */
  program?: () => Program;
  /** The descriptors: the child's own copies (default), or shared (clone's CLONE_FILES). */
  descriptors?: 'shared' | 'copied';
  /** Told of the child's thread before it runs. */
  started?: (thread: SimulatedThread) => void;
}

/** fork(2): the child's pid. */
export function forked({ program, descriptors = 'copied', started }: ForkOptions = {}): Action {
  return {
    text: 'fork()',
    steps: calling(function* (thread) {
      const { world } = thread.process;
      const child = world.process(thread.process, descriptors);
      thread.process.unborn.add(child);
      yield* fork(thread.space, child.space);
      thread.process.unborn.delete(child);
      const born = world.thread(program?.(), child);
      started?.(born);
      return child.pid;
    }),
  };
}

/** The byte at an address of another process, by process_vm_readv. */
export function readOf(process: SimulatedProcess, address: bigint): Action {
  return {
    text: `read ${hex(address)} of process ${process.pid}`,
    *steps(thread) {
      const bytes = yield* reach(thread, Number(address), false, 'kernel', process.space);
      return typeof bytes === 'string'
        ? bytes
        : (bytes[Number(address) - process.space.startOf(Number(address))] ?? 0);
    },
  };
}

/** execve(2): the process goes on with other memory, and its other threads end. */
export function exec(): Action {
  return {
    text: 'exec()',
    *steps(thread) {
      yield undefined;
      thread.process.exec();
      return 'gone';
    },
  };
}

/** Ends the thread's whole process. */
export function exit(): Action {
  return {
    text: 'exit()',
    *steps(thread) {
      yield undefined;
      thread.process.exit();
      return 'gone';
    },
  };
}
