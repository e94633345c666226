// The guest, in an expendable process: its memory, its threads, and its monitor, which hands the memory over and keeps
// its own copy of the userfaultfd, as Firecracker does. So if the handler is gone, threads that fault hang.
//
// Rules:
//  - Each step is reported before it is made, because it may never return.
//  - A page must hold the file's bytes, or zeros once it was removed, and what was written since then. While a removal is
//    under way, both are right.

import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { readMemory } from '../../shim/access.js';
import { closeDescriptor } from '../../shim/descriptors.js';
import * as memory from '../../shim/memory.js';
import { resultOf, startPthread } from '../../shim/pthread.js';
import { connectUnix, peerOf, receive, send, shutdownSending } from '../../shim/socket.js';
import { handOffText, type Region } from '../serve/handoff-protocol.js';
import { Userfaultfd } from '../uffd/userfaultfd.js';
import { type GuestOptions, type MemoryPlan, PAGE_SIZE, PAGES, type Request } from './guest-protocol.js';
import { COUNTER, contentsOf, inWords, numberIn } from './page-contents.js';
import { type Faults, faultsIn, taskFiles } from './process-state.js';
import type { WrongPage } from './result.js';

const EAGAIN = -11;
const CONNECTION_REFUSED: readonly number[] = [-2, -111];
const PAUSE_MS = 2;
const STACK_BYTES = 64 * 1024;
const MAPPED = memory.MAP_PRIVATE | memory.MAP_ANONYMOUS | memory.MAP_NORESERVE;

/** A guest that does not have what it should have. */
export class GuestFailure extends Error {
  readonly page: WrongPage | undefined;

  constructor(reason: string, page?: WrongPage) {
    super(reason);
    this.page = page;
  }
}

/** The handler has closed the connection. */
export class ConnectionClosed extends GuestFailure {}

/** The scenario cannot be asked for, on this machine or of this handler. */
export class NotApplicable extends Error {}

/** What a page must hold. */
export type Expected = 'file' | 'zeros' | 'file or zeros';

/** Threads that touch a page each. */
export class Touching {
  readonly #threads: bigint[];
  readonly #results: (bigint | undefined)[];

  constructor(threads: bigint[]) {
    this.#threads = threads;
    this.#results = threads.map(() => undefined);
  }

