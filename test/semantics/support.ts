// Shared code of the semantics tests. Each check has an id, which documentation links to and which is part of the
// test's name. Each check gets its own world, which is closed even if the check fails.

import { strict as assert } from 'node:assert';
import { MADV_DONTNEED } from '../../shim/memory.js';
import { errnoName } from '../../src/errors/errors.js';
import { skip, suite } from '../support/harness.js';
import { withHugePages } from '../support/huge-pages.js';
import { at, needKernel, P } from '../support/real-kernel.js';
import { adopt, Feature, Flag, type Message, MISSING, openUffd, type Uffd } from './calls.js';
import { RealWorld } from './real.js';
import { SimulatedWorld } from './simulated.js';
import type { Actor, Area, Facility, MapOptions, MemoryKind, World } from './world.js';

/** Requirements of a check: facilities of the world, and features of the kernel. */
export interface Needs {
  has?: readonly Facility[];
  features?: bigint;
}

/** The most huge pages that one check needs. */
const HUGE_PAGES = 4;

export type Body = (world: World) => void | Promise<void>;

export { at, P };

export interface Checks {
  (id: string, statement: string, body: Body, needs?: Needs): void;
  run(): void;
}

/** Every check runs on both kernels; the simulated kernel runs only checks whose facilities it has. */
const KERNELS = ['real', 'simulated'] as const;
type KernelKind = (typeof KERNELS)[number];

function openWorld(kernel: KernelKind): World {
  if (kernel === 'simulated') return new SimulatedWorld();
  needKernel();
  return new RealWorld();
}

/** Skips the check if the kernel refuses a userfaultfd that also serves faults of kernel mode. */
function needPrivilege(world: World): void {
  const port = world.kernel.attach(world.memory);
  const fd = port.userfaultfd(Flag.cloexec);
  if (fd < 0) skip(`userfaultfd: ${errnoName(-fd)}; these checks need CAP_SYS_PTRACE`);
  port.close(fd);
}

const known = new Map<unknown, bigint>();

/** All features of this kernel, even if they were not requested. */
export function featuresOf(world: World): bigint {
  const features = known.get(world.constructor) ?? openUffd(world).word(1);
  known.set(world.constructor, features);
  return features;
}

/** The checks of one file. */
export function checks(title: string): Checks {
  const test = suite(title);
  const ids = new Set<string>();
  const add = (id: string, statement: string, body: Body, needs: Needs = {}): void => {
    assert.ok(/^[a-z0-9]+([.-][a-z0-9]+)+$/.test(id) && !ids.has(id), `the id ${id}`);
    ids.add(id);
    for (const kernel of KERNELS) {
      if (kernel === 'simulated' && (needs.has ?? []).some((facility) => SimulatedWorld.lacks(facility)))
        continue;
      const suffix = kernel === 'real' ? '' : ' (simulated)';
      test(`${id}: ${statement}${suffix}`, () => check(kernel, body, needs));
    }
  };
  // UFFD_LIST_IDS: the ids as a line of JSON instead of the checks; test/docs-kernel.test.ts reads it.
  const run = (): void => (process.env.UFFD_LIST_IDS ? console.log(JSON.stringify([...ids])) : test.run());
  return Object.assign(add, { run });
}

/** Runs a check, with huge pages of its own if it needs some. */
async function check(kernel: KernelKind, body: Body, needs: Needs): Promise<void> {
  const run = (): Promise<void> => checkIn(openWorld(kernel), body, needs);
  const huge = needs.has?.some((facility) => facility === 'hugetlb' || facility === 'private-hugetlb');
  if (kernel === 'simulated' || !huge) return run();
  needKernel();
  await withHugePages(HUGE_PAGES, run);
}

async function checkIn(world: World, body: Body, needs: Needs): Promise<void> {
  try {
    needPrivilege(world);
    for (const facility of needs.has ?? []) {
      const reason = world.lacks(facility);
      if (reason) skip(reason);
    }
    const missing = (needs.features ?? 0n) & ~featuresOf(world);
    if (missing) skip(`this kernel lacks the features 0x${missing.toString(16)}`);
    await world.during(body(world));
  } finally {
    world.close();
  }
}

