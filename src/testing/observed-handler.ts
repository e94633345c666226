// Wraps a handler to record and check every callback. The `Userfaultfd` and the handler are the real ones. Three
// methods of this `Userfaultfd` are replaced: `start` and `poll` pass on a wrapped handler, and `close` is recorded.

import type { UffdError } from '../errors/errors.js';
import { hex } from '../errors/format.js';
import { EVENT } from '../sim/abi.js';
import { isPromise } from '../uffd/handler-errors.js';
import type { StartOptions } from '../uffd/options.js';
import type { FaultHandler, Userfaultfd } from '../uffd/userfaultfd.js';
import type { EventOrder } from './event-order.js';
import type { Failure } from './failure.js';
import { pagesOf } from './schedule.js';

export interface HandlerObserver {
  /** Bytes of a page. */
  readonly pageSize: number;
  fail(failure: Failure): void;
  /** The event order of the newest userfaultfd. When a fork is delivered, that is the child's userfaultfd. */
  latest(): EventOrder;
  /** Adds a line to the schedule; undefined: no schedule is wanted. */
  note: ((line: string) => void) | undefined;
  /** Number of asynchronous answers under way. */
  answering: number;
}

/** Wraps all handlers that a `Userfaultfd` gets from now on. */
export function observeHandler(
  uffd: Userfaultfd,
  order: EventOrder,
  observer: HandlerObserver,
  name = 'handler',
): Userfaultfd {
  const { start, poll, close } = uffd;
  const wrappers = new Map<FaultHandler, FaultHandler>();
  const passOn = (handler: FaultHandler): FaultHandler => {
    if (typeof handler?.pagefault !== 'function') return handler;
    order.served = true;
    const wrapper = wrappers.get(handler) ?? observed(handler, order, observer, name);
    wrappers.set(handler, wrapper);
    return wrapper;
  };
  return Object.assign(uffd, {
    start: (handler: FaultHandler, options?: StartOptions) => start.call(uffd, passOn(handler), options),
    poll: (handler, options) => poll.call(uffd, handler && passOn(handler), options),
    close() {
      order.givenUp = true;
      close.call(uffd);
    },
  } satisfies Pick<Userfaultfd, 'start' | 'poll' | 'close'>);
}

/** The wrapped handler. */
function observed(
  handler: FaultHandler,
  order: EventOrder,
  observer: HandlerObserver,
  name: string,
): FaultHandler {
  const note = (line: string): void => observer.note?.(`${name}: ${line}`);
  const pages = (start: bigint, end: bigint): string => pagesOf(start, end, observer.pageSize);
  return {
    pagefault(fault, uffd) {
      observer.note?.(`${name}: pagefault: ${fault.kind}, ${fault.access} of ${hex(fault.page)}`);
      const answered = order.offer(fault.page, fault.kind);
      let is: ReturnType<FaultHandler['pagefault']> = false;
      try {
        is = handler.pagefault(fault, uffd);
      } finally {
        answered(is !== false);
      }
      if (is === false) observer.note?.(`${name}: defers the fault`);
      return isPromise(is) ? follow(is, observer) : is;
    },
    answered(...counts) {
      const [faults] = counts;
      note(`answered: ${faults} fault${faults === 1 ? '' : 's'} from a source`);
      handler.answered?.(...counts);
    },
    removed(start, end) {
      note(`removed: ${pages(start, end)}`);
      order.change(EVENT.REMOVE, [start, end]);
      handler.removed?.(start, end);
    },
    unmapped(start, end) {
      note(`unmapped: ${pages(start, end)}`);
      order.change(EVENT.UNMAP, [start, end]);
      handler.unmapped?.(start, end);
    },
    remapped(from, to, length) {
      note(`remapped: ${pages(from, from + BigInt(length))}, now at ${hex(to)}`);
      order.change(EVENT.REMAP, [from, to, BigInt(length)]);
      handler.remapped?.(from, to, length);
    },
    forked(child) {
      note('forked');
      order.change(EVENT.FORK, []);
      // Without `forked` the library would close the child. The wrapper always has it, so the wrapper closes the child.
      if (!handler.forked) child.close();
      else handler.forked(observeHandler(child, observer.latest(), observer, `${name}'s child`));
    },
    closed(error?: UffdError) {
      note(error ? `closed: ${error.code}` : 'closed');
      order.closed();
      if (error && error.code !== 'ESRCH') {
        observer.fail({ invariant: 'closed', detail: error.message, cause: error });
      }
      handler.closed?.(error);
    },
  };
}

/** Follows an asynchronous answer: a rejection breaks an invariant, and is not passed on to the library. */
function follow(promise: PromiseLike<unknown>, observer: HandlerObserver): Promise<void> {
  observer.answering++;
  return Promise.resolve(promise).then(
    () => {
      observer.answering--;
    },
    (error: unknown) => {
      observer.answering--;
      observer.fail({ invariant: 'threw', detail: `later: ${String(error)}`, cause: error });
    },
  );
}
