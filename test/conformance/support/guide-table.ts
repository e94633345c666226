// The table "What each suite finds" of the guide, which the tests of both suites compare with what they find.

import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

/** A row: the scenarios on the real kernel, and what the simulated check does. */
interface Row {
  readonly real: string;
  readonly simulated: string;
}

/** The rows by fault: its number in C, its name in Rust. */
export function guideTable(): ReadonlyMap<string, Row> {
  const guide = fileURLToPath(new URL('../../../../docs/guides/test-your-handler.md', import.meta.url));
  const rows = readFileSync(guide, 'utf8').matchAll(
    /^\| (?:Rust, `)?(\w+)`?: [^|]+ \| ([^|]+) \| ([^|]+) \|$/gm,
  );
  return new Map([...rows].map(([, fault = '', real = '', simulated = '']) => [fault, { real, simulated }]));
}
