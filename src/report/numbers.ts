// Formats numbers.

/**
 * The first of `length` indices for which a condition holds; `length` if there is none. The condition must also hold
 * for all later indices.
 */
export function firstIndex(length: number, holds: (index: number) => boolean): number {
  let low = 0;
  let high = length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (holds(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** 24,017 */
export function grouped(value: number): string {
  return Math.round(value).toLocaleString('en-US');
}

/** 4 KiB, 1.5 GiB */
export function byteSize(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${short(value)} ${units[unit]}`;
}

const TIMES = [
  [1e6, 's'],
  [1e3, 'ms'],
  [1, 'µs'],
] as const;

/** 12 µs, 1.25 ms, 3.4 s */
export function duration(us: number): string {
  const [size, unit] = unitOf(us);
  return `${short(us / size)} ${unit}`;
}

/** Points of time on an axis, all in the unit of the largest. */
export function timesOf(splits: readonly number[]): string[] {
  const [size, unit] = unitOf(Math.max(...splits.map(Math.abs)));
  const told = (decimals: number): string[] => splits.map((split) => (split / size).toFixed(decimals));
  const decimals = [0, 1, 2, 3, 4, 5].find((few) =>
    told(few).every((text, at) => isNear(text, splits[at], size)),
  );
  return told(decimals ?? 6).map((text) => `${text} ${unit}`);
}

function isNear(text: string, us: number | undefined, size: number): boolean {
  return Math.abs(Number(text) * size - (us ?? 0)) < 1e-4;
}

function unitOf(us: number): readonly [size: number, unit: string] {
  return TIMES.find(([size]) => us >= size) ?? TIMES[2];
}

/** 12,345; 1.2 M */
export function brief(value: number): string {
  if (value < 1e4) return short(value);
  return value < 1e6 ? `${short(value / 1e3)} k` : `${short(value / 1e6)} M`;
}

/** Three digits. */
function short(value: number): string {
  if (value >= 100 || Number.isInteger(value)) return grouped(value);
  return value.toFixed(value >= 10 ? 1 : 2).replace(/\.?0+$/, '');
}

export function hex(page: number, pageSize: number): string {
  return `0x${(BigInt(page) * BigInt(pageSize)).toString(16)}`;
}

export function counted(count: number, noun: string): string {
  return `${grouped(count)} ${noun}${count === 1 ? '' : 's'}`;
}
