// Random programs for a world: plain steps, drawn from a chooser, that any world can run. The answers of a world to a
// program form a list of lines. In these lines an address is a place in the program's own areas, so that the lines of
// two worlds can be compared.
//
// Rules:
//  - A line shows all state of the quiet world: the answer of the call with its output field, where each actor sleeps,
//    the queue's counters, the page tables of every area.
//  - A sleeping actor gets no step until it is woken; its line says that it sleeps.
//  - A read takes the queued faults, and at most one message of a change; all actors are quiet before the next read. If
//    a read took several changes, the actor of the first could run on and post another message in the same read.
//  - In programs with shared memory, no two actors sleep in faults if it would matter which of them runs first.
//  - The faults of one read are sorted: threads that were woken together fault again in any order.

import type { Chooser } from '../../../src/sim/index.js';
import { type Answer, adopt, Feature, type Message, openUffd, type Uffd } from '../../semantics/calls.js';
import type { Actor, Area, Outcome, PageBits, World } from '../../semantics/world.js';
import { dontNeed, makeObject, type SharedObject } from './objects.js';

/** A part of an area: page numbers. */
interface Part {
  area: number;
  page: number;
  pages: number;
}

export type Step =
  | ({ do: 'register'; uffd: number; mode: number } & Part)
  | ({ do: 'unregister' | 'wake'; uffd: number } & Part)
  | ({
      do: 'copy' | 'zeropage' | 'poison' | 'continue' | 'writeprotect';
      uffd: number;
      mode: number;
    } & Part)
  | ({ do: 'move'; uffd: number; mode: number; from: number; fromPage: number } & Part)
  | { do: 'take'; uffd: number; most: number }
  | { do: 'close'; uffd: number }
  | ({ do: 'read'; actor: number; by: 'user' | 'kernel' } & Part)
  | ({ do: 'write'; actor: number; by: 'user' | 'kernel'; value: number } & Part)
  | ({ do: 'madvise'; actor: number; advice: number } & Part)
  | ({ do: 'munmap' | 'overlay'; actor: number } & Part)
  | ({ do: 'mprotect'; actor: number; protection: number } & Part)
  | ({ do: 'mremap'; actor: number; to: number; newPages: number; flags: number } & Part)
  /** Calls that the handler makes itself: with the descriptor of a shared object, or madvise(DONTNEED). */
  | { do: 'put'; object: number; page: number; pages: number; value: number }
  | { do: 'punch'; object: number; page: number; pages: number }
  | ({ do: 'drop' } & Part)
  | { do: 'fork'; actor: number }
  | { do: 'exit'; actor: number }
  | { do: 'interrupt'; actor: number };

export interface Plan {
  features: bigint;
  areas: number;
  /** Whether there are shared memory objects, and mappings of them, as further areas. */
  shared?: boolean;
  steps: Step[];
}

const PAGES = 6;
/** Areas that are mapped at first, and free places to which a program can move memory. */
const AREAS = 2;
const PLACES = 2;
const THREADS = 3;
const PAGE = 4096n;
/** Each actor has its own bytes in every page, so that it does not matter which of two woken actors runs first. */
const PLACE_BYTES = 8;
const PLACES_IN_PAGE = THREADS + 2;

const OPTIONAL = [
  Feature.flagWp,
  Feature.eventFork,
  Feature.eventRemap,
  Feature.eventRemove,
  Feature.eventUnmap,
  Feature.threadId,
  Feature.exactAddress,
  Feature.wpUnpopulated,
];
const RARE = [Feature.sigbus, Feature.wpAsync];

