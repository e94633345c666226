// Decodes raw uffd_msg bytes into objects, for programs that inspect messages instead of serving them.

import { Message as Kind, MESSAGES, SIZEOF_UFFD_MSG } from '../bindings/core.js';
import { outOfRange, wrongType } from '../errors/arguments.js';
import { MODES, type Mode } from '../kernel/features.js';
import { type Core, instantiate } from './core.js';

/**
 * A message of the kernel, with raw addresses. `end` is exclusive. `length` is in bytes; for 'remap' it is the length
 * before any growth.
 */
export type Message =
  | {
      event: 'pagefault';
      address: bigint;
      access: 'read' | 'write';
      kind: Mode;
      /** 0: the feature 'thread-id' is off. */
      tid: number;
    }
  | { event: 'remove' | 'unmap'; start: bigint; end: bigint }
  | { event: 'remap'; from: bigint; to: bigint; length: number }
  | { event: 'fork'; fd: number }
  /** An event that this library does not know; `bytes` is the whole message. */
  | { event: 'unknown'; code: number; bytes: Uint8Array };

/**
 * Decodes the bytes that read(2) returned, in order. Whole messages only.
 *
 * @throws RangeError if the length is not a multiple of 32
 */
export function decodeMessages(bytes: Uint8Array): Message[] {
  if (!(bytes instanceof Uint8Array)) throw wrongType('bytes', 'a Uint8Array', bytes);
  return new MessageDecoder().decode(bytes);
}

/** Decodes the messages of many reads, and keeps its WebAssembly instance between them. */
export class MessageDecoder {
  readonly #core = instantiate();

  /** @throws RangeError as `decodeMessages` does */
  decode(bytes: Uint8Array): Message[] {
    if (bytes.length % SIZEOF_UFFD_MSG !== 0) {
      throw outOfRange(
        'bytes.length',
        `a multiple of ${SIZEOF_UFFD_MSG}, the size of a message`,
        bytes.length,
      );
    }
    const most = MESSAGES * SIZEOF_UFFD_MSG;
    const messages: Message[] = [];
    for (let at = 0; at < bytes.length; at += most) {
      const part = bytes.subarray(at, at + most);
      this.#core.messageBytes(0, part.length).set(part);
      for (let offset = 0; offset < part.length; offset += SIZEOF_UFFD_MSG) {
        messages.push(messageAt(this.#core, offset));
      }
    }
    return messages;
  }
}

function messageAt(core: Core, offset: number): Message {
  switch (core.exports.messageDecode(offset)) {
    case Kind.FAULT:
      return {
        event: 'pagefault',
        address: core.third,
        access: core.write ? 'write' : 'read',
        kind: MODES[core.kind] as Mode,
        tid: core.tid,
      };
    case Kind.REMOVED:
      return { event: 'remove', start: core.start, end: core.end };
    case Kind.UNMAPPED:
      return { event: 'unmap', start: core.start, end: core.end };
    case Kind.REMAPPED:
      return {
        event: 'remap',
        from: core.start,
        to: core.end,
        length: Number(core.third),
      };
    case Kind.FORKED:
      return { event: 'fork', fd: Number(core.start) };
    default: {
      const bytes = core.messageBytes(offset, SIZEOF_UFFD_MSG).slice();
      return { event: 'unknown', code: bytes[0] as number, bytes };
    }
  }
}
