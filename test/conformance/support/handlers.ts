// Handlers to check: one in C that is honest or has one fault (broken/handler.c).

import { fileURLToPath } from 'node:url';
import { compileProgram } from '../../support/real-kernel.js';

const HANDOFF = fileURLToPath(new URL('../../../../bench/peers/c', import.meta.url));

/** Compiled programs by fault. */
const programs = new Map<number, string>();

/** The command of the handler with a fault of broken/handler.c; 0: the honest one. */
export function handler(fault = 0): string[] {
  const program =
    programs.get(fault) ?? compileProgram('conformance/broken/handler.c', `-DFAULT=${fault}`, '-I', HANDOFF);
  programs.set(fault, program);
  return [program, '{socket}', '{memory}'];
}
