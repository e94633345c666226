// Puts an ear between a `Userfaultfd` and its handler: what is told and answered is noted and checked. The object and
// the handler are the real ones; `start`, `poll` and `close` are the object's own, with a handler that passes on.

import type { UffdError } from '../errors.js';
import { isPromise } from '../failures.js';
import type { FaultHandler, Pagefault } from '../handler.js';
import type { StartOptions } from '../options.js';
import { EVENT } from '../sim/abi.js';
import type { Userfaultfd } from '../userfaultfd.js';
import type { Failure } from './failure.js';
import { pagesOf } from './schedule.js';
import type { Told } from './told.js';

export interface Attendant {
  /** Bytes of a page. */
  readonly pageSize: number;
  fail(failure: Failure): void;
  /** What was said to the userfaultfd that came into being last: a child's, when it is handed over. */
  latest(): Told;
  /** For the schedule; undefined: nobody reads it. */
  note: ((line: string) => void) | undefined;
  /** Asynchronous answers under way. */
  answering: number;
}

/** From now on its handlers are attended. */
export function attend(uffd: Userfaultfd, told: Told, attendant: Attendant, name = 'handler'): Userfaultfd {
  const { start, poll, close } = uffd;
  const passed = new Map<FaultHandler, FaultHandler>();
  const passOn = (handler: FaultHandler): FaultHandler => {
    if (typeof handler?.pagefault !== 'function') return handler;
    told.served = true;
    const known = passed.get(handler) ?? heard(handler, told, attendant, name);
    passed.set(handler, known);
    return known;
  };
  return Object.assign(uffd, {
    start: (handler: FaultHandler, options?: StartOptions) => start.call(uffd, passOn(handler), options),
    poll: (handler, options) => poll.call(uffd, handler && passOn(handler), options),
    close() {
      told.givenUp = true;
      close.call(uffd);
    },
  } satisfies Pick<Userfaultfd, 'start' | 'poll' | 'close'>);
}

const hex = (address: bigint): string => `0x${address.toString(16)}`;

/** The handler that passes on. */
function heard(handler: FaultHandler, told: Told, attendant: Attendant, name: string): FaultHandler {
  const note = (line: string): void => attendant.note?.(`${name}: ${line}`);
  const pages = (start: bigint, end: bigint): string => pagesOf(start, end, attendant.pageSize);
  const passed: FaultHandler = {
    pagefault: (fault, uffd) => answer(handler, fault, uffd, told, attendant, name),
    answered(...counts) {
      const [faults] = counts;
      note(`answered: ${faults} fault${faults === 1 ? '' : 's'} from a source`);
      handler.answered?.(...counts);
    },
    removed(start, end) {
      note(`removed: ${pages(start, end)}`);
      told.change(EVENT.REMOVE, [start, end]);
      handler.removed?.(start, end);
    },
    unmapped(start, end) {
      note(`unmapped: ${pages(start, end)}`);
      told.change(EVENT.UNMAP, [start, end]);
      handler.unmapped?.(start, end);
    },
    remapped(from, to, length) {
      note(`remapped: ${pages(from, from + BigInt(length))}, now at ${hex(to)}`);
      told.change(EVENT.REMAP, [from, to, BigInt(length)]);
      handler.remapped?.(from, to, length);
    },
    forked(child) {
      note('forked');
      told.change(EVENT.FORK, []);
      // Without a handler of its own the library closes the child.
      if (!handler.forked) child.close();
      else handler.forked(attend(child, attendant.latest(), attendant, `${name}'s child`));
    },
    closed(error?: UffdError) {
      note(error ? `closed: ${error.code}` : 'closed');
      told.closed();
      if (error && error.code !== 'ESRCH') {
        attendant.fail({ invariant: 'closed', detail: error.message, cause: error });
      }
      handler.closed?.(error);
    },
  };
  return passed;
}

function answer(
  handler: FaultHandler,
  fault: Pagefault,
  uffd: Userfaultfd,
  told: Told,
  attendant: Attendant,
  name: string,
): ReturnType<FaultHandler['pagefault']> {
  attendant.note?.(`${name}: pagefault: ${fault.kind}, ${fault.access} of ${hex(fault.page)}`);
  const answered = told.offer(fault.page, fault.kind);
  let is: ReturnType<FaultHandler['pagefault']> = false;
  try {
    is = handler.pagefault(fault, uffd);
  } finally {
    answered(is !== false);
  }
  if (is === false) attendant.note?.(`${name}: answers false: not now`);
  return isPromise(is) ? follow(is, attendant) : is;
}

/** A handler that answers later: a promise that rejects breaks an invariant, and the library hears no more of it. */
function follow(promise: PromiseLike<unknown>, attendant: Attendant): Promise<void> {
  attendant.answering++;
  return Promise.resolve(promise).then(
    () => {
      attendant.answering--;
    },
    (error: unknown) => {
      attendant.answering--;
      attendant.fail({ invariant: 'threw', detail: `later: ${String(error)}`, cause: error });
    },
  );
}
