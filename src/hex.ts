// Addresses as they are told.

/** An address as people read it. */
export function hex(address: bigint): string {
  return `0x${address.toString(16)}`;
}
