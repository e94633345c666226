// Raw uffd_msg bytes as objects, for those who look at messages instead of serving them. The core decodes.

import { outOfRange, wrongType } from './arguments.js';
import { type Core, instantiate, MESSAGE_BYTES, MESSAGES_MOST, MODES, Next } from './core.js';
import type { Mode } from './features.js';

/** A message of the kernel. Addresses as it sent them; `end` is exclusive; `length` in bytes, before a growth. */
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
  /** One that this library does not know; `bytes` are all of it. */
  | { event: 'unknown'; code: number; bytes: Uint8Array };

/**
 * Decodes what read(2) gave, in its order. Whole messages only.
 *
 * @throws RangeError where the bytes are no multiple of 32
 */
export function decodeMessages(bytes: Uint8Array): Message[] {
  if (!(bytes instanceof Uint8Array)) throw wrongType('bytes', 'a Uint8Array', bytes);
  return new MessageDecoder().decode(bytes);
}

/** The same for many reads, with one core. */
export class MessageDecoder {
  readonly #core = instantiate();

  /** @throws RangeError as `decodeMessages` does */
  decode(bytes: Uint8Array): Message[] {
    return decodeWith(this.#core, bytes);
  }
}

function decodeWith(core: Core, bytes: Uint8Array): Message[] {
  if (bytes.length % MESSAGE_BYTES !== 0) {
    throw outOfRange('bytes.length', `a multiple of ${MESSAGE_BYTES}, the size of a message`, bytes.length);
  }
  const most = MESSAGES_MOST * MESSAGE_BYTES;
  const messages: Message[] = [];
  for (let at = 0; at < bytes.length; at += most) {
    const part = bytes.subarray(at, at + most);
    core.messageBytes(0, part.length).set(part);
    for (let offset = 0; offset < part.length; offset += MESSAGE_BYTES) {
      messages.push(messageAt(core, offset));
    }
  }
  return messages;
}

function messageAt(core: Core, offset: number): Message {
  switch (core.exports.messageDecode(offset)) {
    case Next.fault:
      return {
        event: 'pagefault',
        address: core.delivered(0),
        access: core.deliveredFault(1) ? 'write' : 'read',
        kind: MODES[core.deliveredFault(0)] as Mode,
        tid: core.deliveredFault(2),
      };
    case Next.removed:
      return { event: 'remove', start: core.delivered(0), end: core.delivered(1) };
    case Next.unmapped:
      return { event: 'unmap', start: core.delivered(0), end: core.delivered(1) };
    case Next.remapped:
      return {
        event: 'remap',
        from: core.delivered(0),
        to: core.delivered(1),
        length: Number(core.delivered(2)),
      };
    case Next.forked:
      return { event: 'fork', fd: Number(core.delivered(0)) };
    default: {
      const bytes = core.messageBytes(offset, MESSAGE_BYTES).slice();
      return { event: 'unknown', code: bytes[0] as number, bytes };
    }
  }
}
