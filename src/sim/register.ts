// The handshake and the registration: API, REGISTER, UNREGISTER and WAKE, as Linux answers them.

import { E, FEATURE, MODE, UFFD_API } from './abi.js';
import { type AddressSpace, type Context, unregister, type Vma } from './memory.js';
import { validRange } from './resolve.js';

/** Bits of the operations that a range allows: if all of it is in small pages, and if a part of it is in huge pages. */
const RANGE_OPERATIONS = 0x13cn;
const HUGE_RANGE_OPERATIONS = 0x10cn;
/** The operation that write-protect mode adds. */
const WRITE_PROTECT_OPERATION = 0x40n;
/** Bits of the features that a kernel needs to watch shared memory, and to report its minor faults. */
const MISSING_SHARED = 1n << 5n;
const MINOR_SHARED = 1n << 10n;
/** Bit of the feature that a kernel needs to write-protect huge pages, and shared memory. */
const WP_HUGE_AND_SHARED = 1n << 12n;
/** The operation that minor mode adds. */
const CONTINUE_OPERATION = 0x80n;
const API_OPERATIONS = 0x8000000000000003n;
/** Bits of operations, each with the bit of the feature that came with it. */
const OPERATION_OF: readonly (readonly [bit: bigint, feature: bigint])[] = [
  [1n << 6n, 1n << 0n],
  [1n << 8n, 1n << 14n],
  [1n << 5n, 1n << 16n],
];

const REFUSED = { features: 0n, operations: 0n };

/** UFFDIO_API. `offered`: the features of this kernel. */
export function handshake(
  context: Context,
  api: bigint,
  features: bigint,
  offered: bigint,
  privileged: boolean,
): { result: number; features: bigint; operations: bigint } {
  if (api !== UFFD_API || features & ~offered || context.initialised) return { result: E.INVAL, ...REFUSED };
  if (features & BigInt(FEATURE.EVENT_FORK) && !privileged) return { result: E.PERM, ...REFUSED };
  const async = features & BigInt(FEATURE.WP_ASYNC) ? BigInt(FEATURE.WP_UNPOPULATED) : 0n;
  context.features = Number(features | async);
  context.initialised = true;
  return { result: 0, features: offered, operations: API_OPERATIONS };
}

/** UFFDIO_REGISTER: the result, and the operations that the range allows. */
export function register(
  context: Context,
  start: number,
  length: number,
  modes: number,
  offered: bigint,
): { result: number; operations: bigint } {
  const { space } = context;
  const refuse = (result: number) => ({ result, operations: 0n });
  const known = MODE.MISSING | (offered & 1n ? MODE.WP : 0) | (offered & (3n << 9n) ? MODE.MINOR : 0);
  if (modes === 0 || modes & ~known || !validRange(space, start, length)) return refuse(E.INVAL);
  if (!space.alive) return refuse(E.NOMEM);
  const vmas = space.within(start, start + length);
  if (vmas.length === 0) return refuse(E.INVAL);
  const huge = vmas.filter(({ pageSize }) => pageSize > space.pageSize);
  // As on Linux, no edge of the range may lie inside a huge page. An edge outside of the huge pages' mappings is not
  // checked.
  if (huge.some((vma) => [start, start + length].some((edge) => splits(vma, edge)))) return refuse(E.INVAL);
  for (const vma of vmas) {
    if (!supports(space, vma, modes, offered)) return refuse(E.INVAL);
    if (vma.context && vma.context !== context) return refuse(E.BUSY);
  }
  for (const vma of vmas) {
    if (vma.context === context && (vma.modes & modes) === modes) continue;
    const from = Math.max(start, vma.start);
    const to = Math.min(start + length, vma.end);
    space.change(from, to, (part) => {
      part.context = context;
      part.modes = modes;
    });
  }
  let operations =
    (huge.length > 0 ? HUGE_RANGE_OPERATIONS : RANGE_OPERATIONS) |
    (modes & MODE.WP ? WRITE_PROTECT_OPERATION : 0n) |
    (modes & MODE.MINOR ? CONTINUE_OPERATION : 0n);
  for (const [bit, feature] of OPERATION_OF) if (!(offered & feature)) operations &= ~bit;
  return { result: 0, operations };
}

/** Whether the kernel can watch a mapping in these modes. */
function supports(space: AddressSpace, vma: Vma, modes: number, offered: bigint): boolean {
  if (modes & MODE.WP && (vma.object || vma.pageSize > space.pageSize) && !(offered & WP_HUGE_AND_SHARED))
    return false;
  // Private anonymous memory has no minor faults.
  if (!vma.object) return !(modes & MODE.MINOR);
  return (offered & MISSING_SHARED) !== 0n && (!(modes & MODE.MINOR) || (offered & MINOR_SHARED) !== 0n);
}

/** Whether a border would split a huge page of a mapping. */
function splits({ start, end, pageSize }: Vma, edge: number): boolean {
  return edge > start && edge < end && edge % pageSize !== 0;
}

/** UFFDIO_UNREGISTER. Wakes the waiters of those mappings that have missing mode. */
export function withdraw(context: Context, start: number, length: number): number {
  const { space } = context;
  if (!validRange(space, start, length)) return E.INVAL;
  if (!space.alive) return E.NOMEM;
  const vmas = space.within(start, start + length);
  if (vmas.length === 0 || vmas.some((vma) => vma.context && vma.context !== context)) return E.INVAL;
  for (const vma of vmas.filter((one) => one.context)) {
    const from = Math.max(start, vma.start);
    const to = Math.min(start + length, vma.end);
    if (vma.modes & MODE.MISSING) context.wake(from, to);
    unregister(space, from, to);
  }
  return 0;
}

/** UFFDIO_WAKE. */
export function wake(context: Context, start: number, length: number): number {
  if (!validRange(context.space, start, length)) return E.INVAL;
  context.wake(start, start + length);
  return 0;
}
