// Old kernels return EINVAL both for operations that they do not have and for wrong arguments. After a refusal, this
// file asks the kernel which features it offers, and makes an error that names the version that is needed.

import { Operation as Op, Option } from '../bindings/core.js';
import { UffdError, UnsupportedError } from '../errors/errors.js';
import { openMethods, probe } from '../uffd/open.js';
import type { Session } from '../uffd/session.js';
import {
  type Feature,
  featureNames,
  type MissingRequirement,
  type Mode,
  missingRequirements,
  type Requirement,
} from './features.js';

/** The error to throw if the kernel refused a call. `required`: what the call needs that old kernels lack. */
export function explained(error: UffdError, required: readonly Requirement[], session: Session): Error {
  if (error.code !== 'EINVAL' || required.length === 0) return error;
  const offered = offers(session);
  if (!offered) return error;
  const missing = missingRequirements(required, offered);
  if (missing.length === 0) return error;
  const whole = missing.filter((one) => one.whole);
  if (whole.length > 0) {
    const list = whole.map(({ requirement, since }) => `'${requirement}' (Linux ${since})`);
    return new UnsupportedError(`${error.syscall}: this kernel lacks ${list.join(', ')}`, { cause: error });
  }
  return new UffdError(error.errno, error.syscall, { ...error, reason: inPart(missing) });
}

/** Which of these modes older kernels do not have. */
export function requirementsOfModes(modes: ReadonlySet<Mode>): Requirement[] {
  return [...modes].filter((mode) => mode !== 'missing');
}

/** What an operation with these options needs that older kernels lack. */
export function requirementsOf(operation: Op, options: number): Requirement[] {
  const protects = (options & Option.WRITE_PROTECT) !== 0;
  switch (operation) {
    case Op.COPY:
      return protects ? ['writeProtect'] : [];
    case Op.CONTINUE:
      return protects ? ['continue', 'continue with writeProtect'] : ['continue'];
    case Op.POISON:
      return ['poison'];
    case Op.MOVE:
      return ['move'];
    case Op.WRITEPROTECT:
      return ['writeProtect'];
    default:
      return [];
  }
}

function inPart(missing: readonly MissingRequirement[]): string {
  const list = missing.map(
    ({ requirement, feature, since }) => `'${requirement}' needs '${feature}' (Linux ${since})`,
  );
  return (
    `nothing is mapped there, or that kind of memory does not allow it; this kernel allows it for some kinds only: ` +
    `for others ${list.join(', ')}`
  );
}

/** The features that the kernel offers this user; undefined if they cannot be determined. */
function offers({ core, port }: Session): ReadonlySet<Feature> | undefined {
  try {
    // Use the same port, so that a recording includes these calls.
    const { features } = probe(core, port, openMethods('auto', 'auto'));
    return featureNames(features);
  } catch {
    return undefined;
  }
}
