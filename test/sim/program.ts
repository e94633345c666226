// Random programs for a world: plain steps, drawn from a chooser, that any world can run. What a world answers to a
// program is a list of lines, in which addresses are places in the program's own areas, so that the answers of two
// worlds can be compared.
//
// Rules:
//  - A line tells all that can be seen when the world is quiet: the answer of the call with its output field, who
//    sleeps where, the queue's counters, the page tables of every area.
//  - An actor that sleeps is left alone until somebody wakes it; a step for it says so.
//  - A read takes the faults there are, and one message of a change at most; everybody is quiet before the next. In a
//    read of several, whose message came first may be quick enough to post another that the same read finds.
//  - The faults of one read are sorted: threads that were woken together come back in any order.

import type { Chooser } from '../../src/sim/index.js';
import { type Answer, adopt, Feature, type Message, openUffd, type Uffd } from '../semantics/calls.js';
import type { Actor, Area, Outcome, PageBits, World } from '../semantics/world.js';

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
  | { do: 'fork'; actor: number }
  | { do: 'exit'; actor: number }
  | { do: 'interrupt'; actor: number };

export interface Plan {
  features: bigint;
  areas: number;
  steps: Step[];
}

const PAGES = 6;
/** Areas at first, and places to which memory can be moved. */
const AREAS = 2;
const PLACES = 2;
const THREADS = 3;
const PAGE = 4096n;
/** Each actor has a place of its own in every page, so that it does not matter which of two that were woken runs first. */
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
const KINDS = WEIGHTS.flatMap(([kind, weight]) => Array<Step['do']>(weight).fill(kind));

/** Draws a program of `length` steps. */
export function draw(chooser: Chooser, length: number): Plan {
  let features = 0n;
  for (const bit of OPTIONAL) if (chooser.chance(0.5)) features |= bit;
  for (const bit of RARE) if (chooser.chance(0.08)) features |= bit;
  const steps: Step[] = [
    {
      do: 'register',
      uffd: 0,
      mode: 1 + chooser.below(3),
      area: 0,
      page: 0,
      pages: 1 + chooser.below(PAGES),
    },
  ];
  while (steps.length < length) steps.push(drawStep(chooser));
  return { features, areas: AREAS, steps };
}

