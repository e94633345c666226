// The thread that touches scratch pages, told what to do by scene.ts. It may sleep in a page fault, or in
// the wait for an event's reader, for as long as nobody answers.

import { readlinkSync, writeSync } from 'node:fs';
import { parentPort } from 'node:worker_threads';
import { Mapping, type SharedMapping } from '../../index.js';

/** What the thread can be told to do; offsets in bytes. */
export interface Touches {
  /** Its kernel thread id. */
  tid(): number;
  /** The byte at an offset. */
  read(memory: SharedMapping, offset: number): number;
  write(memory: SharedMapping, offset: number, value: number): void;
  /** Lets a system call read the first bytes of the memory: how many it wrote elsewhere, or the error's code. */
  send(memory: SharedMapping, length: number): number | string;
  /** Makes memory of its own, filled with a byte. The actions below are about that. */
  make(length: number, fill: number): SharedMapping;
  discard(): void;
  /** Moves it; where it is then. */
  relocate(): SharedMapping;
  /** Unmaps it. */
  unmap(): void;
}

let own: Mapping | undefined;

const touches: Touches = {
  // "<pid>/task/<tid>"
  tid: () => Number(readlinkSync('/proc/thread-self').split('/').at(-1)),
  read: (memory, offset) => Mapping.attach(memory).slice(offset, offset + 1)[0] as number,
  write(memory, offset, value) {
    Mapping.attach(memory).slice(offset, offset + 1)[0] = value;
  },
  send(memory, length) {
    using sink = Mapping.memfd(length);
    try {
      return writeSync(sink.fd, Mapping.attach(memory).slice(0, length));
    } catch (error) {
      return (error as NodeJS.ErrnoException).code ?? String(error);
    }
  },
  make(length, fill) {
    own = Mapping.anonymous(length);
    own.bytes.fill(fill);
    return own.share();
  },
  discard: () => own?.discard(),
  relocate() {
    const moved = (own as Mapping).relocate();
    own?.close();
    own = moved;
    return moved.share();
  },
  unmap: () => own?.close(),
};

export interface Order {
  id: number;
  touch: keyof Touches;
  args: unknown[];
}

export interface Done {
  id: number;
  result?: unknown;
  error?: Error;
}

/** Runs in a thread of its own. */
export function touchAsTold(): void {
  parentPort?.on('message', ({ id, touch, args }: Order) => {
    let done: Done;
    try {
      done = { id, result: (touches[touch] as (...args: unknown[]) => unknown)(...args) };
    } catch (error) {
      done = { id, error: error as Error };
    }
    parentPort?.postMessage(done);
  });
}
