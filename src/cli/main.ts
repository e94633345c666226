#!/usr/bin/env node
// The command `uffd`, and what its threads and processes are started with. As a command, every run ends with one of the
// exit codes in exit.ts, and what went wrong on stderr.

import { existsSync } from 'node:fs';
import { embed } from '../embed.js';
import { PARTS } from './parts.js';

/** In a bundle, koffi's binary lies beside it. */
const binary = new URL('koffi.node', import.meta.url);

if (!embed({ entry: import.meta.url, koffi: existsSync(binary) ? binary : undefined, parts: PARTS })) {
  const { run } = await import('./run.js');
  await run();
}
