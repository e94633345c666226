// What several trials do to scratch memory.

import { closeSync, openSync, readSync } from 'node:fs';
import { Mapping, type Mode, type Pagefault, UffdError, type Userfaultfd } from '../../index.js';
import { examineSystem } from './machine.js';
import { expect, NotTried, serve, type Toucher } from './scene.js';

/** Huge pages above this are not tried: a trial copies one. */
const HUGE_PAGE_MOST_BYTES = 2 ** 25;
/** Of an entry in /proc/self/pagemap: a userfaultfd has write-protected the page. */
const PAGEMAP_WRITE_PROTECTED = 1n << 57n;
const PAGEMAP_ENTRY_BYTES = 8;

/** Private memory of so many pages, watched for missing ones. */
export function watchedPages(uffd: Userfaultfd, pages = 1): Mapping {
  const memory = Mapping.anonymous(pages * uffd.pageSize);
  uffd.register(memory.address, memory.length);
  return memory;
}

/** A missing page of any memory arrives by a copy. */
export async function missing(uffd: Userfaultfd, memory: Mapping, toucher: Toucher): Promise<void> {
  uffd.register(memory.address, memory.length);
  const source = new Uint8Array(memory.pageSize).fill(7);
  const answer = ({ page }: Pagefault): void => void uffd.copy(page, source);
  const byte = await serve(uffd, { pagefault: answer }, () =>
    toucher.read(memory.share(), memory.length - 1),
  );
  expect('the byte copied', byte, 7);
}

/** A page that is in the page cache, and not in the page table, arrives by a continue. */
export async function minor(uffd: Userfaultfd, memory: Mapping, toucher: Toucher): Promise<void> {
  using alias = memory.alias();
  alias.bytes.fill(3);
  uffd.register(memory.address, memory.length, 'minor');
  const kinds: Mode[] = [];
  const answer = ({ page, kind }: Pagefault): void => {
    kinds.push(kind);
    uffd.continue(page, memory.pageSize);
  };
  const byte = await serve(uffd, { pagefault: answer }, () =>
    toucher.read(memory.share(), memory.length - 1),
  );
  expect('the byte in the page cache', byte, 3);
  expect('faults', kinds, ['minor']);
}

/** A write to a protected page waits until the protection is lifted. */
export async function writeProtected(uffd: Userfaultfd, memory: Mapping, toucher: Toucher): Promise<void> {
  uffd.register(memory.address, memory.length, 'write-protect');
  uffd.writeProtect(memory.address, memory.length, true);
  const kinds: Mode[] = [];
  const answer = ({ page, kind }: Pagefault): void => {
    kinds.push(kind);
    uffd.writeProtect(page, uffd.pageSize, false);
  };
  await serve(uffd, { pagefault: answer }, () => toucher.write(memory.share(), 0, 2));
  expect('faults', kinds, ['write-protect']);
  expect('the byte written', memory.bytes[0], 2);
}

/** Fails unless the page table says so; nothing where this process may not look into its own page table. */
export function expectProtection(memory: Mapping, expected: boolean): void {
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

/** Memory of one huge page, made by `make` from its size in bytes. */
export function hugePage(make: (pageSize: number) => Mapping): Mapping {
  const { hugePages } = examineSystem();
  if (!hugePages) throw new NotTried('this kernel has no huge pages');
  const { bytes } = hugePages;
  if (bytes > HUGE_PAGE_MOST_BYTES) throw new NotTried(`huge pages of ${bytes} bytes are too large to try`);
  try {
    return make(bytes);
  } catch (error) {
    if (!(error instanceof UffdError && error.code === 'ENOMEM')) throw error;
    throw new NotTried('no huge pages are free, see vm.nr_hugepages');
  }
}
