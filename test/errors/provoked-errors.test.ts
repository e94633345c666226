// Provokes every row of the error catalog that this kernel can return, through the public interface. Each message names
// code, call, range, cause and remedy. The rows that cannot be provoked here are listed with the reason.

import { spawn } from 'node:child_process';
import { closeSync, existsSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { libc } from '../../shim/libc.js';
import { linuxKernel } from '../../shim/linux.js';
import * as memory from '../../shim/memory.js';
import { REASONS, type Reason } from '../../src/bindings/errors.js';
import { rowsOf } from '../../src/errors/catalog.js';
import { Errno } from '../../src/errors/errors.js';
import { type Feature, Mapping, type Mode, UffdError, Userfaultfd } from '../../src/index.js';
import { skip, suite } from '../support/harness.js';
import {
  at,
  compileLibrary,
  endAll,
  kernelWith,
  map,
  needKernel,
  never,
  openWith,
  P,
  pageOf,
  toucher,
  until,
} from '../support/real-kernel.js';

const test = suite('errors/provoked-errors');

/** A call that fails, and the range that its message must name: start, length, bytes done before the failure. */
interface Attempt {
  act(): unknown;
  range?: [start: bigint, length: number, done?: number];
}

/** A row, identified by call, errno and the first words of its cause; and a function that provokes it. */
type Case = [call: string, code: string, cause: string, provoke: () => Attempt | Promise<Attempt>];

/** Closed after each case. */
let open: { close(): void }[] = [];

function keep<T extends { close(): void }>(one: T): T {
  open.push(one);
  return one;
}

function uffdWith(...features: Feature[]): Userfaultfd {
  return keep(openWith(features));
}

/** Maps and registers some pages. */
function watched(uffd: Userfaultfd, pages: number, mode: Mode | Mode[] = 'missing'): bigint {
  const base = map(pages);
  uffd.register(base, pages * P, mode);
  return base;
}

/** Maps address space in huge pages of a size, without reserving pages of the pool (MAP_NORESERVE). */
function huge(size: number, count = 1): bigint {
  const flags = memory.MAP_PRIVATE | memory.MAP_ANONYMOUS | memory.MAP_NORESERVE | memory.hugeFlags(size);
  const address = memory.mmap(0n, size * count, memory.PROT_READ | memory.PROT_WRITE, flags);
  if (address < 0n) skip(`this machine has no huge pages of ${size} bytes`);
  keep({ close: () => memory.munmap(address, size * count) });
  return address;
}

const HUGE = 2 ** 21;
/** An address beyond the memory of any process. */
const BEYOND = (1n << 56n) - BigInt(P);

/** A C function that the library itself does not use. */
function c(declaration: string): (...args: unknown[]) => number {
  return libc().koffi.load(null).func(declaration) as never;
}

/** Runs a body while this process may open only `spare` more descriptors. */
function withoutDescriptors<T>(body: () => T, spare = 0): T {
  const free = openSync('/dev/null', 'r');
  closeSync(free);
  return withDescriptorLimit(free + spare, body);
}

function withDescriptorLimit<T>(most: number, body: () => T): T {
  const RLIMIT_NOFILE = 7;
  const setrlimit = c('int setrlimit(int, uint64_t *)');
  const limits = new BigUint64Array(2);
  c('int getrlimit(int, _Out_ uint64_t *)')(RLIMIT_NOFILE, limits);
  const [soft = 0n, hard = 0n] = limits;
  setrlimit(RLIMIT_NOFILE, new BigUint64Array([BigInt(most), hard]));
  try {
    return body();
  } finally {
    setrlimit(RLIMIT_NOFILE, new BigUint64Array([soft, hard]));
  }
}

/** Runs a body as a user without privileges. */
function asNobody<T>(body: () => T): T {
  if (process.geteuid?.() !== 0) return body();
  process.seteuid?.(65534);
  try {
    return body();
  } finally {
    process.seteuid?.(0);
  }
}

/** A userfaultfd of a child process that has exited, and the address of the child's registered memory. */
async function orphan(): Promise<{ child: Userfaultfd; base: bigint }> {
  const library = compileLibrary('support/fork.c');
  const uffd = uffdWith('event-fork');
  const base = watched(uffd, 1);
  const children: Userfaultfd[] = [];
  uffd.start({ pagefault: never, forked: (child) => void children.push(keep(child)) });
  assert.is(await (await toucher()).fork(library), 0);
  return { child: children[0] as Userfaultfd, base };
}

/** Registered shared memory whose file was then shrunk to one page. */
function shrunk(uffd: Userfaultfd): Mapping {
  const mapping = keep(Mapping.memfd(4 * P));
  uffd.register(mapping.address, 4 * P);
  assert.is(libc().ftruncate(mapping.fd, P), 0);
  return mapping;
}

/** A page of a file on disk, registered for writes; no operation can fill it. */
function watchedFile(uffd: Userfaultfd): bigint {
  const folder = mkdtempSync(join(tmpdir(), 'uffd-errors-'));
  const path = join(folder, 'file');
  writeFileSync(path, pageOf(1));
  const mapping = keep(Mapping.file(path, { shared: true }));
  keep({ close: () => rmSync(folder, { recursive: true }) });
  uffd.register(mapping.address, P, 'write-protect');
  return mapping.address;
}

/** A userfaultfd that cannot look up the kind of a mapping. */
function blind(): Userfaultfd {
  const kernel = kernelWith(() => ({ unfillableAt: () => undefined }));
  return keep(Userfaultfd.open({ features: ['wp-async'], kernel }));
}

/** Pages with data, as a source. */
function filled(pages: number): bigint {
  return map(pages, 7);
}

// biome-ignore format: a table
const CASES: Case[] = [
  ['userfaultfd', 'EMFILE', 'the process has no file descriptor', () => ({
    act: () => withoutDescriptors(() => Userfaultfd.open({ via: 'syscall' })),
  })],
  ['userfaultfd', 'EPERM', 'faults of kernel mode', () => ({
    act: () => asNobody(() => refusedTo(() => Userfaultfd.open({ via: 'syscall', userModeOnly: false }))),
  })],
  ['userfaultfd', 'ESRCH', 'the process whose memory', async () => {
    const process = spawn('sleep', ['1000']);
    const uffd = keep(Userfaultfd.open({ pid: process.pid as number }));
    const errors: unknown[] = [];
    uffd.start({ pagefault: never, closed: (error) => void errors.push(error) });
    process.kill('SIGKILL');
    await until(() => errors.length > 0, 'closed to be called');
    return { act: () => { throw errors[0]; } };
  }],
  ['/dev/userfaultfd', 'EMFILE', 'the process has no file descriptor', () => ({
    act: () => withoutDescriptors(() => Userfaultfd.open({ via: 'device' })),
  })],
  ['/dev/userfaultfd', 'EACCES', 'the file permissions of the device', () => ({
    act: () => asNobody(() => refusedTo(() => Userfaultfd.open({ via: 'device' }))),
  })],
  ['UFFDIO_API', 'EPERM', "the feature 'event-fork'", () => ({
    act: () => asNobody(() => refusedTo(() => Userfaultfd.open({ features: ['event-fork'], via: 'syscall', userModeOnly: true }))),
  })],
  ['wrap', 'EBADF', 'fd is no open', () => ({ act: () => Userfaultfd.wrap(9999) })],
  ['wrap', 'EINVAL', 'the handshake', () => ({ act: () => Userfaultfd.wrap(unshaken()) })],
  ['wrap', 'ENOTTY', 'fd is no userfaultfd', () => {
    const fd = openSync('/dev/null', 'r');
    keep({ close: () => closeSync(fd) });
    return { act: () => Userfaultfd.wrap(fd) };
  }],

  ['UFFDIO_REGISTER', 'EBUSY', 'another userfaultfd', () => {
    const base = watched(uffdWith(), 2);
    return { act: () => uffdWith().register(base, 2 * P), range: [base, 2 * P] };
  }],
  ['UFFDIO_REGISTER', 'EINVAL', "'minor' needs shared memory", () => {
    const base = map(1);
    return { act: () => uffdWith('minor-shmem').register(base, P, 'minor'), range: [base, P] };
  }],
  ['UFFDIO_REGISTER', 'EINVAL', 'nothing is mapped there, or it is a file on disk, or shared', () => {
    const { address } = keep(Mapping.file(process.execPath));
    return { act: () => uffdWith().register(address, P, 'write-protect'), range: [address, P] };
  }],
  ['UFFDIO_REGISTER', 'EINVAL', 'nothing is mapped there, or it is a file on disk, or the range', () => {
    const uffd = uffdWith();
    const address = at(map(1), 0);
    memory.munmap(address, P);
    return { act: () => uffd.register(address, P), range: [address, P] };
  }],
  ['UFFDIO_REGISTER', 'EINVAL', 'nothing is mapped there, or it is a file on disk, or the range', () => {
    const start = at(huge(HUGE, 2), 1);
    return { act: () => uffdWith().register(start, HUGE), range: [start, HUGE] };
  }],
  ['UFFDIO_REGISTER', 'ENOMEM', 'the process has exited', async () => {
    const { child, base } = await orphan();
    return { act: () => child.register(base, P), range: [base, P] };
  }],
  ['UFFDIO_REGISTER', 'EPERM', 'it is a shared mapping', () => {
    const whole = keep(Mapping.memfd(P));
    const { address } = keep(Mapping.file(`/proc/self/fd/${whole.fd}`, { shared: true, writable: false }));
    return { act: () => uffdWith().register(address, P), range: [address, P] };
  }],

  ['UFFDIO_UNREGISTER', 'EINVAL', 'the memory is in huge pages', () => {
    const uffd = uffdWith();
    const base = huge(HUGE);
    uffd.register(base, HUGE);
    return { act: () => uffd.unregister(base, P), range: [base, P] };
  }],
  ['UFFDIO_UNREGISTER', 'EINVAL', 'nothing is mapped there', () => {
    const uffd = uffdWith();
    const base = map(1);
    memory.munmap(base, P);
    return { act: () => uffd.unregister(base, P), range: [base, P] };
  }],
  ['UFFDIO_UNREGISTER', 'ENOMEM', 'the process has exited', async () => {
    const { child, base } = await orphan();
    return { act: () => child.unregister(base, P), range: [base, P] };
  }],
  ['UFFDIO_WAKE', 'EINVAL', 'the range reaches beyond', () => ({
    act: () => uffdWith().wake(BEYOND, P), range: [BEYOND, P],
  })],

  ['UFFDIO_COPY', 'EFAULT', 'the source cannot be read', () => {
    const uffd = uffdWith();
    const base = watched(uffd, 4);
    const source = filled(4);
    memory.munmap(at(source, 3), P);
    return { act: () => uffd.copy(base, source, 4 * P), range: [base, 4 * P, 3 * P] };
  }],
  ['UFFDIO_COPY', 'EFAULT', 'the source cannot be read', () => {
    const uffd = uffdWith();
    const { address } = shrunk(uffd);
    return { act: () => uffd.copy(address, new Uint8Array(2 * P)), range: [address, 2 * P, P] };
  }],
  ['UFFDIO_COPY', 'EINVAL', 'the range is not registered for write-protect', () => {
    const uffd = uffdWith();
    const base = watched(uffd, 2);
    return { act: () => uffd.copy(base, pageOf(1), P, { writeProtect: true }), range: [base, P, 0] };
  }],
  ['UFFDIO_COPY', 'EINVAL', 'the memory is in huge pages', () => {
    const uffd = uffdWith();
    const base = huge(HUGE);
    uffd.register(base, HUGE);
    return { act: () => uffd.copy(base, pageOf(1)), range: [base, P, 0] };
  }],
  ['UFFDIO_COPY', 'EINVAL', 'page {page} is in {memory}', () => {
    const uffd = uffdWith('wp-async');
    const base = watchedFile(uffd);
    return { act: () => uffd.copy(base, pageOf(1)), range: [base, P, 0] };
  }],
  ['UFFDIO_COPY', 'EINVAL', 'the memory at {page} is of a kind', () => {
    const uffd = blind();
    const base = watchedFile(uffd);
    return { act: () => uffd.copy(base, pageOf(1)), range: [base, P, 0] };
  }],
  ['UFFDIO_COPY', 'ENOENT', 'nothing is registered here', () => {
    const uffd = uffdWith();
    const base = map(1);
    return { act: () => uffd.copy(base, pageOf(1)), range: [base, P, 0] };
  }],
  ['UFFDIO_COPY', 'EINVAL', 'the range reaches beyond', () => ({
    act: () => uffdWith().copy(BEYOND, pageOf(1)), range: [BEYOND, P, 0],
  })],
  ['UFFDIO_COPY', 'ENOMEM', 'no huge page', () => {
    const size = 2 ** 30;
    const pool = '/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages';
    if (!existsSync(pool) || Number(readFileSync(pool, 'utf8')) > 0) skip('there is no empty pool of huge pages of 1 GiB');
    const uffd = uffdWith();
    const base = huge(size);
    uffd.register(base, size);
    return { act: () => uffd.copy(base, filled(1), size), range: [base, size, 0] };
  }],

  ['UFFDIO_ZEROPAGE', 'EFAULT', 'page {page} lies beyond', () => {
    const uffd = uffdWith();
    const { address } = shrunk(uffd);
    return { act: () => uffd.zero(address, 4 * P), range: [address, 4 * P, P] };
  }],
  ['UFFDIO_ZEROPAGE', 'EINVAL', 'the memory is in huge pages', () => {
    const uffd = uffdWith();
    const base = huge(HUGE);
    uffd.register(base, HUGE);
    return { act: () => uffd.zero(base, HUGE), range: [base, HUGE, 0] };
  }],
  ['UFFDIO_ZEROPAGE', 'EINVAL', 'page {page} is in {memory}', () => {
    const uffd = uffdWith('wp-async');
    const base = watchedFile(uffd);
    return { act: () => uffd.zero(base, P), range: [base, P, 0] };
  }],
  ['UFFDIO_ZEROPAGE', 'EINVAL', 'the memory at {page} is of a kind', () => {
    const uffd = blind();
    const base = watchedFile(uffd);
    return { act: () => uffd.zero(base, P), range: [base, P, 0] };
  }],
  ['UFFDIO_ZEROPAGE', 'ENOENT', 'nothing is registered here', () => {
    const uffd = uffdWith();
    const base = map(1);
    return { act: () => uffd.zero(base, P), range: [base, P, 0] };
  }],
  ['UFFDIO_ZEROPAGE', 'EINVAL', 'the range reaches beyond', () => ({
    act: () => uffdWith().zero(BEYOND, P), range: [BEYOND, P, 0],
  })],

  ['UFFDIO_CONTINUE', 'EFAULT', 'page {page} is not in', () => {
    const uffd = uffdWith('minor-shmem');
    const mapping = keep(Mapping.memfd(3 * P));
    keep(mapping.alias()).bytes[0] = 1;
    uffd.register(mapping.address, 3 * P, 'minor');
    return { act: () => uffd.continue(mapping.address, 3 * P), range: [mapping.address, 3 * P, P] };
  }],
  ['UFFDIO_CONTINUE', 'EINVAL', 'the range is not registered for write-protect', () => {
    const uffd = uffdWith('minor-shmem', 'wp-hugetlbfs-shmem');
    const { address } = keep(Mapping.memfd(P));
    uffd.register(address, P, 'minor');
    return { act: () => uffd.continue(address, P, { writeProtect: true }), range: [address, P, 0] };
  }],
  ['UFFDIO_CONTINUE', 'EINVAL', 'the memory is in huge pages', () => {
    const uffd = uffdWith('minor-hugetlbfs');
    const base = huge(HUGE);
    uffd.register(base, HUGE);
    return { act: () => uffd.continue(base, P), range: [base, P, 0] };
  }],
  ['UFFDIO_CONTINUE', 'EINVAL', 'page {page} is private', () => {
    const uffd = uffdWith('minor-shmem');
    const base = watched(uffd, 1);
    return { act: () => uffd.continue(base, P), range: [base, P, 0] };
  }],

  ['UFFDIO_POISON', 'EFAULT', 'page {page} lies beyond', () => {
    const uffd = uffdWith('poison');
    const { address } = shrunk(uffd);
    return { act: () => uffd.poison(address, 2 * P), range: [address, 2 * P, P] };
  }],
  ['UFFDIO_POISON', 'EINVAL', 'the memory is in huge pages', () => {
    const uffd = uffdWith('poison');
    const base = huge(HUGE);
    uffd.register(base, HUGE);
    return { act: () => uffd.poison(base, P), range: [base, P, 0] };
  }],
  ['UFFDIO_CONTINUE', 'ENOENT', 'nothing is registered here', () => {
    const uffd = uffdWith();
    const base = map(1);
    return { act: () => uffd.continue(base, P), range: [base, P, 0] };
  }],
  ['UFFDIO_CONTINUE', 'EINVAL', 'page {page} is in {memory}', () => {
    const uffd = uffdWith('wp-async');
    const base = watchedFile(uffd);
    return { act: () => uffd.continue(base, P), range: [base, P, 0] };
  }],
  ['UFFDIO_POISON', 'ENOENT', 'nothing is registered here', () => {
    const uffd = uffdWith('poison');
    const base = map(1);
    return { act: () => uffd.poison(base, P), range: [base, P, 0] };
  }],
  ['UFFDIO_POISON', 'EINVAL', 'the range reaches beyond', () => ({
    act: () => uffdWith('poison').poison(BEYOND, P), range: [BEYOND, P, 0],
  })],

  ['UFFDIO_WRITEPROTECT', 'EINVAL', 'the memory is in huge pages', () => {
    const uffd = uffdWith('wp-hugetlbfs-shmem');
    const base = huge(HUGE);
    uffd.register(base, HUGE, 'write-protect');
    return { act: () => uffd.writeProtect(base, P, true), range: [base, P, 0] };
  }],
  ['UFFDIO_WRITEPROTECT', 'ENOENT', 'nothing is registered here', () => {
    const uffd = uffdWith();
    const base = map(1);
    return { act: () => uffd.writeProtect(base, P, true), range: [base, P, 0] };
  }],
  ['UFFDIO_WRITEPROTECT', 'EINVAL', 'the range reaches beyond', () => ({
    act: () => uffdWith().writeProtect(BEYOND, P, true), range: [BEYOND, P, 0],
  })],

  ['UFFDIO_MOVE', 'EBUSY', 'page {source} of the source is shared', async () => {
    const library = compileLibrary('support/fork.c');
    const uffd = uffdWith('move');
    const base = watched(uffd, 3);
    const source = filled(3);
    assert.is(await (await toucher()).fork(library), 0);
    // After a write, the first page is no longer shared with the child.
    new Uint8Array(memory.view(source, 1))[0] = 1;
    return { act: () => uffd.move(base, source, 3 * P), range: [base, 3 * P, P] };
  }],
  ['UFFDIO_MOVE', 'EEXIST', 'page {page} of the target', () => {
    const uffd = uffdWith('move');
    const base = watched(uffd, 2);
    uffd.zero(at(base, 1), P);
    return { act: () => uffd.move(base, filled(2), 2 * P), range: [base, 2 * P, P] };
  }],
  ['UFFDIO_MOVE', 'EFAULT', 'page {source} of the source is poisoned', () => {
    const uffd = uffdWith('move', 'poison');
    const base = watched(uffd, 2);
    const source = filled(2);
    memory.madvise(at(source, 1), P, memory.MADV_DONTNEED);
    uffd.register(source, 2 * P);
    uffd.poison(at(source, 1), P);
    return { act: () => uffd.move(base, source, 2 * P), range: [base, 2 * P, P] };
  }],
  ['UFFDIO_MOVE', 'EINVAL', 'nothing is registered here', () => {
    const base = map(1);
    return { act: () => uffdWith('move').move(base, filled(1), P), range: [base, P, 0] };
  }],
  ['UFFDIO_MOVE', 'EINVAL', 'pages cannot be moved', () => {
    const uffd = uffdWith('move');
    const base = huge(HUGE);
    uffd.register(base, HUGE);
    return { act: () => uffd.move(base, map(HUGE / P), HUGE), range: [base, HUGE, 0] };
  }],
  ['UFFDIO_MOVE', 'EINVAL', 'the ranges are not both', () => {
    const uffd = uffdWith('move');
    const base = watched(uffd, 1);
    return { act: () => uffd.move(base, keep(Mapping.memfd(P)).address, P), range: [base, P, 0] };
  }],
  ['UFFDIO_MOVE', 'ENOENT', 'the source has a hole', () => {
    const uffd = uffdWith('move');
    const base = watched(uffd, 2);
    const source = map(2);
    new Uint8Array(memory.view(source, 1))[0] = 1;
    return { act: () => uffd.move(base, source, 2 * P), range: [base, 2 * P, P] };
  }],

  ['read', 'EINVAL', 'the descriptor is no userfaultfd', () => {
    const uffd = uffdWith();
    assert.is(c('int dup2(int, int)')(unshaken(), uffd.fd), uffd.fd);
    return { act: () => uffd.poll({ pagefault: never }) };
  }],
  ['poll', 'EINVAL', 'the process may have fewer', () => {
    const uffd = uffdWith();
    Userfaultfd.stop(uffd.stopHandle);
    uffd.start({ pagefault: never }, { wait: 'block' });
    return { act: () => withDescriptorLimit(2, () => uffd.start({ pagefault: never }, { wait: 'block' })) };
  }],
  ['pidfd_open', 'EMFILE', 'the process has no file descriptor', () => ({
    act: () => withoutDescriptors(() => Userfaultfd.open({ via: 'syscall', pid: process.pid }), 1),
  })],
  ['pidfd_open', 'ESRCH', 'there is no process', () => ({ act: () => Userfaultfd.open({ pid: 0x7fffffff }) })],
  ['/proc/PID/smaps', 'EMFILE', 'the process has no file descriptor', () => {
    const uffd = uffdWith();
    const base = huge(HUGE);
    return { act: () => withoutDescriptors(() => uffd.register(base, HUGE)) };
  }],
  ['eventfd', 'EMFILE', 'the process has no file descriptor', () => {
    const uffd = uffdWith();
    return { act: () => withoutDescriptors(() => uffd.start({ pagefault: never })) };
  }],

  ['mmap', 'EINVAL', '{bytes} bytes in huge pages', () => ({
    act: () => Mapping.anonymous(3 * P, { pageSize: 2 * P }),
  })],
  ['mmap', 'ENODEV', 'the file system', () => ({ act: () => Mapping.file('/sys/kernel/mm/transparent_hugepage/enabled') })],
  ['mmap', 'ENOMEM', '{bytes} bytes in huge pages', () => {
    huge(HUGE);
    return { act: () => Mapping.anonymous(2 ** 46, { pageSize: HUGE }) };
  }],
  ['mmap', 'ENOMEM', '{bytes} bytes cannot be mapped', () => ({ act: () => Mapping.anonymous(2 ** 52) })],
  ['mmap', 'EPERM', 'a seal of the file', () => {
    const [MFD_ALLOW_SEALING, F_ADD_SEALS, F_SEAL_WRITE] = [2, 1033, 8];
    const fd = libc().memfd_create('sealed', MFD_ALLOW_SEALING);
    keep({ close: () => closeSync(fd) });
    libc().ftruncate(fd, P);
    assert.is(libc().fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), 0);
    return { act: () => Mapping.file(`/proc/self/fd/${fd}`, { shared: true }) };
  }],
  ['memfd_create', 'EMFILE', 'the process has no file descriptor', () => ({
    act: () => withoutDescriptors(() => Mapping.memfd(P)),
  })],
  ['memfd_create', 'ENODEV', '{bytes} bytes in huge pages', () => ({ act: () => Mapping.memfd(3 * P, { pageSize: 2 * P }) })],
  ['fcntl', 'EMFILE', 'the process has no file descriptor', () => {
    const mapping = keep(Mapping.memfd(P));
    return { act: () => withoutDescriptors(() => mapping.alias()) };
  }],
  ['userfaultfd core', 'ENOMEM', "the core's tables", () => {
    const mapping = keep(Mapping.anonymous(24 * 2 ** 40));
    return { act: () => uffdWith().register(mapping.address, mapping.length) };
  }],
];

