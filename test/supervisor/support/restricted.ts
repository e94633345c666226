// A program for a test: it forbids itself what Docker's default seccomp profile forbids, and then tests a handler in the
// simulated kernel. It prints the report as JSON. Its argument, in JSON: the command, the options, and whether to test
// with `checkHandler` of the built package.

import type { CheckReport } from '../../../src/conformance/result.js';
import { type CheckSimulatedOptions, checkSimulated } from '../../../src/supervisor/check-simulated.js';
import { DOCKER, forbidCalls } from '../../support/forbidden-calls.js';

/** What this program gets. */
export interface RestrictedOrder {
  readonly command: readonly string[];
  readonly options: CheckSimulatedOptions;
  readonly built: boolean;
}

async function checkBuilt({ command, options }: RestrictedOrder): Promise<CheckReport> {
  // The package's name resolves to its files in dist, which this build does not compile.
  const { checkHandler } = (await import(
    import.meta.resolve('userfaultfd/testing')
  )) as typeof import('../../../src/testing/index.js');
  return checkHandler({ command, simulated: true, ...options });
}

const order = JSON.parse(process.argv[2] ?? '') as RestrictedOrder;
forbidCalls(DOCKER);
const report = order.built ? await checkBuilt(order) : await checkSimulated(order.command, order.options);
process.stdout.write(JSON.stringify({ uid: process.getuid?.(), report }));
