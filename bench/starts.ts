// Start times of processes that are started one after the other. One of them is Node with an empty program.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type Spread, spread } from './statistics.js';

export interface StartFigure {
  readonly name: string;
  readonly ms: Spread;
  /** Divided by the time of Node with an empty program in the same round. */
  readonly times: Spread;
}

const file = (name: string): string => fileURLToPath(new URL(`../../${name}`, import.meta.url));
/** The program imports the built file by its URL, because Node cannot resolve the package's name there. */
const DECODE = `
  import { decodeMessages } from ${JSON.stringify(new URL('../../dist/lib/core.js', import.meta.url).href)};
  const message = new Uint8Array(32);
  message[0] = 0x12;
  if ([...decodeMessages(message)][0].event !== 'pagefault') throw new Error();`;

interface Start {
  readonly name: string;
  args(folder: string): string[];
  /** A server has started when it prints something. Other programs count as started when they have ended. */
  readonly serves?: true;
}

export const STARTS: readonly [Start, ...Start[]] = [
  { name: '`node -e 0`', args: () => ['-e', '0'] },
  {
    name: '`userfaultfd/core` imported, a message decoded',
    args: () => ['--input-type=module', '-e', DECODE],
  },
  { name: '`uffd --version`', args: () => [file('dist/uffd.js'), '--version'] },
  { name: '`uffd.mjs --version`', args: () => [file('build/standalone/uffd.mjs'), '--version'] },
  {
    name: '`uffd serve` until it is ready',
    args: (folder) => serve('dist/uffd.js', folder),
    serves: true,
  },
  {
    name: '`uffd.mjs serve` until it is ready',
    args: (folder) => serve('build/standalone/uffd.mjs', folder),
    serves: true,
  },
];

function serve(command: string, folder: string): string[] {
  return [file(command), 'serve', '--socket', join(folder, 'vm.sock'), '--memory', join(folder, 'memory')];
}

/** Milliseconds until the process has started. */
async function time({ args, serves }: Start, folder: string): Promise<number> {
  const began = performance.now();
  const child = spawn(process.execPath, args(folder), {
    stdio: ['ignore', serves ? 'pipe' : 'ignore', serves ? 'ignore' : 'inherit'],
  });
  const ended = once(child, 'exit');
  if (serves && child.stdout) await Promise.race([once(child.stdout, 'data'), ended]);
  else await ended;
  const ms = performance.now() - began;
  child.kill();
  const [code, signal] = await ended;
  if (code !== 0 && signal !== 'SIGTERM') throw new Error(`${args(folder).join(' ')}: ${signal ?? code}`);
  return ms;
}

/** Measures each start in turn, repeatedly. If the machine cannot serve, starts of servers are skipped. */
export async function starts(rounds: number): Promise<StartFigure[]> {
  const folder = mkdtempSync(join(tmpdir(), 'uffd-starts-'));
  try {
    writeFileSync(join(folder, 'memory'), new Uint8Array(2 ** 20));
    const taken = STARTS.map(() => [] as number[]);
    for (let round = 0; round <= rounds; round++) {
      for (const [index, start] of STARTS.entries()) {
        const ms = await time(start, folder);
        // The first start does not count, because it reads files that are not cached yet.
        if (round > 0) (taken[index] as number[]).push(ms);
      }
    }
    const nothing = taken[0] as number[];
    return STARTS.map(({ name }, index) => {
      const all = taken[index] as number[];
      return {
        name,
        ms: spread(all),
        times: spread(all.map((ms, round) => ms / (nothing[round] as number))),
      };
    });
  } finally {
    rmSync(folder, { recursive: true });
  }
}