/** How often each kind of step is drawn. */
const WEIGHTS: readonly (readonly [Step['do'], number])[] = [
  ['read', 8],
  ['write', 8],
  ['take', 8],
  ['copy', 6],
  ['zeropage', 4],
  ['register', 4],
  ['writeprotect', 5],
  ['wake', 3],
  ['madvise', 4],
  ['move', 3],
  ['poison', 2],
  ['unregister', 2],
  ['munmap', 1],
  ['overlay', 1],
  ['mremap', 2],
  ['mprotect', 1],
  ['fork', 1],
  ['interrupt', 1],
  ['continue', 1],
  ['exit', 1],
  ['close', 1],
];
/** The same for programs with shared memory: fewer changes of mappings. */
const SHARED_WEIGHTS: readonly (readonly [Step['do'], number])[] = [
  ['read', 10],
  ['write', 10],
  ['take', 10],
  ['continue', 9],
  ['put', 6],
  ['writeprotect', 5],
  ['copy', 4],
  ['punch', 4],
  ['drop', 4],
  ['madvise', 4],
  ['register', 3],
  ['zeropage', 2],
  ['poison', 2],
  ['wake', 2],
  ['move', 1],
  ['unregister', 1],
  ['munmap', 1],
  ['overlay', 1],
  ['mremap', 1],
  ['mprotect', 1],
  ['fork', 1],
  ['interrupt', 1],
  ['exit', 1],
  ['close', 1],
];
const KINDS = WEIGHTS.flatMap(([kind, weight]) => Array<Step['do']>(weight).fill(kind));
const SHARED_KINDS = SHARED_WEIGHTS.flatMap(([kind, weight]) => Array<Step['do']>(weight).fill(kind));

/** The objects of programs with shared memory: their pages. */
const OBJECTS = [6, 4];
/** Their mappings, which are the last areas: the object, the page of it that is mapped first, whether it is private. */
const MAPPINGS: readonly (readonly [object: number, firstPage: number, isPrivate: boolean])[] = [
  [0, 0, false],
  [0, 0, false],
  [0, 2, false],
  [1, 0, false],
  [0, 0, true],
  [0, 2, true],
];
/** The index of the first private one. */
const PRIVATE = 4;

/** Draws a program of `length` steps. */
export function draw(chooser: Chooser, length: number, shared = false): Plan {
  let features = 0n;
  // With EVENT_REMOVE the handler cannot call madvise itself.
  const chanceOf = (bit: bigint): number => (shared && bit === Feature.eventRemove ? 0.25 : 0.5);
  for (const bit of OPTIONAL) if (chooser.chance(chanceOf(bit))) features |= bit;
  for (const bit of RARE) if (chooser.chance(0.08)) features |= bit;
  const main = shared ? AREAS + PLACES + (chooser.chance(0.5) ? PRIVATE : 0) : 0;
  const steps: Step[] = [
    {
      do: 'register',
      uffd: 0,
      mode: 1 + chooser.below(shared ? 7 : 3),
      area: main,
      page: 0,
      pages: shared ? PAGES : 1 + chooser.below(PAGES),
    },
  ];
  while (steps.length < length) steps.push(drawStep(chooser, shared, main));
  return { features, areas: AREAS, steps, ...(shared ? { shared } : {}) };
}

/** Draws an area. In programs with shared memory, most are the mapping that is registered first (`main`). */
function drawArea(chooser: Chooser, shared: boolean, main: number): number {
  if (!shared || chooser.chance(0.1)) return chooser.below(AREAS + PLACES);
  return chooser.chance(0.6) ? main : AREAS + PLACES + chooser.below(MAPPINGS.length);
}

