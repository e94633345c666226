// The machine's own kernel as a World. Actors are threads of actor.c and processes forked from them; whether one
// is asleep, /proc says: a thread that was woken has no place to wait in any more when the waking call returns.

import { openSync, readFileSync, readlinkSync, readSync } from 'node:fs';
import { libc } from '../../shim/libc.js';
import { linuxKernel } from '../../shim/linux.js';
import { PROT_READ, PROT_WRITE } from '../../shim/memory.js';
import { errnoName } from '../../src/errors.js';
import type { Kernel } from '../../src/kernel.js';
import { compileLibrary } from '../kernel/support.js';
import { lacks, RealMemory } from './memory.js';
import { pageBits, pagesOfSelf } from './pagemap.js';
import type { Actor, Area, By, Facility, MapOptions, MemoryKind, Outcome, PageBits, World } from './world.js';

const CLONE_FILES = 0x400;
const RTLD_NOW = 2;
const MAP_FIXED_PRIVATE_ANONYMOUS = 0x32;
const IOCTL_WORDS = 5;

/** Where a thread waits, by a part of the kernel's name for the place. */
const PLACES: readonly (readonly [string, Outcome])[] = [
  ['handle_userfault', 'fault'],
  ['userfaultfd_event_wait', 'event'],
  ['userfaultfd_ctx_read', 'read'],
  ['userfaultfd_read', 'read'],
  ['nanosleep', 'gone'],
];

const SIGNALS: Readonly<Record<number, Outcome>> = { 7: 'SIGBUS', 11: 'SIGSEGV' };

type Word = number | bigint;

interface Library {
  actorNew(): bigint;
  actorStart(actor: bigint): number;
  actorStep(actor: bigint, step: bigint, ...words: Word[]): void;
  actorDone(actor: bigint): number;
  actorSignal(actor: bigint): number;
  actorResult(actor: bigint): number | bigint;
  actorWords(actor: bigint): bigint;
  actorEnd(actor: bigint, process: number): void;
  actorInterrupt(process: number, thread: number): number;
  limitDescriptors(limit: number): number;
  /** Where a C function is, of actor.c or the C library. */
  find(name: string): bigint;
}

let loaded: Library | undefined;

function library(): Library {
  loaded ??= load(compileLibrary('../semantics/actor.c'));
  return loaded;
}

function load(path: string): Library {
  const { koffi } = libc();
  const c = koffi.load(path);
  const all = koffi.load(null);
  const dlsym = all.func('dlsym', 'uintptr_t', ['uintptr_t', 'str']);
  const handle = all.func('dlopen', 'uintptr_t', ['str', 'int'])(path, RTLD_NOW);
  const found = new Map<string, bigint>();
  const words = Array<string>(6).fill('intptr_t');
  return {
    actorNew: c.func('actor_new', 'uintptr_t', []),
    actorStart: c.func('actor_start', 'int', ['uintptr_t']),
    actorStep: c.func('actor_step', 'void', ['uintptr_t', 'uintptr_t', ...words]),
    actorDone: c.func('actor_done', 'int', ['uintptr_t']),
    actorSignal: c.func('actor_signal', 'int', ['uintptr_t']),
    actorResult: c.func('actor_result', 'intptr_t', ['uintptr_t']),
    actorWords: c.func('actor_words', 'uintptr_t', ['uintptr_t']),
    actorEnd: c.func('actor_end', 'void', ['uintptr_t', 'int']),
    actorInterrupt: c.func('actor_interrupt', 'int', ['int', 'int']),
    limitDescriptors: c.func('limit_descriptors', 'long', ['long']),
    find(name) {
      const at = found.get(name) ?? BigInt(dlsym(handle, name));
      if (at === 0n) throw new Error(`there is no function ${name}`);
      found.set(name, at);
      return at;
    },
  };
}

/** How often to look for a step's end before asking what its thread waits for. */
const SHORT_LOOKS = 200;
const PATIENT_LOOKS = 10;

const pause = new Int32Array(new SharedArrayBuffer(4));

