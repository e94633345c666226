// Shared code of the scenarios: untouched memory of every kind, with a userfaultfd and a thread that may sleep in a
// fault. The kinds have the names of the kernel's own tests. Page number n of a scenario is full of the byte n + 1,
// whatever its source.

import { closeSync, openSync, readSync } from 'node:fs';
import * as assert from 'uvu/assert';
import {
  type Feature,
  Mapping,
  type MemoryOptions,
  type Mode,
  UffdError,
  Userfaultfd,
} from '../../../src/index.js';
import type { Suite } from '../../support/harness.js';
import { hugePageSize, withHugePages } from '../../support/huge-pages.js';
import {
  compileLibrary,
  endAll,
  needKernel,
  P,
  skipWithout,
  type Toucher,
  toucher,
} from '../../support/real-kernel.js';

export type Kind = 'anon' | 'shmem' | 'shmem-private' | 'hugetlb' | 'hugetlb-private';

export const KINDS: readonly Kind[] = ['anon', 'shmem', 'shmem-private', 'hugetlb', 'hugetlb-private'];

/** Whether a kind of memory is shared: other mappings see it, and a removal must reach the page cache. */
export function isShared(kind: Kind): boolean {
  return kind === 'shmem' || kind === 'hugetlb';
}

export function isHuge(kind: Kind): boolean {
  return kind.startsWith('hugetlb');
}

/** One kind of memory, ready for a scenario. */
export interface Stage {
  readonly kind: Kind;
  readonly uffd: Userfaultfd;
  readonly thread: Toucher;
  /** The memory: `pages` pages of `pageSize` bytes, registered with the scenario's modes. */
  readonly area: Mapping;
  readonly base: bigint;
  readonly length: number;
  readonly pages: number;
  readonly pageSize: number;
  /** The address of page number `index`. */
  page(index: number): bigint;
  /** The number of the page that holds an address. */
  indexOf(address: bigint): number;
  /** The expected bytes of page number `index`. */
  content(index: number): Uint8Array;
  /** Fills the page that holds an address with its expected bytes. */
  fill(address: bigint, options?: { writeProtect?: boolean; dontWake?: boolean }): number;
}

export interface Scenario {
  kinds?: readonly Kind[];
  /** Features that the scenario needs, beside those that the kind of memory and the modes need. */
  features?: readonly Feature[];
  modes?: Mode | readonly Mode[];
  pages?: number;
  /** Huge pages that the scenario needs beside those of its memory, for example for a child. */
  extra?: number;
}

/** Adds a test for each kind of memory, named `name: kind`. */
export function scenario(
  test: Suite,
  name: string,
  options: Scenario,
  body: (stage: Stage) => Promise<void>,
): void {
  const { kinds = KINDS, pages = 4, extra = 0 } = options;
  for (const kind of kinds) {
    test(`${name}: ${kind}`, async () => {
      needKernel();
      if (isHuge(kind)) await withHugePages(pages + extra, () => run(kind, options, body));
      else await run(kind, options, body);
    });
  }
}

async function run(
  kind: Kind,
  { features = [], modes = 'missing', pages = 4 }: Scenario,
  body: (stage: Stage) => Promise<void>,
): Promise<void> {
  const needed = [...features, ...featuresOf(kind, modes)];
  for (const feature of needed) skipWithout(feature);
  const pageSize = isHuge(kind) ? hugePageSize() : P;
  // Compile first: the compiler runs in a fork, which would block this thread once the userfaultfd watches forks.
  if (features.includes('event-fork')) scenarioLibrary();
  const uffd = Userfaultfd.open({ features: needed });
  const area = memoryOf(kind, pages);
  try {
    const length = pages * pageSize;
    uffd.register(area.address, length, modes);
    await body(stageOf(kind, uffd, await toucher(), area, pages, pageSize));
  } finally {
    uffd.close();
    await endAll();
    area.close();
  }
}

function stageOf(
  kind: Kind,
  uffd: Userfaultfd,
  thread: Toucher,
  area: Mapping,
  pages: number,
  pageSize: number,
): Stage {
  const base = area.address;
  const page = (index: number): bigint => base + BigInt(index * pageSize);
  const indexOf = (address: bigint): number => Number((address - base) / BigInt(pageSize));
  const content = (index: number): Uint8Array => new Uint8Array(pageSize).fill(index + 1);
  return {
    ...{ kind, uffd, thread, area, base, length: pages * pageSize, pages, pageSize },
    ...{ page, indexOf, content },
    fill: (address, options) => {
      const index = indexOf(address);
      return uffd.copy(page(index), content(index), pageSize, options);
    },
  };
}

/** The features without which a kind of memory cannot be registered in these modes. */
export function featuresOf(kind: Kind, modes: Mode | readonly Mode[]): Feature[] {
  if (kind === 'anon') return [modes].flat().includes('write-protect') ? ['pagefault-flag-wp'] : [];
  const features: Record<Mode, Feature> = isHuge(kind)
    ? {
        missing: 'missing-hugetlbfs',
        'write-protect': 'wp-hugetlbfs-shmem',
        minor: 'minor-hugetlbfs',
      }
    : { missing: 'missing-shmem', 'write-protect': 'wp-hugetlbfs-shmem', minor: 'minor-shmem' };
  return [modes].flat().map((mode) => features[mode]);
}

/** Fresh memory of a kind, of `pages` of its pages. */
export function memoryOf(kind: Kind, pages: number): Mapping {
  const options: MemoryOptions = isHuge(kind) ? { pageSize: hugePageSize() } : {};
  const length = pages * (options.pageSize ?? P);
  if (isShared(kind)) return Mapping.memfd(length, options);
  if (kind !== 'shmem-private') return Mapping.anonymous(length, options);
  const shared = Mapping.memfd(length);
  try {
    return Mapping.file(`/proc/self/fd/${shared.fd}`);
  } finally {
    shared.close();
  }
}

let library: string | undefined;

/** The compiled scenario.c. */
export function scenarioLibrary(): string {
  library ??= compileLibrary('uffd/scenarios/scenario.c');
  return library;
}

/** Makes a thread touch an address; resolves with 0, or the number of the signal. `value` −1 reads. */
export function touch(thread: Toucher, address: bigint, value = -1): Promise<number> {
  return thread.native(scenarioLibrary(), 'int touch(uintptr_t at, int value)', address, value);
}

/** Whether a page of this process is write-protected for userfaultfd, or has the marker. */
export function isProtected(address: bigint): boolean {
  const entry = Buffer.alloc(8);
  const fd = openSync('/proc/self/pagemap', 'r');
  try {
    assert.is(readSync(fd, entry, 0, 8, Number((address / BigInt(P)) * 8n)), 8);
  } finally {
    closeSync(fd);
  }
  return ((entry.readBigUInt64LE() >> 57n) & 1n) === 1n;
}

/** Asserts that the kernel refuses a call, and that the error names the call and the reason. */
export function refused(act: () => unknown, code: string, syscall: string, reason = /./): void {
  assert.throws(act, (error: unknown) => {
    assert.instance(error, UffdError);
    const { code: was, syscall: by, errno, message } = error as UffdError;
    assert.equal([was, by], [code, syscall], message);
    assert.ok(errno < 0);
    assert.match(message, reason);
    return true;
  });
}
