// Node's globals as the portable tests use them.

/** The part of Node's Buffer that tests use. */
export class Buffer extends Uint8Array {
  static override from(data: string | ArrayLike<unknown> | Iterable<unknown>): Buffer {
    const bytes = typeof data === 'string' ? new TextEncoder().encode(data) : Array.from<unknown>(data as []);
    const buffer = new Buffer(bytes.length);
    buffer.set(bytes as number[]);
    return buffer;
  }

  static concat(parts: readonly Uint8Array[]): Buffer {
    const all = new Buffer(parts.reduce((sum, { length }) => sum + length, 0));
    let at = 0;
    for (const part of parts) {
      all.set(part, at);
      at += part.length;
    }
    return all;
  }

  static compare(one: Uint8Array, other: Uint8Array): number {
    for (let at = 0; at < Math.min(one.length, other.length); at++) {
      const difference = (one[at] as number) - (other[at] as number);
      if (difference !== 0) return difference;
    }
    return one.length - other.length;
  }

  equals(other: Uint8Array): boolean {
    return Buffer.compare(this, other) === 0;
  }

  override toString(encoding?: 'latin1' | 'hex' | 'base64'): string {
    if (encoding === undefined) return new TextDecoder().decode(this);
    if (encoding === 'hex') return [...this].map((byte) => byte.toString(16).padStart(2, '0')).join('');
    const latin1 = [...this].map((byte) => String.fromCharCode(byte)).join('');
    return encoding === 'latin1' ? latin1 : btoa(latin1);
  }
}

export const process = { env: { UFFD_CORE: 'release' }, argv: [], execArgv: [] };

export const setImmediate = (due: () => void): void => void setTimeout(due, 0);
