// Scenarios events, events-wp: a child uses its memory, moves it, discards its pages and uses it again, while the
// parent serves the child through the child's own userfaultfd.

import * as assert from 'uvu/assert';
import { MADV_DONTNEED } from '../../../shim/memory.js';
import { type FaultHandler, Mapping, type Mode, type Userfaultfd } from '../../../src/index.js';
import { suite } from '../../support/harness.js';
import { isShared, type Stage, scenario, scenarioLibrary } from './support.js';

const test = suite('events');
const MADV_REMOVE = 9;

/** Serves a process whose memory may move: fills missing pages with content, removed pages with zeros. */
function server(stage: Stage, protect: boolean, calls: string[]): FaultHandler {
  const { base, content, pageSize, page } = stage;
  let area = base;
  const zeros = new Uint8Array(pageSize).fill(0);
  return {
    pagefault(fault, uffd) {
      const index = Number((fault.page - area) / BigInt(pageSize));
      calls.push(`${fault.kind} ${index}`);
      if (fault.kind === 'write-protect') return uffd.writeProtect(fault.page, pageSize, false) === pageSize;
      const bytes = uffd.pageState(fault.page) === 'removed' ? zeros : content(index);
      return uffd.copy(fault.page, bytes, pageSize, { writeProtect: protect }) === pageSize;
    },
    removed(start, end) {
      calls.push(`removed ${start - area} ${end - area}`);
    },
    remapped(from, to, length) {
      assert.is(from, page(0));
      calls.push(`remapped ${length}`);
      area = to;
    },
    forked() {
      throw new Error('a child does not fork here');
    },
  };
}

for (const protect of [false, true]) {
  const modes: Mode[] = protect ? ['missing', 'write-protect'] : ['missing'];
  const features = ['event-fork', 'event-remap', 'event-remove'] as const;
  scenario(test, protect ? 'events-wp' : 'events', { features, modes, extra: 5 }, async (stage) => {
    const { uffd, thread, kind, base, length, pages, pageSize } = stage;
    const calls: string[] = [];
    let child: Userfaultfd | undefined;
    uffd.start({
      pagefault: () => {
        throw new Error('the parent does not touch its memory');
      },
      forked(forked) {
        child = forked;
        forked.start(server(stage, protect, calls));
      },
    });
    // The target of the child's move, aligned as huge pages must be.
    const to = Mapping.anonymous(length, { transparentHuge: true });
    const failedStep = await thread.native(
      scenarioLibrary(),
      'int child_changes(uintptr_t area, uintptr_t to, size_t pages, size_t page_size, int removal, int writes)',
      ...[base, to.address, pages, pageSize, isShared(kind) ? MADV_REMOVE : MADV_DONTNEED, 1],
    );
    assert.is(failedStep, 0, calls.join(', '));
    const once = (what: string) => calls.filter((one) => one === what).length;
    for (let index = 0; index < pages; index++) {
      assert.is(once(`missing ${index}`), 2, `page ${index}: ${calls}`);
      assert.is(once(`write-protect ${index}`), protect ? 2 : 0, `page ${index}: ${calls}`);
    }
    assert.is(once(`remapped ${length}`), 1);
    assert.is(once(`removed 0 ${length}`), 1);
    assert.equal(
      child?.ranges.map((range) => [range.start, range.length, range.pageSize]),
      [[to.address, length, pageSize]],
    );
    assert.equal(
      uffd.ranges.map((range) => range.start),
      [base],
      "the parent's memory is where it was",
    );
    child?.close();
    to.close();
  });
}

test.run();
