// `uffd doctor`: its options, its help, and its exit code.

import type { Command } from 'commander';
import { interruptible } from '../signals.js';
import { outputStyleOf } from '../text.js';
import { examine } from './examine.js';
import { renderReport } from './report.js';
import { diagnoseSimulated } from './simulated.js';
import { diagnose, type Verdict } from './verdict.js';

const EXIT: Record<Verdict, number> = { usable: 0, 'usable with limits': 1, 'not usable': 2 };

const HELP = `
What it does:
  It tries every way to open a userfaultfd, then every feature and operation
  that the kernel offers, on scratch pages. Both run in processes of their own,
  so a filter that kills them is reported. It changes nothing on the system. If
  something does not work, it says why, and what would help, as commands to
  paste.
  It also says whether uffd check-handler --simulated works, which needs no
  userfaultfd. The verdict and the exit code are about userfaultfd alone.

Outcomes of a trial:
  ok         a real fault was answered, or did what the feature promises
  FAILED     the kernel offers it, but it did something else
  refused    the kernel has it, but refuses it to this user
  no         the kernel does not have it
  not tried  what it needs is missing (for example huge pages)

Fields of the JSON object, with the fields of each below it (null: not there):
  verdict
  problems    code what why remedies (what commands)
  system      platform arch kernel pageSize node nodePath nodeSupported koffi
              container hugePages (bytes total free) transparentHugePages
  access      user (uid group sysPtrace userNamespace unprivileged seccomp)
              device (owner group mode open) doors (via userModeOnly result)
              way (via userModeOnly) obstacle systemCalls (outcome detail)
  features    name since outcome detail
  operations  name since outcome detail
  simulated   verdict problems calls memory ptraceScope killable syncWakeUp
              fixedAddresses

Exit codes:
  0    usable
  1    usable with limits; they are listed first
  2    not usable, or an option is wrong
  130  interrupted (Ctrl-C)
  143  terminated (SIGTERM)

Examples:
  uffd doctor                 what works here, and what would help
  uffd doctor --json          the same as JSON
  uffd doctor && node app.js  run only if everything works
`;

export function addDoctor(program: Command): void {
  program
    .command('doctor')
    .summary('say whether userfaultfd works here, and if not, why and what would help')
    .description('Says whether userfaultfd works here, and if not, why and what would help.')
    .option('--json', 'print one JSON object instead of text')
    .addHelpText('after', HELP)
    .action(({ json = false }: { json?: boolean }) => doctor(json));
}

async function doctor(json: boolean): Promise<void> {
  const findings = await interruptible(examine);
  const judgement = diagnose(findings);
  const simulation = diagnoseSimulated(findings);
  const text = json
    ? JSON.stringify({ ...judgement, ...findings, simulated: { ...simulation, ...findings.simulated } })
    : renderReport(findings, judgement, simulation, outputStyleOf(process.stdout));
  process.stdout.write(`${text}\n`);
  process.exitCode = EXIT[judgement.verdict];
}