/** Rows that no case provokes, grouped by the reason. */
const UNPROVOKED: Record<string, Record<string, string>> = {
  'the library answers it itself: see transfer, inbox, operations, forks and process.test.ts': {
    UFFDIO_COPY: 'EAGAIN EEXIST ENOENT ESRCH ENOSPC',
    UFFDIO_ZEROPAGE: 'EAGAIN EEXIST ENOENT ESRCH ENOSPC',
    UFFDIO_CONTINUE: 'EAGAIN EEXIST ENOENT ESRCH ENOSPC',
    UFFDIO_POISON: 'EAGAIN EEXIST ENOENT ESRCH ENOSPC',
    UFFDIO_WRITEPROTECT: 'EAGAIN ENOENT ESRCH',
    UFFDIO_MOVE: 'EAGAIN ESRCH',
    UFFDIO_API: 'EINVAL',
    read: 'EAGAIN EMFILE',
    pidfd_open: 'ENOSYS',
    'any call': 'EINTR',
  },
  'the library never passes what brings it': {
    UFFDIO_API: 'EFAULT',
    UFFDIO_REGISTER: 'EFAULT',
    UFFDIO_UNREGISTER: 'EFAULT',
    UFFDIO_WAKE: 'EFAULT',
    UFFDIO_WRITEPROTECT: 'EFAULT',
    read: 'EFAULT ESPIPE',
    poll: 'EFAULT',
    mmap: 'EACCES',
    madvise: 'EINVAL ENOMEM',
    mremap: 'EFAULT ENOMEM',
    'any call': 'ENOTTY',
  },
  'the whole machine would have to run short of something': {
    userfaultfd: 'ENFILE ENOMEM',
    '/dev/userfaultfd': 'ENFILE ENOMEM',
    UFFDIO_COPY: 'ENOMEM',
    UFFDIO_ZEROPAGE: 'ENOMEM',
    UFFDIO_CONTINUE: 'ENOMEM EIO',
    UFFDIO_POISON: 'ENOMEM',
    UFFDIO_WRITEPROTECT: 'ENOMEM',
    UFFDIO_MOVE: 'ENOMEM',
    read: 'ENFILE ENOMEM',
    poll: 'ENOMEM',
    pidfd_open: 'ENFILE ENOMEM',
    eventfd: 'ENFILE ENOMEM',
    mmap: 'ENFILE',
    memfd_create: 'ENFILE ENOMEM EFBIG',
    'any call': 'ENOMEM',
  },
  'another kernel, container or configuration gives it: see open.test.ts, and the tests of older kernels': {
    userfaultfd: 'EINVAL ENOSYS',
    '/dev/userfaultfd': 'EINVAL ENOENT ENOTTY ENXIO EPERM',
    UFFDIO_POISON: 'EINVAL',
    read: 'EIO',
    pidfd_open: 'EINVAL ENODEV ENOENT EPERM',
    eventfd: 'EINVAL ENODEV',
    mmap: 'EAGAIN EINVAL',
    mremap: 'EINVAL',
    memfd_create: 'EACCES EINVAL ENOSYS EPERM',
    'any call': 'ENOSYS EPERM',
  },
  'the dirty tracker alone makes these calls; test/dirty provokes what replaced and unreadable memory bring':
    {
      '/proc/PID/pagemap': 'EACCES EMFILE ENFILE ENOENT ENOMEM EPERM ESRCH',
      PAGEMAP_SCAN: 'EFAULT EINVAL ENOENT ENOMEM ENOTTY EPERM ESRCH',
      process_vm_readv: 'EFAULT',
      process_vm_writev: 'EFAULT',
      msync: 'EPERM',
    },
  'the server and its peers make these calls; test/serve provokes those that an operator meets': {
    bind: 'EACCES EADDRINUSE ENAMETOOLONG ENOENT ENOTDIR',
    connect: 'EACCES EAGAIN ECONNREFUSED ENAMETOOLONG ENOENT',
    accept4: 'EMFILE ENFILE ENOMEM',
    sendmsg: 'EAGAIN EPIPE',
    lseek: 'EIO',
  },
  "the pager's thread alone makes these calls; test/pager provokes what users meet": {
    pread: 'EAGAIN EIO',
    pwrite: 'ENOMEM ENOSPC EPERM',
    MADV_POPULATE_WRITE: 'EFAULT ENOMEM',
    fallocate: 'EPERM',
    mprotect: 'ENOMEM',
  },
  'page-size.test.ts provokes one that stands for all': {
    '/proc/PID/smaps': 'EACCES EIO ENFILE ENOENT ENOMEM EPERM ESRCH',
  },
  'the launcher of handlers alone makes these calls; test/supervisor runs where they are allowed': {
    seccomp: 'EBUSY EINVAL ENOSYS EPERM',
  },
  'open.test.ts provokes it': { 'any call': 'EBADF' },
};

