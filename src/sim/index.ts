// The entry `userfaultfd/sim`: a simulated kernel, and the `Userfaultfd` that runs on it. It uses neither koffi nor
// Node's APIs.

export { Userfaultfd } from '../uffd/userfaultfd.js';
export { type Chooser, Noted, Random, Script } from './chooser.js';
export { Stuck } from './clock.js';
export { INJECTIONS, type Inject, type Injection } from './injection.js';
export {
  type SharedMapping,
  SimulatedKernel,
  type SimulatedMemory,
  type SimulationOptions,
} from './kernel.js';
export type { MemoryObserver } from './memory.js';
export type { HugePool } from './pool.js';
export type { SharedMemory } from './shared-memory.js';
export {
  type Action,
  advise,
  bind,
  exec,
  exit,
  type ForkOptions,
  forked,
  lock,
  type Outcome,
  type Program,
  protect,
  read,
  readOf,
  remap,
  replace,
  SimulatedProcess,
  SimulatedThread,
  unmap,
  write,
} from './thread.js';
export type { AccessMode } from './touch.js';
