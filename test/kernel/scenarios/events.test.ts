// events, events with wp: a child uses its memory, moves it, throws it away and uses it again, while the parent
// answers for both by the child's own userfaultfd.

import * as assert from 'uvu/assert';
import { MADV_DONTNEED } from '../../../shim/memory.js';
import { type FaultHandler, Mapping, type Mode, type Userfaultfd } from '../../../src/index.js';
import { suite } from '../../harness.js';
import { isShared, type Stage, scenario, scenarioLibrary } from './stage.js';

const test = suite('events');
const MADV_REMOVE = 9;

/** Serves a process whose memory may move: content where it is missing, zeros where it was removed. */
function server(stage: Stage, protect: boolean, told: string[]): FaultHandler {
  const { base, content, pageSize, page } = stage;
  let area = base;
  const zeros = new Uint8Array(pageSize).fill(0);
  return {
    pagefault(fault, uffd) {
      const index = Number((fault.page - area) / BigInt(pageSize));
      told.push(`${fault.kind} ${index}`);
      if (fault.kind === 'write-protect') return uffd.writeProtect(fault.page, pageSize, false) === pageSize;
      const bytes = uffd.pageState(fault.page) === 'removed' ? zeros : content(index);
      return uffd.copy(fault.page, bytes, pageSize, { writeProtect: protect }) === pageSize;
    },
    removed(start, end) {
      told.push(`removed ${start - area} ${end - area}`);
    },
    remapped(from, to, length) {
      assert.is(from, page(0));
      told.push(`remapped ${length}`);
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
    const told: string[] = [];
    let child: Userfaultfd | undefined;
    uffd.start({
      pagefault: () => {
        throw new Error('the parent does not touch its memory');
      },
      forked(forked) {
        child = forked;
        forked.start(server(stage, protect, told));
      },
    });
    // Where the child moves it to, aligned as huge pages must be.
    const to = Mapping.anonymous(length, { transparentHuge: true });
    const failedStep = await thread.native(
      scenarioLibrary(),
      'int child_changes(uintptr_t area, uintptr_t to, size_t pages, size_t page_size, int removal, int writes)',
      ...[base, to.address, pages, pageSize, isShared(kind) ? MADV_REMOVE : MADV_DONTNEED, 1],
    );
    assert.is(failedStep, 0, told.join(', '));
    const once = (what: string) => told.filter((one) => one === what).length;
    for (let index = 0; index < pages; index++) {
      assert.is(once(`missing ${index}`), 2, `page ${index}: ${told}`);
      assert.is(once(`write-protect ${index}`), protect ? 2 : 0, `page ${index}: ${told}`);
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