function drawStep(chooser: Chooser, shared: boolean, main: number): Step {
  const pick = <T>(...choices: readonly T[]): T => choices[chooser.below(choices.length)] as T;
  const kinds = shared ? SHARED_KINDS : KINDS;
  const kind = kinds[chooser.below(kinds.length)] as Step['do'];
  const area = drawArea(chooser, shared, main);
  const page = chooser.below(PAGES);
  const most = shared ? Math.min(3, PAGES - page) : PAGES - page;
  const part: Part = { area, page, pages: 1 + chooser.below(most) };
  const actor = chooser.below(THREADS + 1);
  const uffd = chooser.chance(shared ? 0.05 : 0.15) ? 1 : 0;
  const by = pick('user', 'user', 'kernel');
  switch (kind) {
    case 'register':
      return {
        do: kind,
        uffd,
        mode: shared ? pick(1, 2, 3, 4, 5, 6, 7, 7) : pick(1, 1, 2, 3, 3, 4),
        ...part,
      };
    case 'unregister':
    case 'wake':
      return { do: kind, uffd, ...part };
    case 'copy':
      return { do: kind, uffd, mode: pick(0, 0, 0, 1, 2, 3), ...part };
    case 'zeropage':
    case 'poison':
      return { do: kind, uffd, mode: pick(0, 0, 1), ...part };
    case 'continue':
      return { do: kind, uffd, mode: shared ? pick(0, 0, 1, 2, 2, 3) : pick(0, 0, 1), ...part };
    case 'put': {
      const object = chooser.below(OBJECTS.length);
      const first = chooser.below(OBJECTS[object] as number);
      const pages = 1 + chooser.below((OBJECTS[object] as number) - first);
      return { do: kind, object, page: first, pages, value: 1 + chooser.below(200) };
    }
    case 'punch': {
      const object = chooser.below(OBJECTS.length);
      const first = chooser.below(OBJECTS[object] as number);
      const pages = 1 + chooser.below((OBJECTS[object] as number) - first);
      return { do: kind, object, page: first, pages };
    }
    case 'drop':
      return { do: kind, ...part };
    case 'writeprotect':
      return { do: kind, uffd, mode: pick(0, 1, 1, 2), ...part };
    case 'move':
      return {
        do: kind,
        uffd,
        mode: pick(0, 0, 1, 2),
        from: drawArea(chooser, shared, main),
        fromPage: chooser.below(PAGES),
        ...part,
      };
    case 'take':
      return { do: kind, uffd, most: pick(1, 2, 8, 8) };
    case 'close':
      return { do: kind, uffd: 1 };
    case 'read':
      return { do: kind, actor, by, ...part };
    case 'write':
      return { do: kind, actor, by, value: 1 + chooser.below(200), ...part };
    case 'madvise':
      // A guard over a write-protect marker of shared memory: Linux 6.18 tries again for ever.
      return {
        do: kind,
        actor,
        advice: shared ? pick(4, 4, 4, 8, 9, 9, 10, 11, 16, 17, 103) : pick(4, 4, 4, 8, 16, 17, 102, 103),
        ...part,
      };
    case 'munmap':
    case 'overlay':
      return { do: kind, actor, ...part };
    case 'mprotect':
      return { do: kind, actor, protection: pick(0, 1, 3, 3), ...part };
    case 'mremap':
      return {
        do: kind,
        actor,
        to: shared ? pick(-1, 0, 1, 2, 3, main, main + 1) : pick(-1, 0, 1, 2, 3),
        newPages: 1 + chooser.below(PAGES),
        flags: pick(0, 1, 1, 5),
        ...part,
      };
    default:
      return { do: kind, actor } as Step;
  }
}

/** One run of a program in a world. */
export class Run {
  readonly #world: World;
  readonly #areas: Area[] = [];
  readonly #objects: SharedObject[] = [];
  /** Whether a change of the handler itself would wait for a message. */
  readonly #waits: boolean;
  readonly #actors: Actor[] = [];
  readonly #uffds: Uffd[] = [];
  /** Actors whose last touch came from a system call. */
  readonly #inKernel = new Set<Actor>();
  readonly #closed = new Set<Uffd>();
  readonly #source: bigint;
  /** The last touch of each actor. */
  readonly #touched = new Map<Actor, Part & { do: Step['do']; actor: number }>();
  /** The last step of each actor. */
  readonly #doing = new Map<Actor, Step['do']>();

