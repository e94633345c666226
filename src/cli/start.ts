// Begins what this process or thread was started for: a part, or a run of the command. As a command, every run ends with
// one of the exit codes in exit.ts, and errors are on stderr.

import { existsSync } from 'node:fs';
import { embed } from '../embed.js';
import { PARTS } from './workers.js';

/** `main`: the file that was started. */
export async function start(main: string): Promise<void> {
  // In a bundle, koffi's binary is in the folder of the bundle.
  const binary = new URL('koffi.node', main);
  const koffi = existsSync(binary) ? binary : undefined;
  if (embed({ entry: main, koffi, parts: PARTS, serves: process.argv[2] === 'serve' })) return;
  const { run } = await import('./run.js');
  await run();
}
