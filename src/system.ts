// The system that userfaultfds are opened on where no kernel is given. Linux is brought by the entries that need it
// (src/linux.ts); whatever else there is runs without one, on kernels that it is given, wherever WebAssembly does.

import { type System, UnsupportedError } from './kernel.js';

let current: System | undefined;

/** Says once what the system is. */
export function useSystem(system: System): void {
  current = system;
}

/** @throws UnsupportedError where none was brought */
export function system(): System {
  if (current) return current;
  throw new UnsupportedError(
    "no system's kernel is here: give one as the option 'kernel', or import 'userfaultfd', which brings Linux's",
  );
}
