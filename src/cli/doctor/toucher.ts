// The thread that touches scratch pages for the trials, and how a trial calls it. The thread may sleep in a page
// fault, or until an event is read, for as long as the trial does not answer.

import { once } from 'node:events';
import { readlinkSync, writeSync } from 'node:fs';
import { MessageChannel, type MessagePort, parentPort } from 'node:worker_threads';
import { startThread } from '../../embed.js';
import { Mapping, type SharedMapping } from '../../index.js';
import { COMMAND } from '../command-file.js';

let own: Mapping | undefined;

const touches = {
  /** The kernel's id of this thread: the end of "<pid>/task/<tid>". */
  tid: () => Number(readlinkSync('/proc/thread-self').split('/').at(-1)),
  read: (memory: SharedMapping, offset = 0) => Mapping.attach(memory).slice(offset, offset + 1)[0] as number,
  write(memory: SharedMapping, value: number): void {
    Mapping.attach(memory).slice(0, 1)[0] = value;
  },
  /** Lets a system call read the memory. Returns how many bytes the call got, or the error's code. */
  send(memory: SharedMapping): number | string {
    using sink = Mapping.memfd(memory.length);
    try {
      return writeSync(sink.fd, Mapping.attach(memory).slice(0, memory.length));
    } catch (error) {
      return (error as NodeJS.ErrnoException).code ?? String(error);
    }
  },
  /** Makes memory of this thread, filled with a byte. The functions below change that memory. */
  make(length: number, fill: number): SharedMapping {
    own = Mapping.anonymous(length);
    own.bytes.fill(fill);
    return own.share();
  },
  discard: () => own?.discard(),
  /** Moves the memory. Returns the mapping at its new address. */
  relocate(): SharedMapping {
    const moved = (own as Mapping).relocate();
    own?.close();
    own = moved;
    return moved.share();
  },
  unmap: () => own?.close(),
};
type Touches = typeof touches;

export type Toucher = {
  [K in keyof Touches]: (...args: Parameters<Touches[K]>) => Promise<ReturnType<Touches[K]>>;
};

interface Call {
  touch: keyof Touches;
  args: unknown[];
  port: MessagePort;
}

export function createToucher(): Toucher {
  const worker = startThread('toucher', {}, COMMAND);
  const call = async (touch: keyof Touches, args: unknown[]): Promise<unknown> => {
    const { port1, port2 } = new MessageChannel();
    worker.postMessage({ touch, args, port: port2 } satisfies Call, [port2]);
    const [{ result, error }] = await once(port1, 'message');
    port1.close();
    if (error) throw error;
    return result;
  };
  const entries = (Object.keys(touches) as (keyof Touches)[]).map((touch) => [
    touch,
    (...args: unknown[]) => call(touch, args),
  ]);
  return Object.fromEntries(entries);
}

/** The main function of the thread. */
export function runToucher(): void {
  parentPort?.on('message', ({ touch, args, port }: Call) => {
    try {
      port.postMessage({ result: (touches[touch] as (...args: unknown[]) => unknown)(...args) });
    } catch (error) {
      port.postMessage({ error });
    }
  });
}