/** Skips if the call succeeds: a sysctl may allow it to unprivileged users. */
function refusedTo(act: () => Userfaultfd): never {
  act().close();
  skip('this machine allows every user what the test expects to be refused');
}

/** The descriptor of a userfaultfd without a handshake. */
function unshaken(): number {
  const port = linuxKernel().attach(new WebAssembly.Memory({ initial: 1 }));
  const fd = port.userfaultfd(0x80800);
  keep({ close: () => port.close(fd) });
  return fd;
}

function errorOf(act: () => unknown): UffdError {
  try {
    act();
  } catch (error) {
    if (error instanceof UffdError) return error;
    throw error;
  }
  throw new Error('nothing failed');
}

/** A regular expression for a text of the catalog, with any facts filled in. */
function patternOf(text: string): string {
  return text
    .split(/\{\w+\}/)
    .map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'))
    .join('(?:0x[0-9a-f]+|\\d+|a mapping of the file \\S+)');
}

/** The row of a case; there must be exactly one. */
function rowOf([call, code, cause]: Case): Reason {
  const rows = (rowsOf(call, code) ?? []).filter((row) => row.cause.startsWith(cause));
  assert.is(rows.length, 1, `${code} of ${call}: ${cause}`);
  return rows[0] as Reason;
}

for (const [index, one] of CASES.entries()) {
  const [call, code, cause, provoke] = one;
  test(`${index + 1}. ${code} of ${call}: ${cause}`, async () => {
    needKernel();
    open = [];
    try {
      const { act, range } = await provoke();
      const error = errorOf(act);
      assert.equal([error.code, error.errno, error.syscall], [code, -(Errno[code] as number), call]);
      const row = rowOf(one);
      const tail = new RegExp(`failed[^:]*: ${patternOf(`${row.cause}; ${row.remedy}`)}$`);
      assert.match(error.message, tail);
      if (!range) return;
      const [start, length, done] = range;
      const left = done === undefined ? '' : ` with ${length - done} left`;
      const head = `${code}: ${call} at 0x${start.toString(16)}, ${length} bytes failed${left}: `;
      assert.is(error.message.slice(0, head.length), head);
      assert.is(error.transferred, done ?? 0);
      assert.is(error.address, start + BigInt(done ?? 0));
      if (row.cause.includes('{page}')) assert.match(error.message, `0x${error.address?.toString(16)}`);
    } finally {
      for (const kept of open.reverse()) kept.close();
      await endAll();
    }
  });
}

test('every row is provoked, or it is said why not', () => {
  const provoked = new Set(CASES.map((one) => `${one[1]} of ${one[0]}: ${rowOf(one).cause}`));
  const excused = Object.values(UNPROVOKED).flatMap((calls) =>
    Object.entries(calls).flatMap(([call, codes]) => codes.split(' ').map((code) => `${code} of ${call}`)),
  );
  assert.is(new Set(excused).size, excused.length, 'each is excused once');
  const rows = Object.entries(REASONS).flatMap(([call, codes]) =>
    Object.keys(codes).flatMap((code) =>
      (rowsOf(call, code) ?? []).map((row) => ({ name: `${code} of ${call}`, cause: row.cause })),
    ),
  );
  const missing = rows.filter(
    ({ name, cause }) => !provoked.has(`${name}: ${cause}`) && !excused.includes(name),
  );
  assert.equal(missing, []);
  // Each excused code must have a row that no case provokes.
  const idle = excused.filter(
    (name) => !rows.some((row) => row.name === name && !provoked.has(`${name}: ${row.cause}`)),
  );
  assert.equal(idle, []);
});

test.run();
