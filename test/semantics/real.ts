// The machine's own kernel as a World. Actors are threads of actor.c and processes forked from them.

import { closeSync, openSync, readlinkSync } from 'node:fs';
import { libc } from '../../shim/libc.js';
import { linuxKernel } from '../../shim/linux.js';
import { PROT_READ, PROT_WRITE } from '../../shim/memory.js';
import { errnoName } from '../../src/errors/errors.js';
import type { Kernel } from '../../src/kernel/port.js';
import { compileLibrary } from '../support/real-kernel.js';
import { lacks, RealMemory } from './memory.js';
import { pageBits, pagesOfSelf } from './pagemap.js';
import type { Actor, Area, By, Facility, MapOptions, MemoryKind, Outcome, PageBits, World } from './world.js';

const CLONE_FILES = 0x400;
const RTLD_NOW = 2;
const MAP_FIXED_PRIVATE_ANONYMOUS = 0x32;
const IOCTL_WORDS = 5;

/** Outcome of an actor that has not finished its step: by actor.c's `enum found`, from 1 on. */
const ASLEEP: readonly Outcome[] = ['fault', 'event', 'read', 'gone'];

const SIGNALS: Readonly<Record<number, Outcome>> = { 7: 'SIGBUS', 11: 'SIGSEGV' };

type Word = number | bigint;

interface Library {
  actorNew(): bigint;
  actorStart(actor: bigint): number;
  actorStep(actor: bigint, step: bigint, ...words: Word[]): void;
  actorSettle(actor: bigint, thread: number, forked: number): number;
  actorSignal(actor: bigint): number;
  actorResult(actor: bigint): number | bigint;
  actorWords(actor: bigint): bigint;
  actorEnd(actor: bigint, process: number): void;
  actorInterrupt(process: number, thread: number): number;
  limitDescriptors(limit: number): number;
  forgetTranslations(): number;
  look(file: number, buffer: Uint8Array, length: number, from: bigint): number;
  queueOf(file: number, counts: BigInt64Array): number;
  /** Address of a C function of actor.c or the C library. */
  find(name: string): bigint;
}

let loaded: Library | undefined;

function library(): Library {
  loaded ??= load(compileLibrary('semantics/actor.c'));
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
    actorSettle: c.func('actor_settle', 'int', ['uintptr_t', 'int', 'int']),
    actorSignal: c.func('actor_signal', 'int', ['uintptr_t']),
    actorResult: c.func('actor_result', 'intptr_t', ['uintptr_t']),
    actorWords: c.func('actor_words', 'uintptr_t', ['uintptr_t']),
    actorEnd: c.func('actor_end', 'void', ['uintptr_t', 'int']),
    actorInterrupt: c.func('actor_interrupt', 'int', ['int', 'int']),
    limitDescriptors: c.func('limit_descriptors', 'long', ['long']),
    forgetTranslations: c.func('forget_translations', 'int', []),
    look: c.func('look', 'intptr_t', ['int', 'void *', 'intptr_t', 'intptr_t']),
    queueOf: c.func('queue_of', 'int', ['int', 'void *']),
    find(name) {
      const at = found.get(name) ?? BigInt(dlsym(handle, name));
      if (at === 0n) throw new Error(`there is no function ${name}`);
      found.set(name, at);
      return at;
    },
  };
}

/** Threads that a closed world has left for the next one. */
const idle: { at: bigint; tid: number }[] = [];

class RealActor implements Actor {
  tid = 0;
  readonly #world: RealWorld;
  readonly #at: bigint;
  /** The actor is a process of its own, not a thread of the test's process. */
  readonly #forked: boolean;
  /** The child of a fork that may still sleep. */
  #child: RealActor | undefined;
  /** The step is madvise: if it sleeps, TLBs may still hold pages that it has already removed. */
  #removing = false;
  #ended = false;

