// Shared memory of the simulated kernel, as a pager uses it: a handler that fills through the object, evicts pages by
// itself, and maps them by CONTINUE. differential.once.test.ts compares its answers with those of the real kernel.

import { strict as assert } from 'node:assert';
import {
  advise,
  forked,
  type Inject,
  type Outcome,
  type Program,
  read,
  type SharedMemory,
  SimulatedKernel,
  Stuck,
  Userfaultfd,
  write,
} from '../../src/sim/index.js';
import { suite } from '../support/harness.js';

const test = suite('sim/shared-memory');

const P = 4096;
const PAGES = 4;

interface Pager {
  kernel: SimulatedKernel;
  object: SharedMemory;
  memory: bigint;
  uffd: Userfaultfd;
  /** The kind of each fault, in order. */
  faults: string[];
  /** The result of each call of `continue`, or the error's name. */
  answers: (number | string)[];
  run(program: Program): void;
}

/** A handler that fills page `n` with n + 1, and lets the program write to it after a write-protect fault. */
function pager(options: { inject?: Inject; features?: 'event-remove'[] } = {}): Pager {
  const kernel = new SimulatedKernel({ seed: 1, ...(options.inject ? { inject: options.inject } : {}) });
  const object = kernel.memfd(PAGES);
  const memory = kernel.mapShared(object);
  const uffd = Userfaultfd.open({ kernel, features: options.features ?? [] });
  uffd.register(memory, object.length, ['missing', 'minor', 'write-protect']);
  const [faults, answers]: [string[], (number | string)[]] = [[], []];
  uffd.start({
    pagefault({ page, kind }) {
      faults.push(kind);
      const index = Number(page - memory) / P;
      if (kind === 'missing') object.write(index * P, new Uint8Array(P).fill(index + 1));
      if (kind === 'write-protect') return void uffd.writeProtect(page, P, false);
      try {
        answers.push(uffd.continue(page, P, { writeProtect: true }));
      } catch (error) {
        answers.push((error as { errno: string }).errno);
        uffd.wake(page, P);
      }
    },
    removed() {},
  });
  const run = (program: Program): void => {
    kernel.thread(program);
    while (kernel.step());
  };
  return { kernel, object, memory, uffd, faults, answers, run };
}

test('a handler fills, evicts and fills again; the bytes that were written survive in the object', () => {
  const { kernel, object, memory, uffd, faults, run } = pager();
  const outcomes: Outcome[] = [];
  run(
    (function* (): Program {
      outcomes.push(yield read(memory));
      outcomes.push(yield write(memory + 8n, 77));
      assert.equal(object.read(8, 1)[0], 77);
      assert.equal(kernel.dontNeed(memory, P), 0);
      assert.equal(object.resident, 1);
      outcomes.push(yield read(memory + 8n));
      object.punchHole(0, P);
      assert.ok(!object.holds(0));
      outcomes.push(yield read(memory + 8n));
      uffd.close();
    })(),
  );
  assert.deepEqual(outcomes, [1, 0, 77, 1]);
  assert.deepEqual(faults, ['missing', 'write-protect', 'minor', 'missing']);
});

test('an alias that is not watched sees the same bytes, and needs no handler', () => {
  const { kernel, object, memory, uffd, faults, run } = pager();
  const alias = kernel.mapShared(object, { firstPage: 1, pages: 1 });
  const outcomes: Outcome[] = [];
  run(
    (function* (): Program {
      outcomes.push(yield write(alias, 9));
      outcomes.push(yield read(memory + BigInt(P)));
      uffd.close();
    })(),
  );
  assert.deepEqual([outcomes, faults], [[0, 9], ['minor']]);
});

test('private mappings show the pages of the object until they write; MADV_DONTNEED shows them again', () => {
  const kernel = new SimulatedKernel({ seed: 1 });
  const object = kernel.memfd(PAGES);
  const [one, other] = [
    kernel.mapShared(object, { private: true }),
    kernel.mapShared(object, { private: true }),
  ];
  object.write(0, new Uint8Array(P).fill(3));
  const outcomes: Outcome[] = [];
  kernel.thread(
    (function* (): Program {
      for (const memory of [one, other]) outcomes.push(yield read(memory));
      outcomes.push(yield write(one, 9));
      object.write(0, new Uint8Array(1).fill(4));
      for (const memory of [one, other]) outcomes.push(yield read(memory));
      outcomes.push(yield advise(one, P, 9), yield advise(one, P, 4));
      outcomes.push(yield read(one));
      outcomes.push(yield write(one + BigInt(P), 7), yield read(other + BigInt(P)));
    })(),
  );
  while (kernel.step());
  assert.deepEqual(outcomes, [3, 3, 0, 9, 4, 'EACCES', 0, 4, 0, 0]);
  assert.deepEqual([object.read(0, 1)[0], object.holds(1)], [4, true]);
});

