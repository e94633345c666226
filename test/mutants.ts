// `npm run mutants`: breaks the core on purpose, one rule at a time, and demands that a test notices. Each
// mutant is built in a folder of its own; the pure tests of the core run on it until the first fails.

import { spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

interface Mutant {
  /** The rule that it breaks. */
  breaks: string;
  file: string;
  /** Occurs once in the file. */
  from: string;
  to: string;
  /** The tests that are to notice. */
  test: string;
}

const MUTANTS: Mutant[] = [
  {
    breaks: 'what was removed never comes from a source',
    file: 'answers.ts',
    from: 'fault.kind != KIND_MISSING || pageState(page) != PAGE_MISSING',
    to: 'fault.kind != KIND_MISSING',
    test: 'core/sources',
  },
  {
    breaks: 'a source ends with the registration of its memory',
    file: 'inbox.ts',
    from: '  sourcesForget(start, end);\n',
    to: '',
    test: 'core/sources',
  },
  {
    breaks: 'EEXIST wakes the page',
    file: 'transfer.ts',
    from: 'options & OPTION_DONTWAKE ? passOver() : wake(pageSizeAt(cursor), PHASE_STEP_OVER)',
    to: 'passOver()',
    test: 'core/transfer',
  },
  {
    breaks: '−11 in the result field is no progress',
    file: 'transfer.ts',
    from: 'done > 0 && <u64>done <= end - cursor',
    to: 'done != 0',
    test: 'core/transfer',
  },
  {
    breaks: 'changes come before faults',
    file: 'inbox.ts',
    from: '  if (eventCount > 0) return deliverEvent();\n  if (!drained)',
    to: '  if (eventCount > 0 && faultCount() == 0) return deliverEvent();\n  if (!drained)',
    test: 'core/inbox',
  },
  {
    breaks: 'a read that finds no descriptor for a child is no failure',
    file: 'inbox.ts',
    from: '    if (result == -EMFILE || result == -ENFILE) return READ_STARVED;\n',
    to: '',
    test: 'core/inbox',
  },
  {
    breaks: 'nothing is offered before the queue was read to EAGAIN',
    file: 'inbox.ts',
    from: '  if (!drained) return',
    to: '  if (!drained && faultCount() == 0) return',
    test: 'core/inbox',
  },
  {
    breaks: 'progress is what the kernel says, and no page more',
    file: 'transfer.ts',
    from: 'return resolved(<u64>done);',
    to: 'return resolved(<u64>done + pageSizeAt(cursor));',
    test: 'core/transfer',
  },
  {
    breaks: 'EAGAIN without progress reads before it tries again',
    file: 'transfer.ts',
    from: 'return STEP_READ;',
    to: 'return fill();',
    test: 'core/transfer',
  },
  {
    breaks: 'a change that touches the rest ends the transfer short',
    file: 'transfer.ts',
    from: '  if (inboxOverlaps(cursor, end)) return true;',
    to: '',
    test: 'core/transfer',
  },
  {
    breaks: 'reads that bring nothing end the transfer short',
    file: 'transfer.ts',
    from: 'const FRUITLESS_READS: u32 = 2;',
    to: 'const FRUITLESS_READS: u32 = 1000000;',
    test: 'core/transfer',
  },
  {
    breaks: 'ENOENT wakes who is left',
    file: 'transfer.ts',
    from: 'return wake(end - cursor, PHASE_END);\n  }\n  if (result == -ESRCH)',
    to: 'return cut(STEP_UNMAPPED);\n  }\n  if (result == -ESRCH)',
    test: 'core/transfer',
  },
  {
    breaks: 'a write upgrades a read',
    file: 'faults.ts',
    from: '    entry(known).write |= write;',
    to: '',
    test: 'core/inbox',
  },
  {
    breaks: 'a deferred fault comes again by itself',
    file: 'faults.ts',
    from: 'entry(index).due <= now; index = head(level)',
    to: 'entry(index).due < 0; index = head(level)',
    test: 'core/',
  },
  {
    breaks: 'a fault whose fill was cut short is offered again',
    file: 'inbox.ts',
    from: '(!answered || cutShort)',
    to: '!answered',
    test: 'core/',
  },
  {
    breaks: 'who was left asleep is woken',
    file: 'round.ts',
    from: 'transferWake(heldStart, heldEnd);',
    to: 'transferWake(heldStart, heldStart + (heldEnd - heldStart) / 2);',
    test: 'core/round',
  },
  {
    breaks: 'who faults in what was installed for others is no question',
    file: 'round.ts',
    from: 'if (!isHeld()) return',
    to: 'return',
    test: 'core/round',
  },
];

/** The core as it is: were it not to pass, noticing a mutant would mean nothing. */
const CONTROL: Mutant = {
  breaks: 'nothing',
  file: 'index.ts',
  from: '// The core',
  to: '// The core',
  test: 'core/',
};

const root = fileURLToPath(new URL('../..', import.meta.url));
const survivors: string[] = [];

if (isNoticed(CONTROL)) throw new Error('the tests fail on the core as it is');

for (const mutant of MUTANTS) {
  const noticed = isNoticed(mutant);
  console.log(`${noticed ? 'noticed ' : 'SURVIVED'}  ${mutant.breaks}`);
  if (!noticed) survivors.push(mutant.breaks);
}
console.log(`${MUTANTS.length - survivors.length} of ${MUTANTS.length} broken cores were noticed`);
process.exitCode = survivors.length > 0 ? 1 : 0;

function isNoticed({ breaks, file, from, to, test }: Mutant): boolean {
  const folder = mkdtempSync(join(tmpdir(), 'uffd-mutant-'));
  try {
    for (const part of ['assembly', 'dist', 'asconfig.json', 'package.json']) {
      cpSync(join(root, part), join(folder, part), { recursive: true });
    }
    symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'));
    const path = join(folder, 'assembly', file);
    const source = readFileSync(path, 'utf8');
    if (source.split(from).length !== 2)
      throw new Error(`'${breaks}': its place in ${file} is not there once`);
    writeFileSync(path, source.replace(from, to));
    // The release core alone: the others are not run here.
    run(folder, 'node_modules/.bin/asc', ['assembly/index.ts', '--target', 'release']);
    run(folder, 'npm', ['run', '-s', 'build:inline']);
    const tests = spawnSync(process.execPath, ['dist/test/run.js', test], {
      cwd: folder,
      env: { ...process.env, UFFD_CORE: 'release' },
      encoding: 'utf8',
    });
    return tests.status !== 0;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function run(cwd: string, command: string, args: string[]): void {
  const { status, stderr } = spawnSync(command, args, { cwd, encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
}
