// What the semantics tests share. A check has an id, which documentation links to and which is a part of the
// test's name; it gets a world of its own, and what it left behind is taken away whatever happened.

import { strict as assert } from 'node:assert';
import { skip, suite } from '../harness.js';
import { at, needKernel, P } from '../kernel/support.js';
import { MISSING, openUffd, type Uffd } from './calls.js';
import { RealWorld } from './real.js';
import type { Actor, Area, Facility, MapOptions, MemoryKind, World } from './world.js';

/** What a check may need, beside a world: facilities, and features of the kernel. */
export interface Needs {
  has?: readonly Facility[];
  features?: bigint;
}

export type Body = (world: World) => void;

export { at, P };

export interface Checks {
  (id: string, statement: string, body: Body, needs?: Needs): void;
  run(): void;
}

function openWorld(): World {
  needKernel();
  return new RealWorld();
}

let known: bigint | undefined;

/** The features of this kernel; also those not asked for. */
export function featuresOf(world: World): bigint {
  known ??= openUffd(world).word(1);
  return known;
}

/** The checks of one file. */
export function checks(title: string): Checks {
  const test = suite(title);
  const ids = new Set<string>();
  const add = (id: string, statement: string, body: Body, needs: Needs = {}): void => {
    assert.ok(/^[a-z0-9]+([.-][a-z0-9]+)+$/.test(id) && !ids.has(id), `the id ${id}`);
    ids.add(id);
    test(`${id}: ${statement}`, () => {
      const world = openWorld();
      try {
        for (const facility of needs.has ?? []) {
          const reason = world.lacks(facility);
          if (reason) skip(reason);
        }
        const wanted = needs.features ?? 0n;
        const missing = wanted & ~featuresOf(world);
        if (missing) skip(`this kernel lacks the features 0x${missing.toString(16)}`);
        body(world);
      } finally {
        world.close();
      }
    });
  };
  return Object.assign(add, { run: () => test.run() });
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
  /** Modes to register all of it in; 0: it is not registered. */
  mode?: bigint;
  features?: bigint;
  flags?: number;
  map?: MapOptions;
  /** The byte that each page holds before it is registered; without it pages are not there. */
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

/** Puts a byte at the start of each page. */
export function fill(thread: Actor, area: Area, byte: number): void {
  for (let offset = 0; offset < area.length; offset += area.pageSize) {
    assert.equal(thread.write(area.address + BigInt(offset), byte), 0);
  }
}

/** Pages to copy from, each with its number after `first` in its first byte. */
export function source(world: World, pages: number, first = 0x61): bigint {
  const area = world.map('anonymous', pages);
  const thread = world.thread();
  for (let page = 0; page < pages; page++) thread.write(at(area.address, page), first + page);
  return area.address;
}
