// Makes Linux the system of this process (default-kernel.ts). This file is imported for this effect alone. Importing it
// makes no system call, and never fails.

import { eventfdSignal, linuxKernel, trySyscall } from '../../shim/linux.js';
import { installExitHandling } from '../uffd/process-exit.js';
import { useSystem } from './default-kernel.js';
import type { Kernel } from './port.js';

function kernel(): Kernel {
  const linux = linuxKernel();
  installExitHandling();
  return linux;
}

useSystem({ kernel, trySyscall, eventfdSignal });