  /** How many threads have not ended. */
  get left(): number {
    let left = 0;
    for (const [index, thread] of this.#threads.entries()) {
      if (this.#results[index] === undefined) this.#results[index] = resultOf(thread);
      if (this.#results[index] === undefined) left++;
    }
    return left;
  }

  /** What each thread has returned, once all have ended. */
  get results(): bigint[] {
    return this.#results.map((result) => BigInt.asIntN(64, result ?? 0n));
  }
}

export class Guest {
  readonly pages: number;
  readonly pageSize: number;
  readonly regions: readonly Region[];
  /** Its own copy of the userfaultfd, whose messages it never reads. */
  readonly #uffd: Userfaultfd;
  readonly #options: GuestOptions;
  readonly #step: (text: string) => void;
  readonly #ask: (what: Request) => Promise<unknown>;
  /** The handler's process group. */
  #handler: number;
  /** The process that was stopped. */
  #paused = 0;
  /** Removed pages, and what the guest has written: by page, the byte at each place. */
  readonly #removed = new Set<number>();
  readonly #written = new Map<number, Map<number, number>>();
  /** Pages that were removed while threads counted in them: their counters may have any value. */
  readonly #uncounted = new Set<number>();
  #socket = -1;

  constructor(
    { pages = PAGES, pageSize = PAGE_SIZE, regions = [{ pages, offset: 0 }] }: MemoryPlan,
    options: GuestOptions,
    step: (text: string) => void,
    ask: (what: Request) => Promise<unknown>,
  ) {
    this.#options = options;
    this.#step = step;
    this.#ask = ask;
    this.#handler = options.handler;
    this.pages = pages;
    this.pageSize = pageSize;
    const gaps = regions.length + 1;
    const span = (regions.reduce((sum, region) => sum + region.pages, 0) + gaps) * pageSize;
    let at = this.map(span);
    const placed: Region[] = [];
    for (const { pages: length, offset } of regions) {
      placed.push({ start: at, length: length * pageSize, offset: offset * pageSize, pageSize });
      at += BigInt((length + 1) * pageSize);
    }
    this.regions = placed;
    const uffd = Userfaultfd.open({ features: ['event-remove'] });
    for (const { start, length } of placed) uffd.register(start, length, 'missing', { pageSize });
    this.#uffd = uffd;
  }

  /** The descriptor of its userfaultfd. */
  get uffd(): number {
    return this.#uffd.fd;
  }

  /** Whether system calls may not touch missing memory. */
  get userModeOnly(): boolean {
    return this.#uffd.userModeOnly === true;
  }

  /** New memory of the guest's page size. */
  map(bytes: number): bigint {
    const address = memory.mmap(
      0n,
      bytes,
      memory.PROT_READ | memory.PROT_WRITE,
      MAPPED | memory.hugeFlags(this.pageSize),
    );
    if (address < 0n) throw new NotApplicable(`${bytes} bytes cannot be mapped: errno ${-address}`);
    return address;
  }

  /** Reports what comes next. */
  step(text: string): void {
    this.#step(text);
  }

  /** Asks the supervisor for something, and waits until it is done. */
  async ask(what: Request): Promise<void> {
    this.#step(`asks the supervisor: ${what}`);
    const answer = await this.#ask(what);
    if (what === 'restart the handler') this.#handler = Number(answer);
  }

  // ---- the hand-off ----------------------------------------------------------------------------------------

  /** Connects to the handler. A handler that has bound its socket may listen a moment later. */
  async connect(): Promise<number> {
    this.step('connects');
    for (;;) {
      this.#socket = connectUnix(this.#options.socket);
      if (this.#socket >= 0) return this.#socket;
      if (!CONNECTION_REFUSED.includes(this.#socket))
        throw new GuestFailure(`connect failed: errno ${-this.#socket}`);
      await sleep(PAUSE_MS);
    }
  }

  async handOver(): Promise<void> {
    await this.connect();
    await this.send(handOffText(this.regions), [this.uffd]);
  }

  /** Sends bytes of a hand-off on the connection. */
  async send(bytes: Uint8Array, fds: readonly number[] = []): Promise<void> {
    this.step(`sends ${bytes.length} bytes of the hand-off, and ${fds.length} descriptors`);
    for (let sent = 0; sent < bytes.length; ) {
      const some = send(this.#socket, bytes.subarray(sent), sent === 0 ? fds : []);
      if (some === EAGAIN) await sleep(PAUSE_MS);
      else if (some < 0)
        throw new ConnectionClosed(`the handler closed the connection during the hand-off (errno ${-some})`);
      else sent += some;
    }
  }

  /** Ends the connection. */
  disconnect(): void {
    this.step('closes the connection');
    closeDescriptor(this.#socket);
  }

  /** Sends nothing more, but leaves the connection open to see the handler close it. */
  endSending(): void {
    this.step('ends its side of the connection');
    shutdownSending(this.#socket);
  }

  /** Waits until the handler has closed the connection. */
  async untilClosed(): Promise<void> {
    this.step('waits until the handler closes the connection or exits');
    await this.until(() => this.#isClosed());
  }

  #isClosed(): boolean {
    const { result } = receive(this.#socket, new Uint8Array(64));
    return result === 0 || (result < 0 && result !== EAGAIN);
  }

  /** Waits until the handler has filled a page. @throws ConnectionClosed if it has refused the hand-off instead */
  async untilServed(page: number): Promise<void> {
    const threads = this.reading([page]);
    await this.until(() => threads.left === 0 || this.#isClosed());
    if (threads.left > 0)
      throw new ConnectionClosed('the handler closed the connection, and the guest hangs');
    await this.joinReaders([page], threads);
  }

  // ---- pages -----------------------------------------------------------------------------------------------

  /** The address of a page of the memory file. */
  address(page: number): bigint {
    const at = page * this.pageSize;
    const region = this.regions.find(({ offset, length }) => at >= offset && at < offset + length);
    if (!region) throw new RangeError(`no region has page ${page}`);
    return region.start + BigInt(at - region.offset);
  }

  /** Reads a page, and compares it with what it must hold. */
  expect(page: number, what?: Expected): void {
    this.step(`reads page ${page}`);
    const bytes = Buffer.from(new Uint8Array(memory.view(this.address(page), this.pageSize)));
    this.#compare(page, bytes, what);
  }

  /** As `expect`, but a system call reads the page. */
  expectBySystemCall(page: number): void {
    this.step(`reads page ${page} in a system call`);
    const bytes = Buffer.alloc(this.pageSize);
    const done = readMemory(this.address(page), bytes);
    if (done !== bytes.length)
      throw new GuestFailure(`process_vm_readv read ${done} of ${bytes.length} bytes of page ${page}`);
    this.#compare(page, bytes);
  }

  #compare(page: number, bytes: Buffer, what: Expected = this.#removed.has(page) ? 'zeros' : 'file'): void {
    const file = contentsOf(page, this.pageSize);
    const zeros = Buffer.alloc(this.pageSize);
    const right = what === 'file' ? [file] : what === 'zeros' ? [zeros] : [file, zeros];
    if (this.#uncounted.has(page)) bytes.fill(0, COUNTER.at, COUNTER.at + COUNTER.length);
    const written = this.#written.get(page) ?? [];
    for (const [at, value] of written) for (const one of right) one[at] = value;
    if (right.some((one) => one.equals(bytes))) return;
    for (const [at, value] of written) {
      if (bytes[at] === value) bytes[at] = file[at] as number;
      else this.#wrong(page, `${value} at byte ${at}, which was written`, `${bytes[at]}: the write is lost`);
    }
    const expected = { file: inWords(file), zeros: 'zeros', 'file or zeros': `${inWords(file)} or zeros` }[
      what
    ];
    this.#wrong(
      page,
      this.#removed.has(page) ? `${expected}, because it was removed` : expected,
      inWords(bytes),
    );
  }

  #wrong(page: number, expected: string, actual: string): never {
    const where = { address: this.address(page), offset: page * this.pageSize };
    throw new GuestFailure(`page ${page} has ${actual}; it should have ${expected}`, {
      ...where,
      expected,
      actual,
    });
  }

  /** Writes a byte. */
  write(page: number, at: number, value: number): void {
    this.step(`writes to page ${page}`);
    new Uint8Array(memory.view(this.address(page), this.pageSize))[at] = value;
    this.#note(page, at, value);
  }

  #note(page: number, at: number, value: number): void {
    const bytes = this.#written.get(page) ?? new Map<number, number>();
    this.#written.set(page, bytes.set(at, value));
  }

  /** Removes pages, as a balloon does. It returns when the handler has read the event. */
  remove(first: number, count = 1): void {
    this.step(`removes ${count} pages from page ${first} on`);
    const result = memory.madvise(this.address(first), count * this.pageSize, memory.MADV_DONTNEED);
    if (result < 0) throw new GuestFailure(`madvise failed: errno ${-result}`);
    this.#forget(first, count);
  }

  /** As `remove`, in another thread. */
  async removing(first: number, count = 1): Promise<void> {
    this.step(`removes ${count} pages from page ${first} on, in another thread`);
    const bytes = count * this.pageSize;
    const result = await memory.madviseInThread(this.address(first), bytes, memory.MADV_DONTNEED);
    if (result < 0) throw new GuestFailure('madvise failed');
    this.#forget(first, count);
  }

  #forget(first: number, count: number): void {
    for (let page = first; page < first + count; page++) {
      this.#removed.add(page);
      this.#written.delete(page);
    }
  }

  /** Installs the file's bytes of a page, as a prefetcher does, and wakes no thread. */
  fillByMonitor(page: number): void {
    this.step(`the monitor installs page ${page} itself, and wakes no thread`);
    this.#uffd.copy(this.address(page), contentsOf(page, this.pageSize), this.pageSize, { dontWake: true });
  }

  /** Makes a page a mapping of its own, which can only be read. */
  splitMapping(page: number): void {
    const result = memory.mprotect(this.address(page), this.pageSize, memory.PROT_READ);
    if (result < 0) throw new NotApplicable(`mprotect failed: errno ${-result}`);
  }

  /** Makes each page a mapping of its own. Then one madvise is a removal event for each page. */
  splitAll(): void {
    for (let page = 1; page < this.pages; page += 2) this.splitMapping(page);
  }

  /** Wakes all threads that wait in faults; those whose page is still missing fault again. */
  wakeAll(): void {
    this.step('the monitor wakes all threads');
    for (const { start, length } of this.regions) this.#uffd.wake(start, length);
  }

  // ---- threads ---------------------------------------------------------------------------------------------

  /** Starts a thread for each of these pages, which reads the page's number. */
  reading(pages: readonly number[]): Touching {
    return this.#threads('atol', pages, 0);
  }

  /** Starts a thread for each of these pages, which adds 1 to the page's counter. */
  counting(pages: readonly number[]): Touching {
    return this.#threads('sem_post', pages, COUNTER.at);
  }

  #threads(routine: 'atol' | 'sem_post', pages: readonly number[], at: number): Touching {
    this.step(`${pages.length} threads ${routine === 'atol' ? 'read' : 'write to'} ${namesOf(pages)}`);
    const threads: bigint[] = [];
    for (const page of pages) {
      const thread = startPthread(routine, this.address(page) + BigInt(at), STACK_BYTES);
      if (thread === undefined)
        throw new NotApplicable(`only ${threads.length} of ${pages.length} threads can be started`);
      threads.push(thread);
    }
    return new Touching(threads);
  }

  /** Waits for threads that read these pages, and compares what they read. */
  async joinReaders(pages: readonly number[], threads: Touching, what: Expected = 'file'): Promise<void> {
    this.step(`waits for the threads that read ${namesOf(pages)}`);
    await this.until(() => threads.left === 0);
    for (const [index, number] of threads.results.entries()) {
      const page = pages[index] as number;
      const right = { file: [numberIn(page)], zeros: [0], 'file or zeros': [numberIn(page), 0] }[what];
      if (right.some((one) => number === BigInt(one))) continue;
      const actual = number === 0n ? 'zeros' : `the bytes of page ${number - 1n}`;
      const expected = what === 'file' ? `the bytes of page ${page}` : what;
      this.#wrong(page, expected, actual);
    }
  }

  /**
   * Waits for threads that count in these pages, after which each page has the sum. `removed`: pages that were removed
   * meanwhile, so that a write may be gone with them.
   */
  async joinCounters(
    pages: readonly number[],
    threads: Touching,
    removed: readonly number[] = [],
  ): Promise<void> {
    this.step(`waits for the threads that write to ${namesOf(pages)}`);
    await this.until(() => threads.left === 0);
    for (const page of removed) this.#uncounted.add(page);
    for (const page of new Set(pages)) {
      if (this.#uncounted.has(page)) continue;
      const sum = Buffer.alloc(4);
      const written = this.#written.get(page);
      sum.writeUInt32LE(pages.filter((one) => one === page).length + (written?.get(COUNTER.at) ?? 0));
      for (const [index, byte] of sum.entries()) this.#note(page, COUNTER.at + index, byte);
    }
  }

  /** Faults that wait: those that the handler has not read, and all. */
  get faults(): Faults {
    return faultsIn(readFileSync(`/proc/self/fdinfo/${this.uffd}`, 'latin1')) ?? { unread: 0, all: 0 };
  }

  /** Waits until every thread sleeps in a fault, or has ended, because its page was present. */
  async untilAsleep(...touching: Touching[]): Promise<void> {
    this.step('waits until all threads sleep in faults');
    await this.until(() => {
      const left = touching.reduce((sum, one) => sum + one.left, 0);
      return this.faults.all >= left;
    });
  }

  /** Waits until a thread of this process sleeps in madvise because its event is not read. */
  async untilRemovalWaits(count = 1): Promise<void> {
    this.step('waits until a removal waits for the handler');
    await this.until(() => waitingThreads(/userfaultfd_event/) >= count);
  }

  async until(holds: () => boolean): Promise<void> {
    while (!holds()) await sleep(PAUSE_MS);
  }

  /** Lets another process hold the connection for some time, as a child of a monitor does. */
  lendConnection(seconds: number): void {
    this.step(`a child of the monitor holds the connection for ${seconds} s`);
    spawn('sleep', [String(seconds)], {
      stdio: ['ignore', 'ignore', 'ignore', this.#socket],
      detached: true,
    });
  }

  // ---- the handler -----------------------------------------------------------------------------------------

  /** Stops the handler's processes, and waits until all threads of the one that listens have stopped. */
  async pauseHandler(): Promise<void> {
    this.step('stops the handler (SIGSTOP)');
    const pid = peerOf(this.#socket)?.pid || this.#handler;
    this.#paused = pid;
    // A tool that runs the handler may have given it a process group of its own, and answers its calls until it stands.
    process.kill(pid, 'SIGSTOP');
    await this.until(() =>
      [...statesOf(pid)].every((state) => state === 'T' || state === 'Z' || state === 'X'),
    );
    process.kill(-this.#handler, 'SIGSTOP');
  }

  resumeHandler(): void {
    this.step('lets the handler go on (SIGCONT)');
    for (const target of [-this.#handler, this.#paused]) process.kill(target, 'SIGCONT');
  }

  /** The memory file's path. */
  get file(): string {
    return this.#options.memory;
  }
}

/** Pages in words, a few of them. */
function namesOf(pages: readonly number[]): string {
  const distinct = [...new Set(pages)];
  if (distinct.length === 1) return `page ${distinct[0]}`;
  return `${distinct.length} pages from page ${Math.min(...distinct)} to ${Math.max(...distinct)}`;
}

/** The states of a process's threads, a letter each. */
function statesOf(pid: number): string {
  return taskFiles(pid, 'stat')
    .map((text) => text.slice(text.lastIndexOf(')') + 2)[0])
    .join('');
}

function waitingThreads(where: RegExp): number {
  return taskFiles(process.pid, 'wchan').filter((text) => where.test(text)).length;
}
