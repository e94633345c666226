// The trials: each feature and each operation does, on scratch pages, what it is there for, and a thread
// that is stopped by it goes on with what it was given. A trial throws where the kernel does something else.

import { type FEATURES, Mapping, type OPERATIONS, type Pagefault } from '../../index.js';
import { forkIsTold } from './fork-trial.js';
import { expect, NotTried, Refused, type Scene, serve } from './scene.js';
import { expectProtection, hugePage, minor, missing, watchedPages, writeProtected } from './scratch.js';

type Trying = (scene: Scene) => Promise<void> | void;
type FeatureName = (typeof FEATURES)[number];
type OperationName = (typeof OPERATIONS)[number];

/** The operations that are not tried with a feature of their own. */
export const OPERATION_TRIALS: Record<
  Exclude<OperationName, 'move' | 'write-protect' | 'continue' | 'poison'>,
  Trying
> = {
  register({ open }) {
    using uffd = open();
    using memory = Mapping.anonymous(uffd.pageSize);
    const operations = uffd.register(memory.address, memory.length);
    for (const name of ['wake', 'copy', 'zero'] as const) {
      expect(`whether the range allows '${name}'`, operations.has(name), true);
    }
  },

  async unregister({ open, toucher }) {
    using uffd = open();
    using memory = watchedPages(uffd);
    const answer = (): void => uffd.unregister(memory.address, memory.length);
    const byte = await serve(uffd, { pagefault: answer }, () => toucher.read(memory.share(), 0));
    expect('the byte of a page that is not watched any more', byte, 0);
  },

  async wake({ open, toucher }) {
    using uffd = open();
    using memory = watchedPages(uffd);
    let faults = 0;
    const answer = ({ page }: Pagefault): void => {
      if (++faults === 1) uffd.wake(page, uffd.pageSize);
      else uffd.zero(page, uffd.pageSize);
    };
    await serve(uffd, { pagefault: answer }, () => toucher.read(memory.share(), 0));
    expect('faults of a thread that was woken without a page', faults, 2);
  },

  async copy({ open, toucher }) {
    using uffd = open();
    using memory = watchedPages(uffd, 2);
    const answer = ({ page }: Pagefault): void => {
      const number = Number(page - memory.address) / uffd.pageSize;
      uffd.copy(page, new Uint8Array(uffd.pageSize).fill(number + 1));
    };
    for (const page of [0, 1]) {
      const read = () => toucher.read(memory.share(), (page + 1) * uffd.pageSize - 1);
      expect('the byte copied', await serve(uffd, { pagefault: answer }, read), page + 1);
    }
  },

  async zero({ open, toucher }) {
    using uffd = open();
    using memory = watchedPages(uffd);
    let faults = 0;
    const answer = ({ page }: Pagefault): void => {
      faults++;
      uffd.zero(page, uffd.pageSize);
    };
    const byte = await serve(uffd, { pagefault: answer }, () => toucher.read(memory.share(), 0));
    expect('the byte of a zero page', byte, 0);
    expect('faults', faults, 1);
  },
};

