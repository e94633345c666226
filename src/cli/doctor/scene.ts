// What a trial plays on: a userfaultfd opened in the way that is open to this user, scratch memory, and a
// thread that touches it. A trial that goes wrong throws; whatever it leaves asleep is let go by closing its
// userfaultfd.

import { startThread } from '../../embed.js';
import { type FaultHandler, type Feature, type Pagefault, Userfaultfd } from '../../index.js';
import { COMMAND } from '../command-file.js';
import type { AccessFindings } from './findings.js';
import type { Done, Order, Touches } from './touch-worker.js';

/** Ends a trial that cannot be made here, with the reason. */
export class NotTried extends Error {}

/** Ends a trial of something that the kernel has and does not let this user have. */
export class Refused extends Error {}

export type Toucher = {
  [K in keyof Touches]: (...args: Parameters<Touches[K]>) => Promise<ReturnType<Touches[K]>>;
};

export interface Scene {
  readonly userModeOnly: boolean;
  readonly toucher: Toucher;
  open(features?: Feature[]): Userfaultfd;
}

export function createScene(way: NonNullable<AccessFindings['way']>): Scene {
  return {
    userModeOnly: way.userModeOnly,
    toucher: createToucher(),
    open: (features = []) => Userfaultfd.open({ ...way, features }),
  };
}

function createToucher(): Toucher {
  const worker = startThread('toucher', {}, COMMAND);
  const waiting = new Map<number, { resolve(result: unknown): void; reject(error: unknown): void }>();
  let last = 0;
  worker.on('message', ({ id, result, error }: Done) => {
    if (error) waiting.get(id)?.reject(error);
    else waiting.get(id)?.resolve(result);
    waiting.delete(id);
  });
  const order = (touch: keyof Touches, args: unknown[]): Promise<unknown> =>
    new Promise((resolve, reject) => {
      const id = ++last;
      waiting.set(id, { resolve, reject });
      worker.postMessage({ id, touch, args } satisfies Order);
    });
  return new Proxy({} as Toucher, {
    get:
      (_, touch: keyof Touches) =>
      (...args: unknown[]) =>
        order(touch, args),
  });
}

/** Serves a userfaultfd until `act` is through. A callback that throws fails the trial, as does an unexpected fault. */
export async function serve<T>(
  uffd: Userfaultfd,
  told: Partial<FaultHandler>,
  act: () => Promise<T>,
): Promise<T> {
  const unexpected = (fault: Pagefault): void => {
    throw new Error(`a fault of kind '${fault.kind}' came that was not expected`);
  };
  return new Promise<T>((resolve, reject) => {
    const guarded = <A extends unknown[]>(callback: (...args: A) => unknown) => {
      return (...args: A): void => {
        try {
          callback(...args);
        } catch (error) {
          reject(error);
          // Lets the thread go that waits for the answer.
          uffd.close();
        }
      };
    };
    const { pagefault = unexpected, ...others } = told;
    const events = Object.entries(others) as [string, (...args: unknown[]) => unknown][];
    uffd.start({
      pagefault: guarded(pagefault),
      ...Object.fromEntries(events.map(([name, callback]) => [name, guarded(callback)])),
    });
    act().then(resolve, reject);
  }).finally(() => uffd.stop());
}

/** Fails the trial unless two values are the same. */
export function expect(what: string, found: unknown, expected: unknown): void {
  const text = (value: unknown): string => {
    if (Array.isArray(value)) return value.map(text).join(' ') || 'none';
    return typeof value === 'bigint' ? `0x${value.toString(16)}` : String(value);
  };
  if (text(found) !== text(expected)) throw new Error(`${what}: ${text(found)} instead of ${text(expected)}`);
}