  constructor(world: World, plan: Plan) {
    this.#world = world;
    this.#waits = (plan.features & Feature.eventRemove) !== 0n;
    for (let area = 0; area < AREAS; area++) this.#areas.push(world.map('anonymous', PAGES));
    for (let place = 0; place < PLACES; place++) {
      const address = world.vacant(PAGES);
      this.#areas.push({ address, length: PAGES * 4096, pageSize: 4096, alias: 0n });
    }
    if (plan.shared) this.#mapObjects();
    for (let thread = 0; thread < THREADS; thread++) this.#actors.push(world.thread());
    const source = world.map('anonymous', PAGES);
    for (let page = 0; page < PAGES; page++) {
      (this.#actors[0] as Actor).write(source.address + BigInt(page) * PAGE, 201 + page);
    }
    this.#source = source.address;
    this.#uffds.push(openUffd(world, plan.features), openUffd(world, 0n));
  }

  #mapObjects(): void {
    this.#objects.push(...OBJECTS.map((pages) => makeObject(this.#world, pages)));
    for (const [object, firstPage, isPrivate] of MAPPINGS) {
      const address = (this.#objects[object] as SharedObject).map(firstPage, PAGES, isPrivate);
      this.#areas.push({ address, length: PAGES * 4096, pageSize: 4096, alias: 0n });
    }
  }

  /** Performs one step. Returns its result, and the observable state afterwards. */
  do(step: Step): string {
    return `${this.#act(step)} | ${this.#seen()}`;
  }

  #address({ area, page }: { area: number; page: number }): bigint {
    return (this.#areas[area] as Area).address + BigInt(page) * PAGE;
  }

  /** The address of the actor's own bytes in a page. */
  #own(step: Part & { actor: number }): bigint {
    return this.#address(step) + BigInt((1 + step.actor) * PLACE_BYTES);
  }