/** Memory that a userfaultfd watches, and a thread to touch it. */
export interface Setting {
  uffd: Uffd;
  area: Area;
  base: bigint;
  thread: Actor;
}

export interface SettingOptions {
  kind?: MemoryKind;
  pages?: number;
  /** Modes in which all memory is registered; 0: it is not registered. */
  mode?: bigint;
  features?: bigint;
  flags?: number;
  map?: MapOptions;
  /** The byte that each page holds before it is registered; if undefined, the pages are missing. */
  filled?: number;
}

export function setting(world: World, options: SettingOptions = {}): Setting {
  const { kind = 'anonymous', pages = 4, mode = MISSING, features = 0n, flags, map, filled } = options;
  const uffd = openUffd(world, features, flags);
  const thread = world.thread();
  const area = world.map(kind, pages, map);
  if (filled !== undefined) fill(thread, area, filled);
  if (mode !== 0n) assert.equal(uffd.register(area.address, area.length, mode)[0], 'ok', 'register');
  return { uffd, area, base: area.address, thread };
}

/** Writes a byte at the start of each page. */
export function fill(thread: Actor, area: Area, byte: number): void {
  for (let offset = 0; offset < area.length; offset += area.pageSize) {
    assert.equal(thread.write(area.address + BigInt(offset), byte), 0);
  }
}

/** Pages to copy from; the first byte of page number n is `first` + n. */
export function source(world: World, pages: number, first = 0x61): bigint {
  const area = world.map('anonymous', pages);
  const thread = world.thread();
  for (let page = 0; page < pages; page++) thread.write(at(area.address, page), first + page);
  return area.address;
}

/** 2^64: the number after the last address. */
export const WORD_TOP = 1n << 64n;

/** Memory of a process forked from the test's process; another userfaultfd watches that memory. */
export function elsewhere(world: World, options: SettingOptions = {}): Setting & { process: Actor } {
  const {
    kind = 'anonymous',
    pages = 4,
    mode = MISSING,
    features = 0n,
    flags = Flag.cloexec | Flag.nonblock,
  } = options;
  const area = world.map(kind, pages);
  const process = world.thread().fork();
  const fd = process.userfaultfd(flags);
  assert.ok(typeof fd === 'number', `userfaultfd: ${fd}`);
  const uffd = adopt(world, fd);
  assert.equal(uffd.api(features)[0], 'ok');
  if (mode !== 0n) assert.equal(uffd.register(area.address, area.length, mode)[0], 'ok');
  return { uffd, area, base: area.address, thread: process, process };
}

/** A userfaultfd whose process has exited. */
export function orphan(world: World, options?: SettingOptions): Setting {
  const left = elsewhere(world, options);
  assert.equal(left.process.exit(), 'gone');
  return left;
}

/** Watched memory with a change in progress: an actor removes the last page, and the event is unread. */
export function changing(world: World, options: SettingOptions = {}): Setting & { mutator: Actor } {
  const set = setting(world, { ...options, features: (options.features ?? 0n) | Feature.eventRemove });
  const { area } = set;
  const mutator = world.thread();
  const last = area.address + BigInt(area.length - area.pageSize);
  assert.equal(mutator.madvise(last, area.pageSize, MADV_DONTNEED), 'event');
  return { ...set, mutator };
}

/** The message of a fault. */
export function fault(address: bigint, flags = 0, ptid = 0): Message {
  return { event: 'pagefault', flags, address, ptid };
}

/** Needs of checks that run on several kinds of memory, and of settings with those features. */
export const EVERY_KIND = {
  features:
    Feature.flagWp |
    Feature.poison |
    Feature.minorShmem |
    Feature.minorHugetlb |
    Feature.missingShmem |
    Feature.missingHugetlb |
    Feature.wpHugetlbShmem |
    Feature.wpUnpopulated,
} as const;
export const SHMEM = { ...EVERY_KIND, has: ['shmem'] } as const;
export const HUGETLB = { ...EVERY_KIND, has: ['hugetlb'] } as const;

export function watching(more: SettingOptions): SettingOptions {
  return { ...EVERY_KIND, ...more };
}
