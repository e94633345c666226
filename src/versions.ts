// Old kernels say EINVAL to what they do not know, as they do to what is wrong. Here such a refusal becomes one
// that names the version: the kernel is asked, after it refused, what it offers.

import type { Channel } from './channel.js';
import { Op, Option } from './core.js';
import { UffdError, UnsupportedError } from './errors.js';
import { type Feature, featureNames, type Lack, lacking, type Mode, type Novelty } from './features.js';
import { probe, waysToOpen } from './open.js';

/** The error to throw for a refusal of something that came after the first userfaultfd. */
export function explained(error: UffdError, wanted: readonly Novelty[], channel: Channel): Error {
  if (error.code !== 'EINVAL' || wanted.length === 0) return error;
  const offered = offers(channel);
  if (!offered) return error;
  const lacks = lacking(wanted, offered);
  if (lacks.length === 0) return error;
  const whole = lacks.filter((one) => one.whole);
  if (whole.length > 0) {
    const list = whole.map(({ novelty, since }) => `'${novelty}' (Linux ${since})`);
    return new UnsupportedError(`${error.syscall}: this kernel lacks ${list.join(', ')}`, { cause: error });
  }
  return new UffdError(error.errno, error.syscall, { ...error, reason: inPart(lacks) });
}

/** What of these modes older kernels do not know. */
export function noveltiesOfModes(modes: ReadonlySet<Mode>): Novelty[] {
  return [...modes].filter((mode) => mode !== 'missing');
}

/** What of an operation, or of its options, older kernels do not know. */
export function noveltiesOf(operation: Op, options: number): Novelty[] {
  const protects = (options & Option.writeProtect) !== 0;
  switch (operation) {
    case Op.copy:
      return protects ? ['writeProtect'] : [];
    case Op.continue:
      return protects ? ['continue', 'continue with writeProtect'] : ['continue'];
    case Op.poison:
      return ['poison'];
    case Op.move:
      return ['move'];
    case Op.writeProtect:
      return ['writeProtect'];
    default:
      return [];
  }
}

function inPart(lacks: readonly Lack[]): string {
  const list = lacks.map(({ novelty, feature, since }) => `'${novelty}' needs '${feature}' (Linux ${since})`);
  return (
    `nothing is mapped there, or that kind of memory does not allow it; this kernel allows it for some kinds only: ` +
    `for others ${list.join(', ')}`
  );
}

/** What the kernel offers this user; undefined where that cannot be asked. */
function offers({ core, port }: Channel): ReadonlySet<Feature> | undefined {
  try {
    // Through the same port, so that a recording has it.
    const { features } = probe(core, port, waysToOpen('auto', 'auto'));
    return featureNames(features);
  } catch {
    return undefined;
  }
}