  /** An address as a place in an area. */
  #place(address: bigint): string {
    for (const [index, area] of this.#areas.entries()) {
      const offset = address - area.address;
      if (offset >= 0n && offset <= BigInt(area.length) * 2n) {
        return `${index}+${offset / PAGE}${offset % PAGE ? `+${offset % PAGE}` : ''}`;
      }
    }
    return `0x${address.toString(16)}`;
  }

  #act(step: Step): string {
    if ('uffd' in step) {
      const uffd = this.#uffds[step.uffd] as Uffd;
      return this.#closed.has(uffd) ? 'closed' : this.#call(uffd, step);
    }
    if (step.do === 'put' || step.do === 'punch' || step.do === 'drop') return this.#handle(step);
    const actor = this.#actors[step.actor];
    // The child of a fork that still sleeps does not exist yet.
    if (!actor?.tid) return 'no such actor';
    const before = actor.outcome();
    if (step.do === 'interrupt') {
      // In a system call the signal would stay pending, and the thread would fault again and again.
      if (before !== 'fault' || this.#inKernel.has(actor)) return 'not asleep in a fault of its own';
      actor.interrupt();
      return `${actor.outcome()}`;
    }
    if (before === 'fault' || before === 'event' || before === 'gone') return `busy: ${before}`;
    if (step.do === 'exit' && step.actor < THREADS) return 'not forked';
    // At most one child, so that its index among the actors is fixed.
    if (step.do === 'fork' && this.#actors.length > THREADS) return 'forked before';
    if (step.do === 'read' || step.do === 'write') {
      if (this.#objects.length > 0 && this.#orderMatters(step)) return 'it would depend on the order';
      this.#touched.set(actor, step);
    }
    this.#doing.set(actor, step.do);
    if ('by' in step && step.by === 'kernel') this.#inKernel.add(actor);
    else this.#inKernel.delete(actor);
    return this.#does(actor, step);
  }

  /**
   * Whether an actor sleeps in a fault of another kind than this touch: a read where this is a write, another area, or
   * another process. If both were woken together, the order in which they run would decide which neighbours the reads
   * map.
   */
  #orderMatters(step: Part & { do: Step['do']; actor: number }): boolean {
    const process = ({ actor }: { actor: number }): boolean => actor === THREADS;
    return this.#actors.some((other, index) => {
      const touched = this.#touched.get(other);
      if (index === step.actor || !touched || !other.tid || other.outcome() !== 'fault') return false;
      return touched.do !== step.do || touched.area !== step.area || process(touched) !== process(step);
    });
  }

  /** A call that the handler makes itself. */
  #handle(step: Step & { do: 'put' | 'punch' | 'drop' }): string {
    if (step.do === 'drop') {
      if (this.#waits) return 'it would wait for itself';
      return `${dontNeed(this.#world, this.#address(step), step.pages * 4096)}`;
    }
    const object = this.#objects[step.object] as SharedObject;
    if (step.do === 'punch') object.punchHole(step.page * 4096, step.pages * 4096);
    for (let page = 0; step.do === 'put' && page < step.pages; page++) {
      object.write((step.page + page) * 4096, new Uint8Array(4).fill(step.value));
    }
    return 'done';
  }

  #does(actor: Actor, step: Step & { actor: number }): string {
    switch (step.do) {
      case 'read':
        return `${actor.read(this.#own(step), step.by)}`;
      case 'write':
        return `${actor.write(this.#own(step), step.value, step.by)}`;
      case 'madvise':
        return `${actor.madvise(this.#address(step), step.pages * 4096, step.advice)}`;
      case 'munmap':
        return `${actor.munmap(this.#address(step), step.pages * 4096)}`;
      case 'overlay':
        return this.#placed(actor.overlay(this.#address(step), step.pages * 4096));
      case 'mprotect':
        return `${actor.mprotect(this.#address(step), step.pages * 4096, step.protection)}`;
      case 'mremap':
        return this.#remap(actor, step);
      case 'fork':
        this.#actors.push(actor.fork('shared'));
        return `${actor.outcome() === 'event' ? 'event' : 'forked'}`;
      case 'exit':
        return `${actor.exit()}`;
      default:
        throw new Error(`no actor does ${step.do}`);
    }
  }

  #remap(actor: Actor, step: Step & { do: 'mremap' }): string {
    const from = this.#address(step);
    const [oldLength, newLength] = [step.pages * 4096, step.newPages * 4096];
    // Without a target, flags 0 keep the place: if the kernel could choose it, the two worlds would choose differently.
    if (step.to < 0) {
      return this.#placed(actor.mremap(from, oldLength, newLength, 0));
    }
    const to = (this.#areas[step.to] as Area).address;
    const length = step.flags === 5 ? oldLength : newLength;
    return this.#placed(actor.mremap(from, oldLength, length, step.flags | 3, to));
  }

  /** Formats an outcome; a number is an address, and becomes a place. */
  #placed(outcome: Outcome): string {
    return typeof outcome === 'number' ? this.#place(BigInt(outcome)) : outcome;
  }

  #call(uffd: Uffd, step: Step & { uffd: number }): string {
    const answerText = ([result, out]: Answer): string => `${result} ${out}`;
    switch (step.do) {
      case 'register': {
        const [result, operations] = uffd.register(this.#address(step), step.pages * 4096, BigInt(step.mode));
        return `${result} ${operations}`;
      }
      case 'unregister':
        return uffd.unregister(this.#address(step), step.pages * 4096);
      case 'wake':
        return uffd.wake(this.#address(step), step.pages * 4096);
      case 'copy':
        return answerText(uffd.copy(this.#address(step), this.#source, step.pages * 4096, BigInt(step.mode)));
      case 'zeropage':
        return answerText(uffd.zeropage(this.#address(step), step.pages * 4096, BigInt(step.mode)));
      case 'poison':
        return answerText(uffd.poison(this.#address(step), step.pages * 4096, BigInt(step.mode)));
      case 'continue':
        return answerText(uffd.continue(this.#address(step), step.pages * 4096, BigInt(step.mode)));
      case 'writeprotect':
        return uffd.writeprotect(this.#address(step), step.pages * 4096, BigInt(step.mode));
      case 'move': {
        const from = this.#address({ area: step.from, page: step.fromPage });
        return answerText(uffd.move(this.#address(step), from, step.pages * 4096, BigInt(step.mode)));
      }
      case 'take':
        return this.#take(uffd, step.most);
      case 'close':
        uffd.close();
        this.#closed.add(uffd);
        return 'closed';
      default:
        throw new Error(`no userfaultfd does ${step.do}`);
    }
  }

  /** Reads all faults and one change at a time, until the queue is empty or `most` messages are read. */
  #take(uffd: Uffd, most: number): string {
    const lines: string[] = [];
    for (let full = true; full && lines.length < most; ) {
      const count = uffd.queue().pending + 1;
      const messages = uffd.take(count);
      full = messages.length === count;
      // An actor whose change was read runs on; wait until it is quiet, so that the next read finds its next message.
      for (const actor of this.#actors) if (actor.tid) actor.outcome();
      lines.push(...messages.map((message) => this.#message(message)).sort(byKind));
    }
    return lines.join(', ');
  }

  #message(message: Message): string {
    switch (message.event) {
      case 'pagefault': {
        const who = this.#actors.findIndex(({ tid }) => tid === message.ptid);
        return `fault ${this.#place(message.address)} flags ${message.flags} by ${message.ptid ? who : '?'}`;
      }
      case 'fork':
        // Keep the child's userfaultfd and use it like the others; it is closed with the world.
        this.#uffds.push(adopt(this.#world, message.fd));
        return 'fork';
      case 'remap':
        return `remap ${this.#place(message.from)} to ${this.#place(message.to)} length ${message.length}`;
      default:
        return `${message.event} ${this.#place(message.start)} to ${this.#place(message.end)}`;
    }
  }

  /** The complete observable state. */
  #seen(): string {
    const outcomes = this.#actors.map((actor) => this.#outcome(actor));
    const [first] = this.#uffds as [Uffd];
    const { pending, total } = first.queue();
    return `${outcomes.join(' ')} | ${pending}/${total} | ${[...this.#tables(), ...this.#caches()].join(' | ')}`;
  }

  #outcome(actor: Actor): string {
    const doing = this.#doing.get(actor);
    if (!doing) return '.';
    const outcome = actor.outcome();
    if (doing === 'fork' && typeof outcome === 'number') return 'parent';
    return doing === 'mremap' || doing === 'overlay' ? this.#placed(outcome) : `${outcome}`;
  }

  /** The fill byte of a present page, and the byte that each actor wrote. */
  #bytes(address: bigint): string {
    return bytesText(this.#world.peek(address, PLACES_IN_PAGE * PLACE_BYTES));
  }

  /** The page cache of each object: the bytes of each page, '-' for a page that is not there. */
  #caches(): string[] {
    return this.#objects.map((object, index) =>
      Array.from({ length: OBJECTS[index] as number }, (_, page) =>
        object.holds(page) ? bytesText(object.read(page * 4096, PLACES_IN_PAGE * PLACE_BYTES)) : '-',
      ).join(' '),
    );
  }

  #tables(): string[] {
    return this.#areas.map(({ address }) =>
      this.#world
        .pages(address, PAGES)
        .map((bits, page) => (bits.present ? this.#bytes(address + BigInt(page) * PAGE) : '') + symbol(bits))
        .join(' '),
    );
  }
}

/** Sorts faults by their text, and before all other messages. */
function byKind(one: string, other: string): number {
  const [first, second] = [one, other].map((line) => line.startsWith('fault'));
  if (!first || !second) return Number(second) - Number(first);
  return one < other ? -1 : 1;
}

function symbol({ present, swap, uffdWp, exclusive }: PageBits): string {
  return `${present ? 'p' : swap ? 'm' : '-'}${uffdWp ? 'w' : ''}${exclusive ? 'x' : ''}`;
}

/** The byte that fills a page, and the byte that each actor wrote. */
function bytesText(bytes: Uint8Array): string {
  let places = PLACES_IN_PAGE;
  while (places > 1 && bytes[(places - 1) * PLACE_BYTES] === 0) places--;
  let shown = `${bytes[0]}`;
  for (let place = 1; place < places; place++) shown += `.${bytes[place * PLACE_BYTES]}`;
  return shown;
}
