// Makes Linux the system. Whoever needs it imports this file, for that alone: importing asks nothing of the system, and
// never fails.

import { eventfdSignal, linuxKernel, trySyscall } from '../shim/linux.js';
import { useSystem } from './system.js';

useSystem({ kernel: linuxKernel, trySyscall, eventfdSignal });
