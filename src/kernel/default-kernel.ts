// The system on which userfaultfds are opened if no kernel is given. The package's entries that need Linux import
// src/kernel/linux.ts, which sets the system. All other code needs no system: it uses the kernel that the caller
// passes, and runs wherever WebAssembly runs.

import { type System, UnsupportedError } from './port.js';

let current: System | undefined;

/** Sets the system, once. */
export function useSystem(system: System): void {
  current = system;
}

/** @throws UnsupportedError if no system was set */
export function system(): System {
  if (current) return current;
  throw new UnsupportedError(
    "there is no system's kernel here: pass one as the option 'kernel', or import 'userfaultfd', which brings Linux's",
  );
}
