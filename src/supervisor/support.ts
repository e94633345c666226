// What this machine and this user have of what simulated checks of handlers need. It is tried with the launcher itself,
// and its shell in the handler's place.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { errnoName, UffdError, UnsupportedError } from '../errors/errors.js';
import { memory } from './caller.js';
import { Launcher } from './launcher.js';
import { knowsArchitecture } from './system-calls.js';

/** What simulated checks of handlers need, as it was tried. */
export interface SimulatedSupport {
  /** Whether another process's system calls can be trapped and answered: 'ok', an error's code, or a reason. */
  readonly calls: string;
  /** Whether the memory of the process that makes them can be read: 'ok', an error's code, or 'not tried'. */
  readonly memory: string;
  /** Whether only fatal signals interrupt a call that waits for its answer (Linux 5.19). Null: not tried. */
  readonly killable: boolean | null;
  /** Whether an answer switches to the handler at once (Linux 6.6). Null: not tried. */
  readonly syncWakeUp: boolean | null;
  /** Whether the handler's addresses can be the same in each run. Null: not tried. */
  readonly fixedAddresses: boolean | null;
}

const UNTRIED = { memory: 'not tried', killable: null, syncWakeUp: null, fixedAddresses: null } as const;
const CALL_MS = 5000;
/** Offsets in struct seccomp_notif: the caller's thread, and the address of its next instruction. */
const PID_AT = 8;
const INSTRUCTION_AT = 24;

/** Tries it. Blocks for some 300 ms, so it belongs into a process of its own. Never throws what the kernel refuses. */
export function trySimulatedSupport(): SimulatedSupport {
  if (!knowsArchitecture)
    return {
      calls: `the system calls of ${process.arch} are not known, only those of x64 and arm64`,
      ...UNTRIED,
    };
  const folder = mkdtempSync(join(tmpdir(), 'uffd-support-'));
  let launcher: Launcher | undefined;
  try {
    launcher = new Launcher({ command: ['true'], folder, memories: [] });
    const { killable, syncWakeUp, fixed } = launcher.abilities;
    return { ...tryCall(launcher), killable, syncWakeUp, fixedAddresses: fixed };
  } catch (error) {
    if (error instanceof UffdError) return { calls: error.code, ...UNTRIED };
    if (error instanceof UnsupportedError) return { calls: error.message, ...UNTRIED };
    throw error;
  } finally {
    launcher?.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Traps the first call of the shell that starts handlers, and reads the shell's memory. */
function tryCall(launcher: Launcher): Pick<SimulatedSupport, 'calls' | 'memory'> {
  if (launcher.wait(CALL_MS) !== 'call') return { calls: 'no call was trapped', memory: UNTRIED.memory };
  const { notification } = launcher.channel;
  const at = Number(notification.getBigUint64(INSTRUCTION_AT, true));
  const read = memory.read(notification.getUint32(PID_AT, true), at, new Uint8Array(1));
  return { calls: 'ok', memory: read === 0 ? 'ok' : errnoName(-read) };
}
