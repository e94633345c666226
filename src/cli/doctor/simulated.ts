// Whether `uffd check-handler --simulated` works here, and if not or not fully, why, and what helps. It needs no
// userfaultfd, so the verdict and the exit code do not depend on it. A pure function of the findings.

import { atLeast, type Findings } from './findings.js';
import { type Remedy, remedy } from './remedies.js';
import type { Problem } from './verdict.js';

export type SimulatedVerdict = 'works' | 'works with limits' | 'does not work' | 'not tried';

export interface SimulatedDiagnosis {
  verdict: SimulatedVerdict;
  problems: Problem[];
}

/** The versions that bring what it uses. */
const CALLS_SINCE = '5.0';
const KILLABLE_SINCE = '5.19';
const SYNC_WAKE_UP_SINCE = '6.6';
/** Values of kernel.yama.ptrace_scope: a process may read the memory of its descendants; of none, until a reboot. */
const DESCENDANTS = 1;
const NONE = 3;

export function diagnoseSimulated(findings: Findings): SimulatedDiagnosis {
  const { simulated, access } = findings;
  // The verdict about userfaultfd says why nothing could be tried.
  if (access.obstacle !== null) return { verdict: 'not tried', problems: [] };
  const fatal = simulated.calls === 'ok' ? memoryProblem(findings) : callsProblem(findings);
  if (fatal) return { verdict: 'does not work', problems: [fatal] };
  const problems = [signalsProblem(findings), speedProblem(findings)].filter(
    (problem) => problem !== undefined,
  );
  return { verdict: problems.length > 0 ? 'works with limits' : 'works', problems };
}

function callsProblem(findings: Findings): Problem {
  const { system, simulated } = findings;
  return {
    code: 'simulated-calls',
    what: "a handler's system calls cannot be trapped",
    ...causeOf(simulated.calls, system.kernel, findings),
  };
}

function causeOf(answer: string, kernel: string, findings: Findings): Pick<Problem, 'why' | 'remedies'> {
  if (['EINVAL', 'ENOSYS', 'EPERM'].includes(answer) && !atLeast(kernel, CALLS_SINCE))
    return {
      why: `this is Linux ${kernel}, and ${CALLS_SINCE} is needed (seccomp notifications)`,
      remedies: [remedy(`Linux ${CALLS_SINCE} or newer; ${SYNC_WAKE_UP_SINCE} for full speed`)],
    };
  if (answer === 'EBUSY')
    return {
      why: 'another program already answers system calls of this process (EBUSY): a sandbox or a container runtime',
      remedies: [remedy('start it outside of that program')],
    };
  if (answer === 'EPERM' || answer === 'ENOSYS')
    return {
      why: `seccomp answers ${answer}: a filter forbids further filters, or the kernel was built without them`,
      remedies: profileRemedies(findings, 'seccomp'),
    };
  return { why: `it was tried: ${answer}`, remedies: [] };
}

function memoryProblem(findings: Findings): Problem | undefined {
  const { simulated } = findings;
  if (simulated.memory === 'ok') return undefined;
  const scope = simulated.ptraceScope;
  const strict = scope !== null && scope > DESCENDANTS;
  const setting = `kernel.yama.ptrace_scope is ${scope}`;
  return {
    code: 'simulated-memory',
    what: "the memory of a handler's process cannot be read",
    why: strict
      ? `${setting}, and must be at most ${DESCENDANTS}`
      : `process_vm_readv fails: ${simulated.memory}`,
    remedies: strict ? scopeRemedies(scope) : profileRemedies(findings, 'process_vm_readv'),
  };
}

function scopeRemedies(scope: number): Remedy[] {
  if (scope >= NONE)
    return [remedy('set it to 1 in /etc/sysctl.d and boot again: the kernel does not lower it from 3')];
  return [
    remedy(
      'allow a process to read the memory of those that it starts (as root of the machine, until the next boot)',
      `sysctl -w kernel.yama.ptrace_scope=${DESCENDANTS}`,
    ),
  ];
}

function profileRemedies({ system }: Findings, call: string): Remedy[] {
  if (system.container === null)
    return [
      remedy(
        'find what sets the filter: a unit of systemd (SystemCallFilter=) or a sandbox; for a unit, add',
        `SystemCallFilter=${call}`,
      ),
    ];
  return [
    remedy(
      `run the container with Docker's default profile, which allows ${call}, or with another one that does`,
      'docker run --security-opt seccomp=profile.json',
    ),
  ];
}

function signalsProblem({ system, simulated }: Findings): Problem | undefined {
  if (simulated.killable !== false) return undefined;
  return {
    code: 'simulated-signals',
    what: 'a signal may make the answer to a system call vanish: handlers in Go may fail without a fault of theirs',
    why: `this is Linux ${system.kernel}; ${KILLABLE_SINCE} has waits that only fatal signals interrupt`,
    remedies: [remedy(`Linux ${KILLABLE_SINCE}; for a handler in Go`, 'export GODEBUG=asyncpreemptoff=1')],
  };
}

function speedProblem({ system, simulated }: Findings): Problem | undefined {
  if (simulated.syncWakeUp !== false) return undefined;
  return {
    code: 'simulated-speed',
    what: 'each trapped call takes some six times as long as it could',
    why: `this is Linux ${system.kernel}; ${SYNC_WAKE_UP_SINCE} switches to the handler at once`,
    remedies: [remedy(`Linux ${SYNC_WAKE_UP_SINCE} or newer`)],
  };
}