export const FEATURE_TRIALS: Record<FeatureName, Trying> = {
  async 'pagefault-flag-wp'({ open, toucher }) {
    using uffd = open(['pagefault-flag-wp']);
    using memory = Mapping.anonymous(uffd.pageSize);
    memory.bytes.fill(1);
    await writeProtected(uffd, memory, toucher);
  },

  'event-fork': forkIsTold,

  async 'event-remap'({ open, toucher }) {
    using uffd = open(['event-remap']);
    const { address, length } = await toucher.make(uffd.pageSize, 5);
    uffd.register(address, length);
    const told: unknown[] = [];
    const moved = await serve(uffd, { remapped: (...event) => void told.push(...event) }, toucher.relocate);
    expect('the move that was told', told, [address, moved.address, length]);
    expect('the byte at the new address', await toucher.read(moved, 0), 5);
  },

  async 'event-remove'({ open, toucher }) {
    using uffd = open(['event-remove']);
    const memory = await toucher.make(uffd.pageSize, 5);
    uffd.register(memory.address, memory.length);
    const told: unknown[] = [];
    const handler = {
      removed: (...event: bigint[]) => void told.push(...event),
      pagefault: ({ page }: Pagefault) => void uffd.zero(page, uffd.pageSize),
    };
    const byte = await serve(uffd, handler, async () => {
      await toucher.discard();
      return toucher.read(memory, 0);
    });
    expect('the removal that was told', told, [memory.address, memory.address + BigInt(memory.length)]);
    expect('the byte after it', byte, 0);
  },

  async 'event-unmap'({ open, toucher }) {
    using uffd = open(['event-unmap']);
    const { address, length } = await toucher.make(uffd.pageSize, 5);
    uffd.register(address, length);
    const told: unknown[] = [];
    await serve(uffd, { unmapped: (...event) => void told.push(...event) }, toucher.unmap);
    expect('the unmapping that was told', told, [address, address + BigInt(length)]);
  },

  async 'missing-hugetlbfs'({ open, toucher }) {
    using uffd = open(['missing-hugetlbfs']);
    using memory = hugePage((pageSize) => Mapping.anonymous(pageSize, { pageSize }));
    await missing(uffd, memory, toucher);
  },

  async 'missing-shmem'({ open, toucher }) {
    using uffd = open(['missing-shmem']);
    using memory = Mapping.memfd(uffd.pageSize);
    await missing(uffd, memory, toucher);
  },

  async sigbus({ open, toucher, userModeOnly }) {
    // By a system call, which says so; a thread would be killed.
    if (userModeOnly) throw new NotTried('it takes a fault of kernel mode to see it');
    using uffd = open(['sigbus']);
    using memory = watchedPages(uffd);
    expect('what a system call gets', await toucher.send(memory.share(), uffd.pageSize), 'EFAULT');
  },

  async 'thread-id'({ open, toucher }) {
    using uffd = open(['thread-id']);
    using memory = watchedPages(uffd);
    let tid = 0;
    const answer = (fault: Pagefault): void => {
      tid = fault.tid;
      uffd.zero(fault.page, uffd.pageSize);
    };
    await serve(uffd, { pagefault: answer }, () => toucher.read(memory.share(), 0));
    expect('the thread that touched', tid, await toucher.tid());
  },

  async 'minor-hugetlbfs'({ open, toucher }) {
    using uffd = open(['minor-hugetlbfs']);
    using memory = hugePage((pageSize) => Mapping.memfd(pageSize, { pageSize }));
    await minor(uffd, memory, toucher);
  },

  async 'minor-shmem'({ open, toucher }) {
    using uffd = open(['minor-shmem']);
    using memory = Mapping.memfd(uffd.pageSize);
    await minor(uffd, memory, toucher);
  },

  async 'exact-address'({ open, toucher }) {
    using uffd = open(['exact-address']);
    using memory = watchedPages(uffd);
    let address = 0n;
    const answer = (fault: Pagefault): void => {
      address = fault.address;
      uffd.zero(fault.page, uffd.pageSize);
    };
    await serve(uffd, { pagefault: answer }, () => toucher.read(memory.share(), 123));
    expect('the address touched', address, memory.address + 123n);
  },

  async 'wp-hugetlbfs-shmem'({ open, toucher }) {
    using uffd = open(['wp-hugetlbfs-shmem']);
    using memory = Mapping.memfd(uffd.pageSize);
    memory.bytes.fill(1);
    await writeProtected(uffd, memory, toucher);
  },

  async 'wp-unpopulated'({ open, toucher }) {
    using uffd = open(['wp-unpopulated']);
    using memory = Mapping.anonymous(uffd.pageSize);
    await writeProtected(uffd, memory, toucher);
  },

  async poison({ open, toucher }) {
    using uffd = open(['poison']);
    using memory = watchedPages(uffd);
    uffd.poison(memory.address, memory.length);
    // The poison stays, and the userfaultfd alone would not stop anybody any more.
    uffd.unregister(memory.address, memory.length);
    expect('what a system call gets', await toucher.send(memory.share(), uffd.pageSize), 'EFAULT');
  },

  async 'wp-async'({ open, toucher }) {
    using uffd = open(['wp-async']);
    using memory = Mapping.anonymous(uffd.pageSize);
    memory.bytes.fill(1);
    uffd.register(memory.address, memory.length, 'write-protect');
    uffd.writeProtect(memory.address, memory.length, true);
    expectProtection(memory, true);
    // Nobody is told of it, and nobody has to answer.
    await serve(uffd, {}, () => toucher.write(memory.share(), 0, 2));
    expectProtection(memory, false);
    expect('the byte written', memory.bytes[0], 2);
  },

  async move({ open, toucher }) {
    using uffd = open(['move']);
    using memory = watchedPages(uffd);
    using source = Mapping.anonymous(uffd.pageSize);
    source.bytes.fill(9);
    const answer = ({ page }: Pagefault): void => void uffd.move(page, source.address, uffd.pageSize);
    const byte = await serve(uffd, { pagefault: answer }, () => toucher.read(memory.share(), 0));
    expect('the byte moved', byte, 9);
    expect('the byte left behind', source.bytes[0], 0);
  },
};

/** A system call touches watched memory. Under a userfaultfd of user mode only it gets EFAULT. */
export async function systemCalls({ open, toucher, userModeOnly }: Scene): Promise<void> {
  using uffd = open();
  using memory = watchedPages(uffd);
  const answer = ({ page }: Pagefault): void => void uffd.copy(page, new Uint8Array(uffd.pageSize));
  const sent = await serve(uffd, { pagefault: answer }, () => toucher.send(memory.share(), uffd.pageSize));
  if (userModeOnly) {
    expect('what a system call gets', sent, 'EFAULT');
    throw new Refused('a system call that touches a missing page gets EFAULT');
  }
  expect('bytes that a system call read', sent, uffd.pageSize);
}