  constructor(world: RealWorld, forked: boolean) {
    this.#world = world;
    this.#forked = forked;
    const thread = forked ? undefined : idle.pop();
    this.#at = thread?.at ?? BigInt(library().actorNew());
    if (this.#at === 0n) throw new Error('an actor cannot be made');
    if (forked) return;
    if (!thread && library().actorStart(this.#at) !== 0) throw new Error('a thread cannot be made');
    this.tid = thread?.tid ?? (this.#step('own_tid') as number);
  }

  #step(name: string, ...words: Word[]): Outcome {
    this.#removing = name === 'madvise';
    const six = [...words, ...Array(6 - words.length).fill(0)];
    library().actorStep(this.#at, library().find(name), ...six);
    return this.outcome();
  }

  outcome(): Outcome {
    const found = library().actorSettle(this.#at, this.tid, this.#forked ? 1 : 0);
    const asleep = ASLEEP[found - 1];
    if (asleep === 'event' && this.#removing && library().forgetTranslations() !== 0) {
      throw new Error('translations cannot be forgotten');
    }
    return asleep ?? this.#answer();
  }

  #answer(): Outcome {
    const signal = library().actorSignal(this.#at);
    if (signal) return SIGNALS[signal] ?? `signal ${signal}`;
    const result = Number(library().actorResult(this.#at));
    if (this.#child && result > 0) this.#child.tid = result;
    this.#child = undefined;
    return result < 0 ? errnoName(-result) : result;
  }

  /** Ends a process, asleep or not; keeps a thread for the next world. Ignores a child whose fork is not over. */
  end(): void {
    if (this.#ended || this.tid === 0) return;
    this.#ended = true;
    // The thread may have been in a fork: `outcome` records the child's id.
    if (this.#forked || ASLEEP.includes(this.outcome()))
      library().actorEnd(this.#at, this.#forked ? this.tid : 0);
    else idle.push({ at: this.#at, tid: this.tid });
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

/**
 * Memory for the structs of calls, which all worlds share: a page of WebAssembly memory that cannot grow, so that
 * the kernel can neither read nor write beyond its end.
 */
const memory = new WebAssembly.Memory({ initial: 1, maximum: 1 });

const counts = new BigInt64Array(2);

/** This process's memory as a file (/proc/self/mem), which ignores page protection. */
let memoryFd: number | undefined;

export class RealWorld implements World {
  readonly kernel: Kernel = linuxKernel();
  readonly memory = memory;
  readonly #actors: RealActor[] = [];
  readonly #ends: (() => void)[] = [];
  readonly #areas = new RealMemory();
  /** The open fdinfo of each descriptor number that was queried; it shows the number's current descriptor. */
  readonly #infos = new Map<number, number>();

  lacks(what: Facility): string | undefined {
    return lacks(what);
  }

  map(kind: MemoryKind, pages: number, options: MapOptions = {}): Area {
    return this.#areas.map(kind, pages, options);
  }

  peek(address: bigint, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    memoryFd ??= openSync('/proc/self/mem', 'r');
    library().look(memoryFd, bytes, length, address);
    return bytes;
  }

  pages(address: bigint, count: number): PageBits[] {
    return pagesOfSelf(address, count, library().look);
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
    let info = this.#infos.get(fd);
    if (info === undefined) {
      info = openSync(`/proc/self/fdinfo/${fd}`, 'r');
      this.#infos.set(fd, info);
    }
    if (library().queueOf(info, counts) < 0) throw new Error(`${fd} is no userfaultfd`);
    const [pending = 0, total = 0] = counts;
    return { pending: Number(pending), total: Number(total) };
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
    // A process that sleeps in a fault can be killed; a thread must be woken first, and may then have forked.
    for (const actor of processes) actor.end();
    for (const end of this.#ends.reverse()) end();
    for (const actor of [...threads, ...processes]) actor.end();
    for (const info of this.#infos.values()) closeSync(info);
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