function procFile(path: string): string {
  try {
    return readFileSync(`/proc/${path}`, 'utf8');
  } catch {
    return '';
  }
}

class RealActor implements Actor {
  tid = 0;
  readonly #world: RealWorld;
  readonly #at: bigint;
  /** A process of its own, that is; not a thread of the test's. */
  readonly #forked: boolean;
  /** What was forked in the step that may still sleep. */
  #child: RealActor | undefined;
  #ended = false;

  constructor(world: RealWorld, forked: boolean) {
    this.#world = world;
    this.#forked = forked;
    this.#at = BigInt(library().actorNew());
    if (this.#at === 0n) throw new Error('an actor cannot be made');
    if (forked) return;
    if (library().actorStart(this.#at) !== 0) throw new Error('a thread cannot be made');
    this.tid = this.#step('own_tid') as number;
  }

  #step(name: string, ...words: Word[]): Outcome {
    const six = [...words, ...Array(6 - words.length).fill(0)];
    library().actorStep(this.#at, library().find(name), ...six);
    // Most steps are short: asking where it waits costs more than they do.
    for (let looks = 0; looks < SHORT_LOOKS; looks++) {
      if (library().actorDone(this.#at)) return this.#answer();
    }
    return this.outcome();
  }

  outcome(): Outcome {
    for (let looks = 0; ; looks++) {
      if (library().actorDone(this.#at)) return this.#answer();
      const asleep = this.#asleep();
      if (asleep !== undefined) return asleep;
      // Where it takes longer, others may need the processor.
      if (looks > PATIENT_LOOKS) Atomics.wait(pause, 0, 0, 0.05);
    }
  }

  #answer(): Outcome {
    const signal = library().actorSignal(this.#at);
    if (signal) return SIGNALS[signal] ?? `signal ${signal}`;
    const result = Number(library().actorResult(this.#at));
    if (this.#child && result > 0) this.#child.tid = result;
    this.#child = undefined;
    return result < 0 ? errnoName(-result) : result;
  }

  #asleep(): Outcome | undefined {
    if (this.tid === 0) return undefined;
    const folder = this.#forked ? `${this.tid}` : `self/task/${this.tid}`;
    if (this.#forked && /^State:\s*Z/m.test(procFile(`${folder}/status`))) return 'gone';
    const place = procFile(`${folder}/wchan`);
    return PLACES.find(([name]) => place.includes(name))?.[1];
  }

  /** Ends it: a process asleep or not, a thread when it is through its step. A fork not yet through is left. */
  end(): void {
    if (this.#ended || this.tid === 0) return;
    this.#ended = true;
    if (!this.#forked) this.outcome();
    library().actorEnd(this.#at, this.#forked ? this.tid : 0);
  }

  get forked(): boolean {
    return this.#forked;
  }

  read(address: bigint, by: By = 'user'): Outcome {
    return this.#step(by === 'user' ? 'peek' : 'kernel_peek', address);
  }

  write(address: bigint, value: number, by: By = 'user'): Outcome {
    return this.#step(by === 'user' ? 'poke' : 'kernel_poke', address, value);
  }

  readOf(process: Actor, address: bigint): Outcome {
    return this.#step('remote_peek', process.tid, address);
  }

  madvise(address: bigint, length: number, advice: number): Outcome {
    return this.#step('madvise', address, length, advice);
  }

  munmap(address: bigint, length: number): Outcome {
    return this.#step('munmap', address, length);
  }

  mremap(address: bigint, oldLength: number, newLength: number, flags: number, to = 0n): Outcome {
    return this.#step('mremap', address, oldLength, newLength, flags, to);
  }

  mprotect(address: bigint, length: number, protection: number): Outcome {
    return this.#step('mprotect', address, length, protection);
  }

  mlock(address: bigint, length: number): Outcome {
    return this.#step('mlock', address, length);
  }

  overlay(address: bigint, length: number): Outcome {
    return this.#step('mmap', address, length, PROT_READ | PROT_WRITE, MAP_FIXED_PRIVATE_ANONYMOUS, -1, 0);
  }

  fork(descriptors: 'shared' | 'copied' = 'shared'): Actor {
    const child = new RealActor(this.#world, true);
    this.#world.adopt(child);
    this.#child = child;
    this.#step('fork_actor', child.#at, descriptors === 'shared' ? CLONE_FILES : 0);
    return child;
  }

  exit(): Outcome {
    return this.#step('_exit', 0);
  }

  exec(): Outcome {
    return this.#step('exec_sleep');
  }

  kill(): void {
    if (!this.#forked) throw new Error('a thread cannot be killed');
    this.end();
  }

  interrupt(): void {
    library().actorInterrupt(this.#forked ? this.tid : process.pid, this.tid);
  }

  dropPrivileges(): Outcome {
    return this.#step('drop_privileges');
  }

  userfaultfd(flags: number): Outcome {
    return this.#step('new_userfaultfd', flags);
  }

  ioctl(fd: number, request: number, at: number): Outcome {
    const view = libc().koffi.view(library().actorWords(this.#at), IOCTL_WORDS * 8);
    const theirs = new BigUint64Array(view);
    const ours = new BigUint64Array(this.#world.memory.buffer, at, IOCTL_WORDS);
    theirs.set(ours);
    const outcome = this.#step('own_ioctl', fd, request);
    ours.set(theirs);
    return outcome;
  }

  readInto(fd: number, address: bigint, length: number): Outcome {
    return this.#step('read', fd, address, length);
  }

  page(address: bigint): PageBits {
    return pageBits(this.#forked ? `${this.tid}` : 'self', address);
  }
}

/** A page of WebAssembly memory that cannot grow: what lies behind its end cannot be read or written. */
const STRUCTS = { initial: 1, maximum: 1 };

/** This process's memory as a file, which can be read whatever its protection. */
let memoryFd: number | undefined;

export class RealWorld implements World {
  readonly kernel: Kernel = linuxKernel();
  readonly memory = new WebAssembly.Memory(STRUCTS);
  readonly #actors: RealActor[] = [];
  readonly #ends: (() => void)[] = [];
  readonly #areas = new RealMemory();

  lacks(what: Facility): string | undefined {
    return lacks(what);
  }

  map(kind: MemoryKind, pages: number, options: MapOptions = {}): Area {
    return this.#areas.map(kind, pages, options);
  }

  peek(address: bigint, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    memoryFd ??= openSync('/proc/self/mem', 'r');
    readSync(memoryFd, bytes, 0, length, address);
    return bytes;
  }

  pages(address: bigint, count: number): PageBits[] {
    return pagesOfSelf(address, count);
  }

  vacant(pages: number): bigint {
    return this.#areas.vacant(pages);
  }

  thread(): Actor {
    return this.adopt(new RealActor(this, false));
  }

  adopt(actor: RealActor): RealActor {
    this.#actors.push(actor);
    return actor;
  }

  queue(fd: number): { pending: number; total: number } {
    const info = procFile(`self/fdinfo/${fd}`);
    const field = (name: string): number => Number(new RegExp(`^${name}:\\s*(\\d+)`, 'm').exec(info)?.[1]);
    return { pending: field('pending'), total: field('total') };
  }

  withoutDescriptors(body: () => void): void {
    const free = freeDescriptor();
    const former = library().limitDescriptors(free);
    try {
      body();
    } finally {
      library().limitDescriptors(former);
    }
  }

  async during<T>(something: T | Promise<T>): Promise<T> {
    return something;
  }

  defer(end: () => void): void {
    this.#ends.push(end);
  }

  close(): void {
    const [threads, processes] = [false, true].map((forked) =>
      this.#actors.filter((actor) => actor.forked === forked),
    ) as [RealActor[], RealActor[]];
    // A process that sleeps in a fault can be killed; a thread has to be let go first, and may have forked then.
    for (const actor of processes) actor.end();
    for (const end of this.#ends.reverse()) end();
    for (const actor of [...threads, ...processes]) actor.end();
    this.#areas.close();
  }
}

/** The number that the next descriptor would get. */
function freeDescriptor(): number {
  for (let fd = 0; ; fd++) {
    try {
      readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return fd;
    }
  }
}
