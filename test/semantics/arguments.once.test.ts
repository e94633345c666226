// Arguments that no operation accepts (docs/kernel.md: the order of evaluation): the kernel returns EINVAL and leaves
// the output field unchanged.

import { strict as assert } from 'node:assert';
import { Feature, MISSING, PATTERN, type Request, WP } from './calls.js';
import { issue, words } from './requests.js';
import { checks, P, type SettingOptions, setting, source, WORD_TOP } from './support.js';

const check = checks('semantics/arguments');

const FEATURES = Feature.flagWp | Feature.poison | Feature.move;
const KNOWN: SettingOptions = { mode: MISSING | WP, features: FEATURES };
const NEEDS = { features: FEATURES } as const;

/** The lowest mode bit that an operation does not know, if it is not 4. */
const UNKNOWN_MODE: Readonly<Partial<Record<Request, bigint>>> = { zeropage: 2n, poison: 2n };

/** Arguments with one wrong value each, for a page at `base`. */
const WRONG = {
  empty: (request, base, from) => words(request, base, 0n, from),
  'unaligned-length': (request, base, from) => words(request, base, BigInt(P / 2), from),
  'unaligned-start': (request, base, from) => words(request, base + 1n, BigInt(P), from),
  beyond: (request, _base, from) => words(request, WORD_TOP / 2n, BigInt(P), from),
  wraps: (request, base, from) => words(request, base, WORD_TOP - BigInt(P), from),
  mode: (request, base, from) => words(request, base, BigInt(P), from, UNKNOWN_MODE[request] ?? 4n),
  'wp-dontwake': (request, base, from) => words(request, base, BigInt(P), from, 3n),
  'source-unaligned': (request, base, from) => words(request, base, BigInt(P), from + 1n),
  'source-beyond': (request, base) => words(request, base, BigInt(P), WORD_TOP / 2n),
  'source-wraps': (request, base) => words(request, base, BigInt(2 * P), WORD_TOP - BigInt(P)),
} satisfies Record<string, (request: Request, base: bigint, from: bigint) => bigint[]>;

const ARGUMENTS: readonly (readonly [id: string, request: Request, wrong: keyof typeof WRONG])[] = [
  ['register.einval.empty', 'register', 'empty'],
  ['register.einval.unaligned-length', 'register', 'unaligned-length'],
  ['register.einval.unaligned-start', 'register', 'unaligned-start'],
  ['register.einval.beyond', 'register', 'beyond'],
  ['register.einval.wraps', 'register', 'wraps'],
  ['unregister.einval.empty', 'unregister', 'empty'],
  ['unregister.einval.unaligned-length', 'unregister', 'unaligned-length'],
  ['unregister.einval.unaligned-start', 'unregister', 'unaligned-start'],
  ['unregister.einval.beyond', 'unregister', 'beyond'],
  ['unregister.einval.wraps', 'unregister', 'wraps'],
  ['wake.einval.empty', 'wake', 'empty'],
  ['wake.einval.unaligned-length', 'wake', 'unaligned-length'],
  ['wake.einval.unaligned-start', 'wake', 'unaligned-start'],
  ['wake.einval.beyond', 'wake', 'beyond'],
  ['wake.einval.wraps', 'wake', 'wraps'],
  ['copy.einval.empty', 'copy', 'empty'],
  ['copy.einval.unaligned-length', 'copy', 'unaligned-length'],
  ['copy.einval.unaligned-start', 'copy', 'unaligned-start'],
  ['copy.einval.beyond', 'copy', 'beyond'],
  ['copy.einval.wraps', 'copy', 'wraps'],
  ['copy.einval.mode', 'copy', 'mode'],
  ['copy.einval.source-wraps', 'copy', 'source-wraps'],
  ['zeropage.einval.empty', 'zeropage', 'empty'],
  ['zeropage.einval.unaligned-length', 'zeropage', 'unaligned-length'],
  ['zeropage.einval.unaligned-start', 'zeropage', 'unaligned-start'],
  ['zeropage.einval.beyond', 'zeropage', 'beyond'],
  ['zeropage.einval.wraps', 'zeropage', 'wraps'],
  ['zeropage.einval.mode', 'zeropage', 'mode'],
  ['continue.einval.empty', 'continue', 'empty'],
  ['continue.einval.unaligned-length', 'continue', 'unaligned-length'],
  ['continue.einval.unaligned-start', 'continue', 'unaligned-start'],
  ['continue.einval.beyond', 'continue', 'beyond'],
  ['continue.einval.wraps', 'continue', 'wraps'],
  ['continue.einval.mode', 'continue', 'mode'],
  ['poison.einval.empty', 'poison', 'empty'],
  ['poison.einval.unaligned-length', 'poison', 'unaligned-length'],
  ['poison.einval.unaligned-start', 'poison', 'unaligned-start'],
  ['poison.einval.beyond', 'poison', 'beyond'],
  ['poison.einval.wraps', 'poison', 'wraps'],
  ['poison.einval.mode', 'poison', 'mode'],
  ['move.einval.empty', 'move', 'empty'],
  ['move.einval.unaligned-length', 'move', 'unaligned-length'],
  ['move.einval.unaligned-start', 'move', 'unaligned-start'],
  ['move.einval.beyond', 'move', 'beyond'],
  ['move.einval.wraps', 'move', 'wraps'],
  ['move.einval.mode', 'move', 'mode'],
  ['move.einval.source-unaligned', 'move', 'source-unaligned'],
  ['move.einval.source-beyond', 'move', 'source-beyond'],
  ['move.einval.source-wraps', 'move', 'source-wraps'],
  ['writeprotect.einval.empty', 'writeprotect', 'empty'],
  ['writeprotect.einval.unaligned-length', 'writeprotect', 'unaligned-length'],
  ['writeprotect.einval.unaligned-start', 'writeprotect', 'unaligned-start'],
  ['writeprotect.einval.beyond', 'writeprotect', 'beyond'],
  ['writeprotect.einval.wraps', 'writeprotect', 'wraps'],
  ['writeprotect.einval.mode', 'writeprotect', 'mode'],
  ['writeprotect.einval.wp-dontwake', 'writeprotect', 'wp-dontwake'],
];

for (const [id, request, wrong] of ARGUMENTS) {
  check(
    id,
    `${request}, ${wrong}: EINVAL, the output untouched`,
    (world) => {
      const { uffd, base } = setting(world, KNOWN);
      const given = WRONG[wrong](request, base, source(world, 2));
      assert.deepEqual(issue(uffd, request, given), ['EINVAL', PATTERN]);
    },
    NEEDS,
  );
}

check('copy.ok.source-unaligned', 'the source of COPY may be unaligned', (world) => {
  const { uffd, base, thread } = setting(world);
  assert.deepEqual(uffd.copy(base, source(world, 2) + BigInt(P - 1), P), ['ok', P]);
  assert.equal(thread.read(base + 1n), 0x62);
});

check.run();
