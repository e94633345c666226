// Makes Linux the system. Whoever needs it imports this file, for that alone: importing asks nothing of the system, and
// never fails.

import { eventfdSignal, linuxKernel, trySyscall } from '../shim/linux.js';
import { seeToEnd } from './ending.js';
import type { Kernel } from './kernel.js';
import { useSystem } from './system.js';

function kernel(): Kernel {
  const linux = linuxKernel();
  seeToEnd();
  return linux;
}

useSystem({ kernel, trySyscall, eventfdSignal });