test('a forked process shares the bytes; MADV_DONTFORK leaves a mapping out', () => {
  const { object, kernel, uffd, run } = pager();
  const shared = kernel.mapShared(object);
  const left = kernel.mapShared(object);
  const outcomes: Outcome[] = [];
  run(
    (function* (): Program {
      yield advise(left, P, 10);
      yield forked({
        *program() {
          outcomes.push(yield write(shared, 5));
          outcomes.push(yield read(left));
          outcomes.push(yield read(left + BigInt(P)));
          uffd.close();
        },
      });
    })(),
  );
  assert.deepEqual(outcomes, [0, 'SIGSEGV', 0]);
  assert.equal(object.peek(0, 1)[0], 5);
});

test('the handler cannot call madvise itself where it would wait for its own message', () => {
  const { kernel, memory, uffd } = pager({ features: ['event-remove'] });
  assert.throws(() => kernel.dontNeed(memory, P), Stuck);
  uffd.close();
});

test('CONTINUE can be refused by injected failures, and the thread gets its page in the end', () => {
  const { memory, uffd, answers, run } = pager({ inject: { enomem: [0, 1] } });
  let outcome: Outcome = '';
  run(
    (function* (): Program {
      outcome = yield read(memory + BigInt(P));
      uffd.close();
    })(),
  );
  assert.equal(outcome, 2);
  assert.equal(answers.at(-1), P);
});

test('a partial CONTINUE maps the first pages only', () => {
  const { object, memory, uffd, run } = pager({ inject: { partial: [0] } });
  object.write(0, new Uint8Array(PAGES * P).fill(6));
  const done = uffd.continue(memory, PAGES * P);
  assert.ok(done > 0 && done <= PAGES * P, `${done}`);
  let outcome: Outcome = '';
  run(
    (function* (): Program {
      outcome = yield read(memory + BigInt((PAGES - 1) * P));
      uffd.close();
    })(),
  );
  assert.equal(outcome, 6);
});

test('a mapping may go beyond the end of its object: SIGBUS there', () => {
  const { kernel, object, uffd, run } = pager();
  const long = kernel.mapShared(object, { pages: PAGES + 1 });
  let outcome: Outcome = 0;
  run(
    (function* (): Program {
      outcome = yield read(long + BigInt(PAGES * P));
      uffd.close();
    })(),
  );
  assert.equal(outcome, 'SIGBUS');
});

test('a range outside of the object, or of parts of pages, is refused', () => {
  const { object, uffd } = pager();
  const refused = { code: 'ERR_OUT_OF_RANGE' };
  assert.throws(() => object.write(PAGES * P - 1, new Uint8Array(2)), refused);
  assert.throws(() => object.read(-1, 1), refused);
  assert.throws(() => object.punchHole(1, P), refused);
  assert.throws(() => object.punchHole(0, 1), refused);
  uffd.close();
});

test('Linux 4.10 watches no shared memory; a kernel without the features has no such modes for it', () => {
  const modes = (version: string): string[] =>
    (['missing', 'minor', 'write-protect'] as const).filter((mode) => {
      const kernel = new SimulatedKernel({ version });
      const object = kernel.memfd(1);
      const uffd = Userfaultfd.open({ kernel });
      try {
        uffd.register(kernel.mapShared(object), P, mode);
        return true;
      } catch {
        return false;
      } finally {
        uffd.close();
      }
    });
  assert.deepEqual(modes('4.10'), []);
  assert.deepEqual(modes('4.14'), ['missing']);
  assert.deepEqual(modes('5.15'), ['missing', 'minor']);
  assert.deepEqual(modes('6.18'), ['missing', 'minor', 'write-protect']);
});

test.run();