function drawStep(chooser: Chooser): Step {
  const pick = <T>(...choices: readonly T[]): T => choices[chooser.below(choices.length)] as T;
  const kind = KINDS[chooser.below(KINDS.length)] as Step['do'];
  const area = chooser.below(AREAS + PLACES);
  const page = chooser.below(PAGES);
  const part: Part = { area, page, pages: 1 + chooser.below(PAGES - page) };
  const actor = chooser.below(THREADS + 1);
  const uffd = chooser.chance(0.15) ? 1 : 0;
  const by = pick('user', 'user', 'kernel');
  switch (kind) {
    case 'register':
      return { do: kind, uffd, mode: pick(1, 1, 2, 3, 3, 4), ...part };
    case 'unregister':
    case 'wake':
      return { do: kind, uffd, ...part };
    case 'copy':
      return { do: kind, uffd, mode: pick(0, 0, 0, 1, 2, 3), ...part };
    case 'zeropage':
    case 'poison':
    case 'continue':
      return { do: kind, uffd, mode: pick(0, 0, 1), ...part };
    case 'writeprotect':
      return { do: kind, uffd, mode: pick(0, 1, 1, 2), ...part };
    case 'move':
      return {
        do: kind,
        uffd,
        mode: pick(0, 0, 1, 2),
        from: chooser.below(AREAS + PLACES),
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
      return { do: kind, actor, advice: pick(4, 4, 4, 8, 16, 17, 102, 103), ...part };
    case 'munmap':
    case 'overlay':
      return { do: kind, actor, ...part };
    case 'mprotect':
      return { do: kind, actor, protection: pick(0, 1, 3, 3), ...part };
    case 'mremap':
      return {
        do: kind,
        actor,
        to: pick(-1, 0, 1, 2, 3),
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
  readonly #actors: Actor[] = [];
  readonly #uffds: Uffd[] = [];
  /** Actors whose last touch was a system call's. */
  readonly #inKernel = new Set<Actor>();
  readonly #closed = new Set<Uffd>();
  readonly #source: bigint;
  /** What each actor was given to do last. */
  readonly #doing = new Map<Actor, Step['do']>();

  constructor(world: World, plan: Plan) {
    this.#world = world;
    for (let area = 0; area < AREAS; area++) this.#areas.push(world.map('anonymous', PAGES));
    for (let place = 0; place < PLACES; place++) {
      const address = world.vacant(PAGES);
      this.#areas.push({ address, length: PAGES * 4096, pageSize: 4096, alias: 0n });
    }
    for (let thread = 0; thread < THREADS; thread++) this.#actors.push(world.thread());
    const source = world.map('anonymous', PAGES);
    for (let page = 0; page < PAGES; page++) {
      (this.#actors[0] as Actor).write(source.address + BigInt(page) * PAGE, 201 + page);
    }
    this.#source = source.address;
    this.#uffds.push(openUffd(world, plan.features), openUffd(world, 0n));
  }

  /** Does one step: what came of it, and what can be seen then. */
  do(step: Step): string {
    return `${this.#act(step)} | ${this.#seen()}`;
  }

  #address({ area, page }: { area: number; page: number }): bigint {
    return (this.#areas[area] as Area).address + BigInt(page) * PAGE;
  }

  /** The actor's own place in a page. */
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
    const actor = this.#actors[step.actor];
    // A fork that sleeps has no child yet.
    if (!actor?.tid) return 'no such actor';
    const before = actor.outcome();
    if (step.do === 'interrupt') {
      // In a system call the signal would stay, and the thread would fault again and again.
      if (before !== 'fault' || this.#inKernel.has(actor)) return 'not asleep in a fault of its own';
      actor.interrupt();
      return `${actor.outcome()}`;
    }
    if (before === 'fault' || before === 'event' || before === 'gone') return `busy: ${before}`;
    if (step.do === 'exit' && step.actor < THREADS) return 'not forked';
    // One child, so that its place among the actors is known.
    if (step.do === 'fork' && this.#actors.length > THREADS) return 'forked before';
    this.#doing.set(actor, step.do);
    if ('by' in step && step.by === 'kernel') this.#inKernel.add(actor);
    else this.#inKernel.delete(actor);
    return this.#does(actor, step);
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
    // Where the kernel may choose the place, the worlds would choose different ones.
    if (step.to < 0) {
      return this.#placed(actor.mremap(from, oldLength, newLength, 0));
    }
    const to = (this.#areas[step.to] as Area).address;
    const length = step.flags === 5 ? oldLength : newLength;
    return this.#placed(actor.mremap(from, oldLength, length, step.flags | 3, to));
  }

  /** An outcome that is an address, as a place. */
  #placed(outcome: Outcome): string {
    return typeof outcome === 'number' ? this.#place(BigInt(outcome)) : outcome;
  }

  #call(uffd: Uffd, step: Step & { uffd: number }): string {
    const told = ([result, out]: Answer): string => `${result} ${out}`;
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
        return told(uffd.copy(this.#address(step), this.#source, step.pages * 4096, BigInt(step.mode)));
      case 'zeropage':
        return told(uffd.zeropage(this.#address(step), step.pages * 4096, BigInt(step.mode)));
      case 'poison':
        return told(uffd.poison(this.#address(step), step.pages * 4096, BigInt(step.mode)));
      case 'continue':
        return told(uffd.continue(this.#address(step), step.pages * 4096, BigInt(step.mode)));
      case 'writeprotect':
        return uffd.writeprotect(this.#address(step), step.pages * 4096, BigInt(step.mode));
      case 'move': {
        const from = this.#address({ area: step.from, page: step.fromPage });
        return told(uffd.move(this.#address(step), from, step.pages * 4096, BigInt(step.mode)));
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

  /** Faults as many as there are, and up to `most` messages with those of changes. */
  #take(uffd: Uffd, most: number): string {
    const lines: string[] = [];
    for (let full = true; full && lines.length < most; ) {
      const count = uffd.queue().pending + 1;
      const messages = uffd.take(count);
      full = messages.length === count;
      // Whose message was read goes on, and what it does next is to be seen.
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
        // Taken over, to be served like the others; closed with the world.
        this.#uffds.push(adopt(this.#world, message.fd));
        return 'fork';
      case 'remap':
        return `remap ${this.#place(message.from)} to ${this.#place(message.to)} length ${message.length}`;
      default:
        return `${message.event} ${this.#place(message.start)} to ${this.#place(message.end)}`;
    }
  }

  /** All that can be seen from outside. */
  #seen(): string {
    const outcomes = this.#actors.map((actor) => this.#outcome(actor));
    const [first] = this.#uffds as [Uffd];
    const { pending, total } = first.queue();
    return `${outcomes.join(' ')} | ${pending}/${total} | ${this.#tables().join(' | ')}`;
  }

  #outcome(actor: Actor): string {
    const doing = this.#doing.get(actor);
    if (!doing) return '.';
    const outcome = actor.outcome();
    if (doing === 'fork' && typeof outcome === 'number') return 'parent';
    return doing === 'mremap' || doing === 'overlay' ? this.#placed(outcome) : `${outcome}`;
  }

  /** What a page that is there was filled with, and what each actor wrote. */
  #bytes(address: bigint): string {
    const bytes = this.#world.peek(address, PLACES_IN_PAGE * PLACE_BYTES);
    let places = PLACES_IN_PAGE;
    while (places > 1 && bytes[(places - 1) * PLACE_BYTES] === 0) places--;
    let shown = `${bytes[0]}`;
    for (let place = 1; place < places; place++) shown += `.${bytes[place * PLACE_BYTES]}`;
    return shown;
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

/** Faults in an order of their own, before what comes after them. */
function byKind(one: string, other: string): number {
  const [first, second] = [one, other].map((line) => line.startsWith('fault'));
  if (!first || !second) return Number(second) - Number(first);
  return one < other ? -1 : 1;
}

function symbol({ present, swap, uffdWp, exclusive }: PageBits): string {
  return `${present ? 'p' : swap ? 'm' : '-'}${uffdWp ? 'w' : ''}${exclusive ? 'x' : ''}`;
}
